package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// setScheduler gives a block device the I/O scheduler of the configuration. Requests that wait here have a
// tag of the device, of which there are not many; where a flood takes them all, only a scheduler above
// can tell who is to have the next one. A device without it works as well.
func (in *Instance) setScheduler(s *served) {
	want := in.conf.Scheduler
	if want == "" {
		return
	}
	file := filepath.Join("/sys/block", filepath.Base(s.ublk.Path()), "queue/scheduler")
	err := os.WriteFile(file, []byte(want), 0)
	if err == nil {
		return
	}
	if text, rerr := os.ReadFile(file); rerr == nil {
		err = fmt.Errorf("%w (this kernel has: %s)", err, strings.TrimSpace(string(text)))
	}
	in.log.Warn("no I/O scheduler "+want, "name", s.name, "error", err)
}

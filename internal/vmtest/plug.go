//go:build vm

package vmtest

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// plugPortName is the virtio-serial port on which ubvm has disks unplugged.
const plugPortName = "ubvm.plug"

// Plug is a SCSI disk of the VM (ubvm's --disk NAME,scsi; plug0 and plug1 are there) that a test
// unplugs and plugs in again. Its content stays.
type Plug struct{ name string }

// OpenPlug is the disk of this name, discarded as a whole, and plugged in at the end of the test.
func OpenPlug(t testing.TB, name string) *Plug {
	t.Helper()
	Modprobe(t, "virtio_scsi", "sd_mod")
	p := &Plug{name}
	dev := p.Dev(t)
	t.Cleanup(func() {
		t.Helper()
		if p.find() == "" {
			p.In(t)
		}
	})
	Run(t, "blkdiscard", "-f", dev)
	return p
}

// Dev waits for the disk and returns its device, which may be another one each time it is plugged in.
func (p *Plug) Dev(t testing.TB) string {
	t.Helper()
	var dev string
	Wait(t, 30*time.Second, "SCSI disk "+p.name, func() bool {
		if dev = p.find(); dev == "" {
			return false
		}
		_, err := os.Stat(dev)
		return err == nil
	})
	return dev
}

// find looks for the serial number in the disks' vital product data.
func (p *Plug) find() string {
	names, _ := filepath.Glob("/sys/block/sd*/device/vpd_pg80")
	for _, name := range names {
		data, err := os.ReadFile(name)
		const head = 4
		if err == nil && len(data) > head && strings.TrimSpace(string(data[head:])) == p.name {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(name)))
		}
	}
	return ""
}

// Out unplugs the disk, whatever uses it.
func (p *Plug) Out(t testing.TB) {
	t.Helper()
	ask(t, "unplug "+p.name)
	Wait(t, 30*time.Second, "removal of SCSI disk "+p.name, func() bool { return p.find() == "" })
}

// In plugs the disk in again and returns its device.
func (p *Plug) In(t testing.TB) string {
	t.Helper()
	ask(t, "plug "+p.name)
	return p.Dev(t)
}

// ask has the host do something with a disk.
func ask(t testing.TB, what string) {
	t.Helper()
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(text)) != plugPortName {
			continue
		}
		port, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		if _, err := fmt.Fprintln(port, what); err != nil {
			t.Fatal(err)
		}
		answer, err := bufio.NewReader(port).ReadString('\n')
		if err != nil || strings.TrimSpace(answer) != "ok" {
			t.Fatalf("%s: %s %v", what, strings.TrimSpace(answer), err)
		}
		return
	}
	t.Fatal("no port to ask for disks to be unplugged: this is no ubvm of today")
}

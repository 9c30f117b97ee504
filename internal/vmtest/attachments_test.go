//go:build vm

package vmtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// held is what a daemon has of what can leak, and what the system has of it.
type held struct {
	fds, maps, threads int
	resident           int // KiB
	nodes              int // devices of ublk and links to them
}

func (c *Cache) held(t *testing.T) (h held) {
	t.Helper()
	count := func(patterns ...string) (n int) {
		for _, p := range patterns {
			list, err := filepath.Glob(p)
			if err != nil {
				t.Fatal(err)
			}
			n += len(list)
		}
		return n
	}
	proc := fmt.Sprintf("/proc/%d/", c.Status(t).PID)
	h.fds, h.threads = count(proc+"fd/*"), count(proc+"task/*")
	h.nodes = count("/dev/ublk[bc]*", "/sys/block/ublkb*", "/sys/class/ublk-char/*", "/dev/ubcache/*", "/dev/ubcache/by-*/*")
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		t.Fatal(err)
	}
	h.maps = strings.Count(string(maps), "\n")
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &h.resident)
	}
	return h
}

// more says that there is more than before, by so much that the cycles may be the reason.
func (h held) more(before held, cycles int) bool {
	// What the runtime takes at once and keeps.
	const maps, threads, resident = 24, 4, 8 << 10
	return h.fds > before.fds || h.nodes > before.nodes || h.maps > before.maps+min(maps, cycles-1) ||
		h.threads > before.threads+threads || h.resident > before.resident+resident
}

// TestAttachments attaches and detaches a device of a running daemon, with dirty data, again and again. In the end the daemon
// and the kernel have what they had after the first few.
func TestAttachments(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	cycles := 15
	if Soak(t) {
		cycles = 300
	}
	c := NewCache(t, Slice(t, "ssd", 0, 64))
	backing := Slice(t, "ssd", 512, 32)
	c.Attach(t, Slice(t, "ssd", 1024, 32), "stays")
	data := make([]byte, 64<<10)
	Fill(data, 1)
	cycle := func() {
		Ubcache(t, append([]string{"attach", backing, "--name=comes"}, writeback...)...)
		dev, err := os.OpenFile("/dev/ubcache/comes", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = dev.Write(data)
		if err := errors.Join(err, dev.Sync(), dev.Close()); err != nil {
			t.Fatal(err)
		}
		Ubcache(t, "detach", "comes")
	}
	for range 3 {
		cycle()
	}
	before := c.held(t)
	for range cycles {
		cycle()
	}
	var after held
	for range 20 { // some of it ends a little later
		if after = c.held(t); !after.more(before, cycles) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("before %+v, after %d cycles %+v", before, cycles, after)
	if after.more(before, cycles) {
		t.Errorf("before %d cycles %+v, after %+v", cycles, before, after)
	}
}

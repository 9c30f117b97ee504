package daemon

import (
	"context"
	"os"
	"strings"
	"testing"

	api "ubcache/attrs/client"
	"ubcache/internal/control"
	"ubcache/internal/missed"
)

// loseSupers overwrites both copies of the superblock, or all of them but how they begin.
func (b *oldBench) loseSupers(magic bool) {
	b.t.Helper()
	f, err := os.OpenFile(b.ssd, os.O_RDWR, 0)
	must(b.t, err)
	for off := int64(64 << 10); off < 1<<20; off += 64 << 10 {
		p, at := make([]byte, 64<<10), off
		if magic {
			p, at = p[:4096], off+4096
		}
		_, err = f.WriteAt(p, at)
		must(b.t, err)
	}
	must(b.t, f.Close())
}

// TestSuperblocksLostAfterGoingWithout: a cache goes on without its SSD, which then turns out to have lost its superblocks. If it had
// nothing dirty, and has missed changes of all devices, it is done without once more; else the start is refused.
func TestSuperblocksLostAfterGoingWithout(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changed []string
		magic   bool
		dirty   bool
		served  bool
	}{
		{name: "all devices have changed", changed: []string{"disk0", "disk1"}, served: true},
		{name: "all have changed, they are damaged", changed: []string{"disk0", "disk1"}, magic: true, served: true},
		{name: "one has not", changed: []string{"disk0"}},
		{name: "dirty data", changed: []string{"disk0", "disk1"}, dirty: true},
		{name: "dirty data, they are damaged", changed: []string{"disk0", "disk1"}, magic: true, dirty: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newOldBench(t, "writethrough")
			b.write(1)
			d := b.open(api.Options{Device: "disk1"}) // the SSD misses changes of what it has
			must(t, b.writeAt(d, 0, 1, 8192))
			b.flushed(d)
			closeDevice(t, d)
			d = b.open(api.Options{})
			if tt.dirty {
				_, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: map[string]string{"mode": "writeback"}}, nil)
				must(t, err)
				must(t, b.writeAt(d, 1<<20, 5, 4096))
				b.flushed(d)
			}
			b.loseSSD(d)
			closeDevice(t, d)
			for _, name := range tt.changed {
				d := b.open(api.Options{Device: name})
				must(t, b.writeAt(d, 0, 2, 8192))
				b.flushed(d)
				closeDevice(t, d)
			}
			b.crash()
			b.loseSupers(tt.magic)
			for range 2 {
				before := head(t, b.ssd)
				err := b.startNow(1)
				if head(t, b.ssd) != before {
					t.Fatal("the start has changed the SSD")
				}
				if !tt.served {
					if err == nil || strings.Contains(err.Error(), "\n") ||
						!strings.Contains(err.Error(), "ubcache salvage saves") {
						t.Fatalf("start: %v", err)
					}
					continue
				}
				must(t, err)
				if st := b.Status(); st.Cache.SSDState != "lost" || st.Devices[0].Service == "missing" {
					t.Errorf("started: %+v", st)
				}
				b.want(2)
				b.write(2)
				must(t, b.Stop(context.Background(), true))
			}
			for _, name := range tt.changed {
				m, err := missed.Read(b.stateDir, b.conf.UUID, b.conf.Backings[name].UUID)
				if err != nil || m == nil || name == "disk0" && m.DirtyBlocks > 0 != tt.dirty {
					t.Errorf("marker of %s: %+v, %v", name, m, err)
				}
			}
		})
	}
}

//go:build vm

package faults

import (
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// TestUnplugBacking unplugs the backing device under load, with dirty data, and plugs it in again under another name.
// What the SSD has goes on being served and written meanwhile, and when it is back, found by the
// running daemon or after a restart, everything is there and goes to the disk.
func TestUnplugBacking(t *testing.T) {
	vmtest.OnlyFull(t)
	vmtest.Limit(t, 5*time.Minute)
	disk, other := vmtest.OpenPlug(t, "plug0"), vmtest.OpenPlug(t, "plug1")
	s := &stage{t: t, y: vmtest.Fault(t, "backing device: unplugged and plugged back under another name")}
	s.c = vmtest.NewCache(t, vmtest.Slice(t, "ssd", 0, faultSSD))
	s.dev = s.c.Attach(t, disk.Dev(t), "data", append(keepsDirty, alwaysFlags...)...)
	for i := range 4 {
		s.oracles = append(s.oracles, vmtest.NewOracle(t, s.dev, int64(i)*faultRange, faultRange))
	}
	s.load(100, s.oracles, nil)
	for i := range rounds(t, 2) {
		s.y.Tried(1)
		was := disk.Dev(t)
		disk.Out(t)
		other.Out(t)
		failed := 0
		for _, o := range s.oracles {
			o.ReadSome(s.y, "without the backing device", 500, func(at int, err error) {
				failed++
				if o.Written(at, 1) {
					s.y.Failed("sector %d is on the SSD: %v", at, err)
				}
			})
		}
		if failed == 0 {
			t.Error("nothing failed: the disk was not gone")
		}
		s.load(50, s.oracles, func(_ *vmtest.Oracle, op vmtest.OracleOp) bool { return op.Read })
		if i%2 == 0 { // it is found while the cache runs
			plugElsewhere(t, disk, other, was)
			s.served()
		} else {
			for _, o := range s.oracles {
				o.Close()
			}
			s.c.Stop(t)
			plugElsewhere(t, disk, other, was)
			s.c.Start(t)
			s.served()
			for _, o := range s.oracles {
				o.Reopen(t, s.c.Device(t, "data").Path)
			}
		}
		if now := s.c.Device(t, "data").BackingDevice; now != disk.Dev(t) || now == was {
			t.Errorf("the backing device was %s, is %s, and is %s to the cache", was, disk.Dev(t), now)
		}
		s.readAll("with the backing device again")
	}
	for _, o := range s.oracles {
		o.Close()
	}
	vmtest.Ubcache(t, "detach", "data")
	for _, o := range s.oracles {
		o.Reopen(t, disk.Dev(t))
	}
	s.readAll("on the backing device in the end")
}

// plugElsewhere plugs a disk in under another name than it had: the other disk takes that one if it is free.
func plugElsewhere(t *testing.T, disk, other *vmtest.Plug, was string) {
	t.Helper()
	if disk.In(t) == was {
		disk.Out(t)
		other.In(t)
		disk.In(t)
	} else {
		other.In(t)
	}
	if now := disk.Dev(t); now == was {
		t.Fatalf("the disk is %s again", now)
	}
}

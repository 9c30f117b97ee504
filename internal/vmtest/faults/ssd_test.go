//go:build vm

// Package faults plays kernel-made faults under SSD and backing device: device-mapper targets that fail,
// lie or are slow, swapped live under load, disks with bad sectors, and power cuts after the fact
// from logs of all writes. Everything read is compared with what may be there; an error counts
// unless the matrix in docs/reliability.md allows it.
package faults

import (
	"sync"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// clean fills the cache with clean data: in mode writethrough, and by reading.
func clean(t *testing.T, fault string) *stage {
	t.Helper()
	s := newStage(t, fault, "--mode=writethrough")
	s.load(250, s.oracles, nil)
	s.readAll("before the fault")
	return s
}

// dirty has clean data in the first two ranges and dirty data in the others.
func dirty(t *testing.T, fault string) *stage {
	t.Helper()
	s := newStage(t, fault, keepsDirty...)
	s.load(250, s.oracles[:2], nil)
	vmtest.Ubcache(t, "flush", "data")
	s.load(250, s.oracles[2:], nil)
	if d := s.c.Device(t, "data"); d.DirtyBytes < 2<<20 {
		t.Fatalf("only %d bytes are dirty", d.DirtyBytes)
	}
	return s
}

// ssdFault is a fault of the SSD's data; journal and flushes are spared. (dm-flakey's error_writes does
// not spare flushes: that is an SSD that is lost.)
type ssdFault struct {
	name     string
	features int
	feature  string
	// writes says that it is writes during the fault that are hit, and not what was there before.
	writes bool
	// fails says that the SSD reports it; else only the checksums show it.
	fails bool
	// long says that with dirty data it is on the long list only.
	long bool
}

var ssdFaults = []ssdFault{
	{"SSD: reads fail", 1, "error_reads", false, true, false},
	{"SSD: writes are dropped", 1, "drop_writes", true, false, true},
	{"SSD: reads return wrong bytes", 2, "random_read_corrupt 500000000", false, false, false},
	{"SSD: wrong bytes are written", 2, "random_write_corrupt 500000000", true, false, true},
}

// TestSSDFaults swaps the SSD for one that fails or lies, under load, and back. With clean data
// nobody notices anything. With dirty data, blocks may fail that only the SSD had, and no others.
func TestSSDFaults(t *testing.T) {
	for _, f := range ssdFaults {
		for _, kind := range []string{"clean", "dirty"} {
			name := f.name + ", " + kind + " data"
			t.Run(name, func(t *testing.T) {
				if vmtest.OnlyFull(t); f.long && kind == "dirty" {
					vmtest.OnlyLong(t)
				}
				vmtest.Limit(t, 5*time.Minute)
				if kind == "clean" {
					f.clean(t, clean(t, name))
				} else {
					f.dirty(t, dirty(t, name))
				}
			})
		}
	}
}

func (f *ssdFault) clean(t *testing.T, s *stage) {
	for range rounds(t, 1) {
		s.y.Tried(1)
		s.ssd.flakey(t, f.features, f.feature)
		if !f.writes {
			s.readAll("during the fault")
		}
		s.load(100, s.oracles, nil)
		s.readAll("during the fault")
		s.ssd.heal(t)
		s.readAll("after the fault")
	}
	f.seen(t, s)
	s.end()
}

// seen fails a test whose fault has not been met.
func (f *ssdFault) seen(t *testing.T, s *stage) {
	t.Helper()
	d := s.stats()
	t.Logf("SSD errors %d, healed %d, bad %d", d.SSDErrors, d.HealedBlocks, d.BadBlocks)
	if f.fails && d.SSDErrors == 0 || !f.fails && d.HealedBlocks+d.BadBlocks == 0 {
		t.Errorf("the fault was not met: %+v", d)
	}
	if d.BackingErrors > 0 {
		t.Errorf("%d errors of the backing device", d.BackingErrors)
	}
}

func (f *ssdFault) dirty(t *testing.T, s *stage) {
	s.y.Tried(1)
	s.ssd.flakey(t, f.features, f.feature)
	// A write that covers a lost block in part fails as well: its other sectors must not come back old.
	lost := func(o *vmtest.Oracle, op vmtest.OracleOp) bool { return o.Written(op.At&^7, (op.N+15)&^7) }
	failed := 0
	if f.writes {
		s.load(100, s.oracles[2:], lost)
	}
	for _, o := range s.oracles[:2] {
		o.ReadAll(s.y, "clean data during the fault", 64, nil)
	}
	for _, o := range s.oracles[2:] {
		failed += s.readBlocks("dirty data during the fault", o, writtenBlock)
	}
	if failed == 0 {
		t.Error("no block failed: the fault was not met")
	}
	s.ssd.heal(t)
	for _, o := range s.oracles[:2] {
		o.ReadAll(s.y, "clean data after the fault", 64, nil)
	}
	left := 0
	for _, o := range s.oracles[2:] {
		left += s.readBlocks("dirty data after the fault", o, writtenBlock)
	}
	t.Logf("%d blocks failed during the fault, %d after it, %d bytes are known to be bad", failed, left,
		s.c.Device(t, "data").BadBytes)
	s.overwrite(t)
	f.seen(t, s)
	s.end()
}

// overwrite writes everything anew: no block stays bad.
func (s *stage) overwrite(t *testing.T) {
	t.Helper()
	for _, o := range s.oracles {
		for at := 0; at < o.Len(); at += 128 {
			if err := o.Write(at, min(128, o.Len()-at)); err != nil {
				s.y.Failed("overwriting: %v", err)
			}
		}
	}
	s.readAll("overwritten")
	if d := s.c.Device(t, "data"); d.BadBytes != 0 {
		t.Errorf("%d bytes are bad after everything was overwritten", d.BadBytes)
	}
}

// rounds is how often something is tried.
func rounds(t *testing.T, n int) int {
	if vmtest.Soak(t) {
		return 10 * n
	}
	return n
}

// TestBadSectors makes pieces of the SSD unreadable (dm-error) while it holds clean and dirty data.
func TestBadSectors(t *testing.T) {
	for _, kind := range []string{"clean", "dirty"} {
		t.Run(kind, func(t *testing.T) {
			vmtest.OnlyFull(t)
			vmtest.Limit(t, 5*time.Minute)
			name := "SSD: bad sectors, " + kind + " data"
			s := map[string]func(*testing.T, string) *stage{"clean": clean, "dirty": dirty}[kind](t, name)
			s.y.Tried(1)
			// Buckets are filled from the front: the second MiB of data is there in either case.
			from := s.ssd.from + 2<<11
			s.ssd.faultAt(t, from, from+4<<11, "error", "")
			failed := 0
			for i, o := range s.oracles {
				if kind == "clean" || i < 2 {
					o.ReadAll(s.y, "clean data", 64, nil)
					continue
				}
				failed += s.readBlocks("dirty data", o, writtenBlock)
			}
			bad := s.c.Device(t, "data").BadBytes
			t.Logf("%d blocks failed, %d bytes are known to be bad, %+v", failed, bad, s.stats())
			if int64(failed)*4096 != bad {
				t.Errorf("%d blocks failed, and %d bytes are said to be bad", failed, bad)
			}
			if kind == "clean" && s.stats().SSDErrors == 0 {
				t.Error("the fault was not met")
			}
			if kind == "dirty" && (failed == 0 || failed > 4<<20/4096) {
				t.Errorf("%d blocks failed, of 4 MiB", failed)
			}
			// The sectors stay bad; everything else goes on.
			s.overwrite(t)
			s.ssd.heal(t)
			s.end()
		})
	}
}

// TestSlowSSD makes each request of the SSD take long, and stops it for seconds; nobody sees an error.
func TestSlowSSD(t *testing.T) {
	for _, kind := range []string{"slow", "stalls"} {
		for _, which := range []string{"SSD", "backing device"} {
			t.Run(kind+" "+which, func(t *testing.T) {
				vmtest.OnlyFull(t)
				vmtest.Limit(t, 5*time.Minute)
				s := newStage(t, which+": "+kind, "--mode=writeback", "--dirty-target=2", "--writeback-delay=1s")
				f := map[string]*faulty{"SSD": s.ssd, "backing device": s.backing}[which]
				f.from = 0
				s.load(60, s.oracles, nil)
				for range rounds(t, 1) {
					s.y.Tried(1)
					if kind == "slow" {
						f.fault(t, "delay", "40")
						s.load(40, s.oracles, nil)
						f.heal(t)
					} else {
						s.stall(t, f, 4*time.Second)
					}
				}
				s.readAll("after the fault")
				s.end()
			})
		}
	}
}

// stall holds a device up while there is load.
func (s *stage) stall(t *testing.T, f *faulty, length time.Duration) {
	t.Helper()
	m := vmtest.OpenMapped(t, f.dev)
	if err := m.Suspend(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		time.Sleep(length)
		if err := m.Resume(); err != nil {
			t.Error(err)
		}
	})
	s.load(100, s.oracles, nil)
}

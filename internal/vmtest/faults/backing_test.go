//go:build vm

package faults

import (
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// TestBackingFaults swaps the backing device for one that fails, under load, and back. What is cached
// goes on being served, dirty data is kept, and only what nothing but the backing device could do is
// an error.
func TestBackingFaults(t *testing.T) {
	for _, c := range []struct {
		name, feature string
		test          func(*testing.T, *stage)
		flags         []string
	}{
		{"reads fail, writeback", "error_reads", backingReads, keepsDirty},
		{"writes fail, writeback", "error_writes", backingWrites, keepsDirty},
		{"writes fail, writethrough", "error_writes", backingWritesThrough, []string{"--mode=writethrough"}},
		{"writes fail, writearound", "error_writes", backingWritesThrough, []string{"--mode=writearound"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			vmtest.OnlyFull(t)
			vmtest.Limit(t, 5*time.Minute)
			s := newStage(t, "backing device: "+c.name, c.flags...)
			s.load(250, s.oracles, nil)
			if c.flags[0] != keepsDirty[0] {
				s.readAll("before the fault")
			}
			s.y.Tried(1)
			s.backing.flakey(t, 1, c.feature)
			c.test(t, s)
			s.backing.heal(t)
			s.served()
			if c.feature == "error_writes" {
				// Flushes failed too: the next one may say once more that something may be lost.
				_ = s.oracles[0].Sync()
			}
			s.readAll("after the fault")
			s.load(100, s.oracles, nil)
			s.end()
			if t.Failed() {
				return
			}
		})
	}
}

// backingReads: what was written is on the SSD, what never was has to fail. Which of the two a
// block is that was written in part depends on the sectors asked for.
func backingReads(t *testing.T, s *stage) {
	failed := 0
	for _, o := range s.oracles {
		o.ReadSome(s.y, "during the fault", 500, func(at int, err error) {
			failed++
			if o.Written(at, 1) {
				s.y.Failed("sector %d is on the SSD: %v", at, err)
			}
		})
	}
	if failed == 0 {
		t.Error("nothing failed: the fault was not met")
	}
	s.load(100, s.oracles, func(o *vmtest.Oracle, op vmtest.OracleOp) bool { return op.Read })
	t.Logf("%d sectors failed, which only the backing device has", failed)
}

// backingWrites: in writeback nobody notices.
func backingWrites(t *testing.T, s *stage) {
	s.load(100, s.oracles, nil)
	s.readAll("during the fault")
	before := s.c.Device(t, "data").DirtyBytes
	// Writeback fails; the data stays.
	s.c.Set(t, "data", "dirty-target=1", "writeback-delay=1s")
	vmtest.Wait(t, time.Minute, "an error of writeback", func() bool { return s.stats().BackingErrors > 0 })
	s.readAll("while writeback fails")
	if after := s.c.Device(t, "data").DirtyBytes; after != before {
		t.Errorf("%d bytes were dirty, and %d are after writeback failed", before, after)
	}
}

// backingWritesThrough: each write fails, and each read goes on.
func backingWritesThrough(t *testing.T, s *stage) {
	failed := 0
	for _, o := range s.oracles[:1] {
		for at := 0; at < o.Len(); at += 513 {
			if err := o.Write(at, min(24, o.Len()-at)); err == nil {
				t.Errorf("write at sector %d succeeded, while the backing device fails writes", at)
			} else {
				failed++
			}
		}
	}
	t.Logf("%d writes failed; %+v", failed, s.stats())
	s.load(100, s.oracles, func(_ *vmtest.Oracle, op vmtest.OracleOp) bool { return !op.Read })
	s.readAll("during the fault")
}

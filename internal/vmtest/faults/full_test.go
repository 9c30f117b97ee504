//go:build vm

package faults

import (
	"sync"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// TestFullOfDirtyData writes more than the SSD may hold of dirty data, before a slow backing device: what the SSD does not
// take goes there, and no writer sees an error.
func TestFullOfDirtyData(t *testing.T) {
	vmtest.OnlyFull(t)
	vmtest.Limit(t, 5*time.Minute)
	vmtest.Modprobe(t, "dm_delay")
	const ssdMiB, rangeBytes = 40, 10 << 20
	s := &stage{t: t, y: vmtest.Fault(t, "SSD: full of dirty data")}
	s.ssd = newFaulty(t, "faulty-ssd", vmtest.Slice(t, "ssd", 0, ssdMiB))
	s.begin(t, vmtest.Slice(t, "ssd", 512, faultBacking), keepsDirty)
	for i := range s.oracles {
		s.oracles[i].Close()
		s.oracles[i] = vmtest.NewOracle(t, s.dev, int64(i)*rangeBytes, rangeBytes)
	}
	for range rounds(t, 1) {
		s.y.Tried(1)
		s.backing.fault(t, "delay", "1000")
		var wg sync.WaitGroup
		for _, o := range s.oracles {
			wg.Go(func() { s.fill(o) })
		}
		filled := make(chan struct{})
		go func() {
			wg.Wait()
			close(filled)
		}()
		dirty, most := int64(0), int64(0)
		for over := false; !over; {
			select {
			case <-filled:
				over = true
			case <-time.After(50 * time.Millisecond):
			}
			d := s.c.Device(t, "data")
			dirty, most = max(dirty, d.DirtyBytes), d.DirtyMaxBytes
		}
		st := s.stats()
		t.Logf("%d bytes were dirty, of %d at most; %+v", dirty, most, st)
		if dirty < most*9/10 {
			t.Errorf("%d bytes were dirty, of %d: the SSD was not full", dirty, most)
		}
		if n := int64(len(s.oracles)) * rangeBytes / 4096; st.CachedWriteBlocks >= n {
			t.Errorf("the SSD took %d blocks, of %d that were written", st.CachedWriteBlocks, n)
		}
		s.load(50, s.oracles, nil)
		s.backing.heal(t)
		s.readAll("full of dirty data")
	}
	s.end()
}

//go:build vm

package vmtest

import (
	"testing"
	"time"
)

// TestWarm reads a working set that fits, restarts the cache in order and by kill -9, and reads it
// again: what was cached still is.
func TestWarm(t *testing.T) {
	Limit(t, 3*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	dev := c.Attach(t, Slice(t, "slow", 0, 512), "data", "--mode=writeback", "--sequential-cutoff=0")
	const workingSet = "size=96m"
	// Half of it gets into the cache by writing, the other half by reading.
	Fio(t, dev, "rw=randwrite", "bs=64k", "iodepth=8", "size=48m")
	pass := func(what string, least float64) {
		t.Helper()
		before := c.Stats(t).Devices["data"]
		r := Fio(t, dev, "rw=randread", "bs=128k", "iodepth=8", workingSet)
		after := c.Stats(t).Devices["data"]
		hits := after.HitBlocks - before.HitBlocks
		misses := after.MissBlocks - before.MissBlocks
		ratio := float64(hits) / float64(hits+misses)
		t.Logf("%s: %.2f %% hits, %.0f MB/s", what, 100*ratio, r.ReadRate/1e6)
		if hits+misses < 96<<20/4096 {
			t.Errorf("%s: only %d blocks were counted", what, hits+misses)
		}
		if ratio <= least {
			t.Errorf("%s: %.2f %% of the blocks came from the SSD", what, 100*ratio)
		}
	}
	pass("first pass", 0.3)
	pass("second pass", 0.95)
	c.Stop(t)
	c.Start(t)
	pass("after stop and start", 0.95)
	c.Kill(t)
	c.Start(t)
	pass("after kill -9 and start", 0.95)
	// A restart that only continues what an earlier one has settled would hide what a kill loses.
	Fio(t, dev, "rw=randwrite", "bs=16k", "iodepth=8", "size=16m", "offset=128m")
	c.Kill(t)
	c.Start(t)
	before := c.Stats(t).Devices["data"]
	Fio(t, dev, "rw=randread", "bs=64k", "iodepth=8", "size=16m", "offset=128m")
	after := c.Stats(t).Devices["data"]
	if n := after.MissBlocks - before.MissBlocks; n > 16<<20/4096/20 {
		t.Errorf("%d blocks written right before a kill -9 are not cached after it", n)
	}
}

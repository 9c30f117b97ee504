package sim

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ubcache/cache"
)

// TestParallelLoading starts a cache again and again after orderly stops, and lets several threads work
// on it while the background loads the index, page by page: what each reads is what it wrote last,
// in all modes.
func TestParallelLoading(t *testing.T) {
	const lanes, perLane, starts = 3, 800, 6
	ssd := &lockedDisk{Disk: NewDisk(6 << 20)}
	back := &lockedDisk{Disk: NewDisk(3 << 20)}
	if _, err := cache.Format(ssd, cache.FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	var last [lanes][]uint64
	late, dropped := 0, int64(0)
	for start := range starts {
		c, err := cache.Open(ssd, cache.Options{
			Load: cache.LoadOptions{Blocks: 1, Pages: 1, NoSamples: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		if start == 0 {
			tun := cache.DefaultTunables()
			tun.SequentialCutoff, tun.DirtyTarget = 0, 1
			if _, err := c.Attach(cache.AttachOptions{
				Name: "p", Mode: cache.Writeback, LBS: 512, Tunables: tun,
				Identity: cache.Identity{Size: 3 << 20},
			}); err != nil {
				t.Fatal(err)
			}
		}
		b, err := c.Backing(1)
		if err != nil {
			t.Fatal(err)
		}
		b.SetAbilities(true, true)
		for i := range last {
			if last[i] == nil {
				last[i] = make([]uint64, int(b.Size())/sectorSize/lanes)
			}
		}
		if c.Loading().Percent < 100 {
			late++
		}
		loadBeside(t, c, b, []*lockedDisk{ssd, back}, last[:], perLane)
		dropped += c.Loading().Dropped
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Whether threads got to work before all was loaded is up to the machine; histories make sure of it.
	t.Logf("%d of %d indexes were loaded late, %d obsolete copies in them", late, starts, dropped)
	if late < starts-1 {
		t.Error("indexes were not loaded late")
	}
}

// loadBeside lets threads work while the index is loaded, and then stops in order.
func loadBeside(t *testing.T, c *cache.Cache, b *cache.Backing, disks []*lockedDisk, last [][]uint64, n int) {
	t.Helper()
	bg := newThreadLane(c, disks)
	bg.pause = func(op *cache.Op) {
		if op.Dev == cache.SSD && op.Kind == cache.OpRead && op.Off < c.Geometry().DataOff {
			time.Sleep(time.Millisecond) // else it is loaded before anything has happened
		}
	}
	c.StartBackground(bg.l)
	var stop atomic.Bool
	var bgDone, wg sync.WaitGroup
	bgDone.Go(func() {
		for !stop.Load() {
			bg.l.Tick()
			if !bg.round() {
				time.Sleep(100 * time.Microsecond)
			}
		}
	})
	all := make([]*threadLane, len(last))
	for i := range all {
		all[i] = newThreadLane(c, disks)
		wg.Go(func() {
			if err := work(all[i], b, i, len(all), n, last[i]); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range 10 {
		time.Sleep(3 * time.Millisecond)
		if err := c.SetMode(b.ID(), cache.Mode(i%5)); err != nil {
			t.Error(err)
		}
		_ = c.Status()
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Settle(ctx); err != nil {
		t.Fatal(err)
	}
	stop.Store(true)
	bgDone.Wait()
	if p := c.Verify(); len(p) > 0 {
		t.Error(p)
	}
	for _, l := range append(all, bg) {
		l.l.Close()
	}
}

package sim

import (
	"flag"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var everyFlag = flag.Int("every", 25*fewer, "of the operations of a sweep, take each n-th")

var sweepFlag = flag.String("sweep", "", "replay this attempt of a sweep, with a trace: scenario/attempt/operation")

// TestSweeps plays every scenario of the catalogue and lets each operation fail, in each way, and
// crashes at each operation, in each way, or has a device vanish then, stall, be full, or forget; with -every N at
// each N-th.
func TestSweeps(t *testing.T) {
	if *sweepFlag != "" {
		w, err := parseSweep(*sweepFlag)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.play(t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	start := time.Now()
	var total Result
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	counts := make([]int, len(Catalogue))
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(Catalogue) {
					return
				}
				r, err := Catalogue[i].sweep(*everyFlag)
				mu.Lock()
				counts[i] = r.Histories
				total.add(&r)
				if err != nil {
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for i := range Catalogue {
		t.Logf("%5d attempts: %s", counts[i], Catalogue[i].Name)
	}
	total.Took = time.Since(start)
	t.Logf("%v", &total)
	for i, n := range total.Cuts {
		if n == 0 {
			t.Errorf("no sweep met: %v", Crash(i))
		}
	}
	t.Logf("the SSD stalled %d times and was taken back in place %d times; of ordered devices: %d batches, %d images, "+
		"%d behind, %d orders given up", total.Stalls, total.InPlace, total.Batches, total.Images, total.Behind, total.Broken)
	if *everyFlag > 10 {
		return
	}
	for what, n := range map[string]int64{
		"vanished SSDs": int64(total.Vanished), "SSDs that are back": int64(total.Returned),
		"SSDs that have missed something":   int64(total.Returned - total.ReturnedWarm),
		"SSDs that the operator decides of": int64(total.Over), "stalls": int64(total.Stalls),
		"SSDs taken back in place": int64(total.InPlace), "power cuts while they are away": int64(total.CutsAway),
		"full SSDs": int64(total.Faults[FaultSSDFull]), "requests without an SSD": int64(total.FailedLost),
		"backing devices away": int64(total.Gone), "backing devices back": int64(total.GivenBack),
		"forgetful backing devices": int64(total.Forgotten), "reported losses": int64(total.Reported),
		"batches": total.Batches, "images": total.Images, "images that are behind": total.Behind,
	} {
		if n == 0 {
			t.Errorf("no sweep met: %s", what)
		}
	}
}

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
// crashes at each operation, in each way; with -every N at each N-th.
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
}

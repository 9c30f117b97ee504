package sim

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func playOrdered(seed uint64, trace func(string, ...any)) (Result, error) {
	cfg := NewConfig(seed)
	cfg.Ordered, cfg.Faults, cfg.FaultRate = true, 0, 0
	s, err := New(cfg)
	if err != nil {
		return Result{}, err
	}
	s.Trace = trace
	return s.Run()
}

// TestOrderedHistories plays histories in which devices are ordered, and looks at what the backing
// devices would show if the SSD were lost. A failing seed is replayed, with a trace, by
// go test ./cache/sim -run OrderedHistories -seed N.
func TestOrderedHistories(t *testing.T) {
	if *seedFlag != 0 {
		if _, err := playOrdered(*seedFlag, t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	var next, done atomic.Uint64
	next.Store(*fromFlag)
	var mu sync.Mutex
	var total Result
	start := time.Now()
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !t.Failed() {
				seed := next.Add(1) - 1
				if *timeFlag == 0 && seed >= *fromFlag+*seedsFlag ||
					*timeFlag != 0 && time.Since(start) > *timeFlag {
					return
				}
				r, err := playOrdered(seed, nil)
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
				done.Add(1)
				mu.Lock()
				total.add(&r)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d histories in %v: %d batches, %d images, %d behind", done.Load(),
		time.Since(start).Round(time.Millisecond), total.Batches, total.Images, total.Behind)
	if *seedsFlag >= 100 && !t.Failed() && (total.Images == 0 || total.Behind == 0 || total.Batches == 0) {
		t.Errorf("the histories miss what they are for: %+v", total)
	}
}

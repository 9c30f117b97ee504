package sim

import (
	"flag"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "replay the history of this seed, with a trace")
	seedsFlag = flag.Uint64("seeds", 300, "play this many histories")
	fromFlag  = flag.Uint64("from", 1, "the first seed")
	timeFlag  = flag.Duration("for", 0, "go on for so long instead")
)

func play(seed uint64, trace func(string, ...any)) (Result, error) {
	s, err := New(NewConfig(seed))
	if err != nil {
		return Result{}, err
	}
	s.Trace = trace
	return s.Run()
}

// TestHistories plays random histories. A failing seed is replayed, with a trace, by
// go test ./cache/sim -run Histories -seed N.
func TestHistories(t *testing.T) {
	if *seedFlag != 0 {
		t.Logf("config: %+v", NewConfig(*seedFlag))
		if _, err := play(*seedFlag, t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	total := playAll(t, play)
	if *seedsFlag >= 100 && !t.Failed() {
		if total.PowerCuts == 0 || total.Kills == 0 || total.Evicted == 0 || total.Hits == 0 ||
			total.WrittenBack == 0 || total.Checkpoints == 0 || total.Moved == 0 || total.Pins == 0 ||
			total.Evictions == 0 {
			t.Errorf("the histories miss a part of the engine: %+v", total)
		}
		if total.Refused == 0 || total.Mismatched == 0 || total.Late == 0 {
			t.Errorf("the histories miss outcomes of attributes: %+v", total)
		}
	}
}

// playAll plays the histories that the flags ask for.
func playAll(t *testing.T, play func(uint64, func(string, ...any)) (Result, error)) (total Result) {
	var next, done atomic.Uint64
	next.Store(*fromFlag)
	var mu sync.Mutex
	start := time.Now()
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !t.Failed() {
				seed := next.Add(1) - 1
				if *timeFlag == 0 && seed >= *fromFlag+*seedsFlag ||
					*timeFlag != 0 && time.Since(start) > *timeFlag {
					return
				}
				r, err := play(seed, nil)
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
				done.Add(1)
				mu.Lock()
				total.add(r)
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	t.Logf("%d histories in %v: %+v", done.Load(), time.Since(start).Round(time.Millisecond), total)
	return total
}

func (r *Result) add(o Result) {
	r.Requests += o.Requests
	r.PowerCuts += o.PowerCuts
	r.Kills += o.Kills
	r.Hits += o.Hits
	r.Evicted += o.Evicted
	r.Checkpoints += o.Checkpoints
	r.WrittenBack += o.WrittenBack
	r.Moved += o.Moved
	r.Pins += o.Pins
	r.Evictions += o.Evictions
	r.Refused += o.Refused
	r.Mismatched += o.Mismatched
	r.Late += o.Late
	r.Vanished += o.Vanished
	r.Returned += o.Returned
	r.ReturnedWarm += o.ReturnedWarm
	r.FailedLost += o.FailedLost
	r.FailedBad += o.FailedBad
}

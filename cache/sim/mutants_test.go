//go:build mutants

package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ubcache/cache"
)

var (
	mutantFlag = flag.String("mutant", "", "break the engine in this way, in all tests")
	onlyFlag   = flag.String("mutants", "", "hunt only these mutants: name,…")
	huntFlag   = flag.Uint64("hunt", 1000, "histories that are played to catch a mutant, before the sweeps")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *mutantFlag != "" {
		if !cache.Mutate(*mutantFlag) {
			fmt.Fprintf(os.Stderr, "no mutant %q\n", *mutantFlag)
			os.Exit(2)
		}
		goTest = "go test -tags mutants ./cache/sim -mutant " + *mutantFlag
	}
	os.Exit(m.Run())
}

// TestMutants breaks the engine in one way after the other, and each time the histories or the sweeps
// must fail. To see how, with a trace:
//
//	go test -tags mutants ./cache/sim -mutant NAME -run Histories -v -seed N
//	go test -tags mutants ./cache/sim -mutant NAME -run Sweeps -v -sweep S
func TestMutants(t *testing.T) {
	defer cache.Mutate("none")
	names, what := cache.Mutants()
	if len(names) < 15 {
		t.Errorf("only %d mutants", len(names))
	}
	for i, name := range names {
		if *onlyFlag != "" && !strings.Contains(","+*onlyFlag+",", ","+name+",") {
			continue
		}
		cache.Mutate(name)
		start := time.Now()
		by, n, err := hunt(*huntFlag)
		took := time.Since(start).Round(10 * time.Millisecond)
		if err == nil {
			t.Errorf("SURVIVED %-24s %s (%d attempts, %v)", name, what[i], n, took)
			continue
		}
		line, _, _ := strings.Cut(err.Error(), "\n")
		t.Logf("caught   %-24s by %s, attempt %d, %v: %s\n             %s",
			name, by, n, took, what[i], line)
	}
}

// hunt plays histories and then sweeps until one fails.
func hunt(histories uint64) (by string, n int64, err error) {
	var mu sync.Mutex
	var next, played atomic.Int64
	var wg sync.WaitGroup
	var caught atomic.Bool
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !caught.Load() {
				i := next.Add(1)
				name, e, more := attempt(uint64(i), histories, &caught, &played)
				if e != nil && !caught.Swap(true) {
					mu.Lock()
					by, err = name, e
					mu.Unlock()
				}
				if !more {
					return
				}
			}
		})
	}
	wg.Wait()
	return by, played.Load(), err
}

// attempt plays each scenario by itself, then history i, and beyond them a scenario's sweep.
func attempt(i, histories uint64, stop *atomic.Bool, played *atomic.Int64) (string, error, bool) {
	if i <= uint64(len(Catalogue)) {
		sc := &Catalogue[i-1]
		for j := range max(sc.Alone, 4) {
			w := &sweep{sc: sc, checksums: j%2 == 0, what: j / 2 % 2 * int(CrashKill), at: beyond + j}
			_, _, err := w.play(nil)
			played.Add(1)
			if err != nil {
				return "-sweep " + w.String(), err, true
			}
		}
		return "", nil, true
	}
	i -= uint64(len(Catalogue))
	if i <= histories {
		h := history{cfg: NewConfig(i)}
		_, err := h.play(nil)
		played.Add(1)
		return fmt.Sprintf("-seed %d", i), err, true
	}
	i -= histories + 1
	if i >= uint64(len(Catalogue)) {
		return "", nil, false
	}
	sc := &Catalogue[i]
	if sc.Alone > 0 {
		return "", nil, true
	}
	for what := range numSweeps {
		for at := 1; !stop.Load(); at++ {
			w := &sweep{sc: sc, checksums: true, what: what, at: at}
			reached, _, err := w.play(nil)
			played.Add(1)
			if err != nil {
				return "-sweep " + w.String(), err, true
			}
			if !reached {
				break
			}
		}
	}
	return "", nil, true
}

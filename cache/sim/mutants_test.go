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
	huntFlag   = flag.Uint64("hunt", 10500, "histories that are played to catch a mutant, before the sweeps; make test plays as many of the engine as it is, and of each kind what kinds.go says")
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
	all := cache.Mutants()
	if len(all) < 15 {
		t.Errorf("only %d mutants", len(all))
	}
	for _, m := range all {
		if *onlyFlag != "" && !strings.Contains(","+*onlyFlag+",", ","+m.Name+",") {
			continue
		}
		cache.Mutate(m.Name)
		start := time.Now()
		h := hunt{in: m.In, histories: *huntFlag}
		h.run()
		took := time.Since(start).Round(10 * time.Millisecond)
		if h.err == nil {
			t.Errorf("SURVIVED %-24s %s (%d attempts, %v)", m.Name, m.What, h.played.Load(), took)
			continue
		}
		line, _, _ := strings.Cut(h.err.Error(), "\n")
		t.Logf("caught   %-24s by %s, attempt %d, %v: %s\n             %s",
			m.Name, h.by, h.played.Load(), took, m.What, line)
	}
}

// hunt looks for something that a mutant fails: histories of the kind in which it shows, if there is one;
// else each scenario by itself, histories of all kinds, and sweeps.
type hunt struct {
	in        string
	histories uint64
	next      atomic.Uint64
	played    atomic.Int64
	caught    atomic.Bool
	by        string
	err       error
}

// run hunts on all CPUs.
func (h *hunt) run() {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for more := true; more && !h.caught.Load(); {
				var by string
				var err error
				by, err, more = h.attempt(h.next.Add(1))
				if err != nil && !h.caught.Swap(true) {
					mu.Lock()
					h.by, h.err = by, err
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
}

// attempt makes attempt i and reports whether there are more.
func (h *hunt) attempt(i uint64) (string, error, bool) {
	if h.in != "" {
		k := kindOf(h.in)
		if i > min(h.histories, k.played) {
			return "", nil, false
		}
		by, err := h.play(k.draw(i))
		return by, err, true
	}
	if i <= uint64(len(Catalogue)) {
		by, err := h.alone(&Catalogue[i-1])
		return by, err, true
	}
	i -= uint64(len(Catalogue))
	if i <= h.histories {
		by, err := h.play(NewConfig(i))
		return by, err, true
	}
	i -= h.histories + 1
	if i >= uint64(len(Catalogue)) {
		return "", nil, false
	}
	by, err := h.sweep(&Catalogue[i])
	return by, err, true
}

// kindOf is the kind of that name.
func kindOf(name string) *kind {
	for i := range kinds {
		if kinds[i].name == name {
			return &kinds[i]
		}
	}
	panic("no histories of that kind: " + name)
}

func (h *hunt) play(c Config) (string, error) {
	h.played.Add(1)
	one := history{cfg: c}
	_, err := one.play(nil)
	_, how, _ := strings.Cut(one.command(), " -run ")
	return "-run " + how, err
}

// alone plays a scenario by itself.
func (h *hunt) alone(sc *Scenario) (string, error) {
	for j := range max(sc.Alone, 4) {
		w := &sweep{sc: sc, checksums: j%2 == 0, what: j / 2 % 2 * int(CrashKill), at: beyond + j}
		_, _, err := w.play(nil)
		h.played.Add(1)
		if err != nil {
			return "-sweep " + w.String(), err
		}
	}
	return "", nil
}

// sweep plays the sweeps of a scenario.
func (h *hunt) sweep(sc *Scenario) (string, error) {
	for what := 0; what < numSweeps && sc.Alone == 0; what++ {
		for at := 1; !h.caught.Load(); at++ {
			w := &sweep{sc: sc, checksums: true, what: what, at: at}
			if w.skips() {
				break
			}
			reached, _, err := w.play(nil)
			h.played.Add(1)
			if err != nil {
				return "-sweep " + w.String(), err
			}
			if !reached {
				break
			}
		}
	}
	return "", nil
}

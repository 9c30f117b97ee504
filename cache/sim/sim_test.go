package sim

import (
	"flag"
	"os"
	"testing"

	"ubcache/internal/faulttable"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "replay the history of this seed, with a trace")
	seedsFlag = flag.Uint64("seeds", 320/fewer, "play this many histories")
	fromFlag  = flag.Uint64("from", 1, "the first seed")
	timeFlag  = flag.Duration("for", 0, "go on for so long instead")
	partFlag  = flag.Int("part", 1, "of that time, TestVanishing takes one in so many parts")
	setFlag   = flag.String("set", "", "with -seed: fields of the configuration, name=value,…")
	keepFlag  = flag.String("keep", "", "with -seed: play only these steps, such as 3-7,12")
)

// TestHistories plays random histories. A failing one is shrunk, and printed as a command that
// replays it with a trace.
func TestHistories(t *testing.T) {
	if *seedFlag != 0 {
		h, err := newHistory(*seedFlag, *setFlag, *keepFlag)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("config: %+v", h.cfg)
		if _, err := h.play(t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	r, err := playMany(NewConfig, *fromFlag, *seedsFlag, *timeFlag, t.Logf)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%v", &r)
	if *seedsFlag >= 100 && !t.Failed() {
		for _, problem := range r.missing() {
			t.Error(problem)
		}
	}
	noteFaults(t, &r)
}

// noteFaults adds rows to the table of faults, if there is one. A history ends at the first thing that is wrong, which has
// failed the test.
func noteFaults(t *testing.T, r *Result) {
	t.Helper()
	file := os.Getenv(faulttable.EnvFile)
	if file == "" {
		return
	}
	note := func(fault string, times int64) {
		row := faulttable.Row{Fault: fault, Place: faulttable.PlaceSimulator, Times: times, Failed: t.Failed()}
		if err := faulttable.Append(file, row); err != nil {
			t.Error(err)
		}
	}
	for i, n := range r.Cuts {
		note("crash: "+Crash(i).String(), int64(n))
	}
	for i, n := range r.Faults {
		note("fault: "+Fault(i).String(), int64(n))
	}
	note("SSD away", int64(r.Vanished))
	note("backing device away", int64(r.Gone))
	note("dirty data salvaged after a crash", int64(r.Salvaged))
}

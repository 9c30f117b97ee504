package sim

import (
	"errors"
	"fmt"
	"strings"

	"ubcache/cache"
)

// sweep plays a scenario again and again, and lets operation 1, 2, 3 … of either device fail, or
// crashes there, or a device goes away then, until it runs through.
type sweep struct {
	sc        *Scenario
	checksums bool
	what      int // one of the attempts, below
	at        int
}

// What happens at an operation: a crash of some kind, or one of these.
const (
	sweepError       = int(numCrashes) + iota // the operation fails
	sweepLost                                 // a write of data to the SSD is lost
	sweepMisdirected                          // or goes elsewhere
	sweepSecondCrash                          // after a kill at the end, the start crashes at its write at
	sweepSecondPower                          // likewise after a power cut
	sweepStart                                // after a kill, operation at of the start fails
	sweepVanish                               // the SSD vanishes at the operation, and comes back; see vanish.go
	sweepStall                                // it stalls from then on, for some time
	sweepFull                                 // it has no space from then on, for some time
	sweepGone                                 // a backing device goes away, and has forgotten something when it is back
	numSweeps
)

var sweepNames = [numSweeps]string{
	"power", "ssdpower", "backingpower", "kill", "killbacking",
	"error", "lost", "misdirected", "crashedstart", "cutstart", "failedstart",
	"vanish", "stall", "full", "gone",
}

// String is how -sweep names the attempt.
func (w *sweep) String() string {
	sums := ""
	if !w.checksums {
		sums = "-nosums"
	}
	return fmt.Sprintf("%s/%s%s/%d", strings.ReplaceAll(w.sc.Name, " ", "_"), sweepNames[w.what], sums, w.at)
}

// parseSweep reads what String writes.
func parseSweep(text string) (*sweep, error) {
	f := strings.Split(text, "/")
	w := &sweep{}
	if len(f) == 3 {
		what, nosums := strings.CutSuffix(f[1], "-nosums")
		w.checksums = !nosums
		for i := range Catalogue {
			if strings.ReplaceAll(Catalogue[i].Name, " ", "_") == f[0] {
				w.sc = &Catalogue[i]
			}
		}
		for i, n := range sweepNames {
			if n == what {
				w.what = i
			}
		}
		_, err := fmt.Sscan(f[2], &w.at)
		if w.sc != nil && err == nil && sweepNames[w.what] == what {
			return w, nil
		}
	}
	return nil, fmt.Errorf("%q is not scenario/attempt/operation", text)
}

// play plays the scenario with its fault and the final checks, and reports whether the fault came.
func (w *sweep) play(trace func(string, ...any)) (reached bool, r Result, err error) {
	s, err := w.sc.sim(w.checksums, w.configure)
	if err != nil {
		return false, r, err
	}
	s.Trace = trace
	defer s.Close()
	defer s.catch(&err)
	s.pcg.Seed(uint64(w.at), uint64(w.what))
	if err := w.prepare(s); err != nil {
		return false, r, err
	}
	if w.what < int(numCrashes) {
		s.crashAt, s.crashHow = w.at, Crash(w.what)
	} else {
		s.strike = func(f *flyingOp) (Fault, bool) {
			if s.count != w.at {
				return 0, false
			}
			kind, ok := w.fault(s, f.op)
			return kind, ok
		}
	}
	if err := w.sc.play(s); errors.Is(err, errOver) || s.van.over {
		s.c.Abandon()
		return true, s.res, s.err
	} else if err != nil {
		return true, s.res, errors.Join(s.err, err)
	}
	reached = s.count >= w.at
	if w.what >= sweepSecondCrash && w.what <= sweepStart {
		if reached, err = w.start(s); err != nil {
			return true, s.res, err
		}
	}
	s.strike, s.crashAt, s.trouble.at = nil, 0, 0
	if s.err == nil {
		s.err = s.end()
	}
	return reached, s.res, s.err
}

// fault is what happens to the operation.
func (w *sweep) fault(s *Sim, op *cache.Op) (Fault, bool) {
	ssd := op.Dev == cache.SSD
	data := ssd && op.Kind == cache.OpWrite && !s.isMeta(op)
	switch {
	case w.what == sweepLost:
		return FaultLost, data && w.checksums
	case w.what == sweepMisdirected:
		return FaultMisdirected, data && w.checksums
	case w.what != sweepError, ssd && s.cfg.Ordered && !data: // see NewOrderedConfig
		return 0, false
	}
	kinds := [...]Fault{FaultBackingRead, FaultBackingWrite, FaultBackingFlush}
	if ssd {
		kinds = [...]Fault{FaultSSDRead, FaultSSDWrite, FaultSSDFlush}
	}
	switch op.Kind {
	case cache.OpRead:
		return kinds[0], true
	case cache.OpFlush:
		return kinds[2], true
	}
	return kinds[1], true
}

// start ends the scenario with a crash whose restart crashes or fails at its operation.
func (w *sweep) start(s *Sim) (reached bool, err error) {
	how := CrashKill
	if w.what == sweepSecondPower {
		how = CrashPower
	}
	s.countStats()
	s.die(how)
	s.c.Abandon()
	s.lanes = nil
	n := 0
	s.brokenStart(w.what == sweepStart, func(kind cache.OpKind) bool {
		if w.what != sweepStart && kind == cache.OpRead {
			return false
		}
		n++
		broken := n == w.at || w.what != sweepStart && n > w.at
		reached = reached || broken
		return broken
	})
	if w.what != sweepStart {
		s.die(how)
	}
	s.restartAfter(how)
	return reached, s.err
}

// sweep makes the attempts of a scenario, with and without data checksums, at each n-th operation.
func (sc *Scenario) sweep(every int) (total Result, err error) {
	if sc.Alone > 0 {
		return sc.alone()
	}
	from := 1 + len(sc.Script)%every // not the same everywhere
	for _, sums := range []bool{true, false} {
		for what := range numSweeps {
			for at := from; ; at += every {
				w := &sweep{sc: sc, checksums: sums, what: what, at: at}
				if w.skips() {
					break
				}
				reached, err := w.count(&total)
				if err != nil {
					return total, err
				}
				if !reached {
					break
				}
			}
		}
	}
	return total, nil
}

// count plays the attempt, adds it to the counts, and says how to play it again if it fails.
func (w *sweep) count(total *Result) (reached bool, err error) {
	reached, r, err := w.play(nil)
	total.add(&r)
	if err != nil {
		err = fmt.Errorf("%v: %w\n\nreplay it with\n\n    %s -run Sweeps -v -sweep %v", w, err, goTest, w)
	}
	return reached, err
}

// beyond is an operation that no scenario reaches.
const beyond = 1_000_000

// alone plays the scenario as it is, with different seeds.
func (sc *Scenario) alone() (total Result, err error) {
	for i := range sc.Alone {
		w := &sweep{sc: sc, checksums: i%2 == 0, what: i / 2 % 2 * int(CrashKill), at: beyond + i}
		if _, err := w.count(&total); err != nil {
			return total, err
		}
	}
	return total, nil
}

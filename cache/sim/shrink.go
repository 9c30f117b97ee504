package sim

import (
	"strings"
	"time"
)

// shrinkFor is how long a failing history is shrunk.
const shrinkFor = 90 * time.Second

// shrink makes a failing history smaller as long as it fails: it leaves out steps, in pieces that get
// smaller and smaller, and simplifies the configuration. It returns the smallest and its error.
func (h history) shrink(long time.Duration) (history, error) {
	s := shrinker{best: h, until: time.Now().Add(long)}
	if s.best.keep == nil {
		s.best.keep = make([]bool, h.cfg.Steps)
		for i := range s.best.keep {
			s.best.keep[i] = true
		}
	}
	if _, s.err = s.best.play(nil); s.err == nil {
		// It fails no more: not a function of the seed, then, which is a bug in itself.
		_, err := h.play(nil)
		return h, err
	}
	for again := true; again && !s.late(); {
		again = s.simplify()
		again = s.steps() || again
	}
	return s.best, s.err
}

type shrinker struct {
	best  history
	err   error
	until time.Time
}

func (s *shrinker) late() bool { return time.Now().After(s.until) }

// try keeps a smaller history if it fails.
func (s *shrinker) try(h history) bool {
	_, err := h.play(nil)
	if err == nil || unfair(err) {
		return false
	}
	s.best, s.err = h, err
	return true
}

// unfair reports an error that comes of the configuration and not of the engine.
func unfair(err error) bool { return strings.Contains(err.Error(), "device too small") }

// simplify tries simpler configurations.
func (s *shrinker) simplify() (better bool) {
	for _, f := range []func(*Config){
		func(c *Config) { c.Attributes, c.Pinning = false, false },
		func(c *Config) { c.Devices = 1 },
		func(c *Config) { c.Lanes = 1 },
		func(c *Config) { c.Large = false },
		func(c *Config) { c.ModeChanges = false },
		func(c *Config) { c.Trim, c.BigBuckets = false, false },
		func(c *Config) { c.ZeroCopy = false },
		func(c *Config) { c.Faults, c.FaultRate = 0, 0 },
		func(c *Config) { c.Gone = 0 },
		func(c *Config) { c.Vanish = 0 },
		func(c *Config) { c.StallReads = 0 },
		func(c *Config) { c.Swaps = false },
		func(c *Config) { c.Scrubs = false },
		func(c *Config) { c.Ordered = false },
		func(c *Config) { c.DeviceBytes = 1 << 20 },
		func(c *Config) { c.Depth = 1 },
		func(c *Config) { c.Depth = min(c.Depth, 3) },
	} {
		h := s.best
		f(&h.cfg)
		if h.cfg != s.best.cfg && !s.late() && s.try(h) {
			better = true
		}
	}
	for f := range numFaults {
		h := s.best
		h.cfg.Faults &^= 1 << f
		if h.cfg != s.best.cfg && !s.late() && s.try(h) {
			better = true
		}
	}
	return better
}

// steps leaves steps out: the end, then pieces.
func (s *shrinker) steps() (better bool) {
	kept := kept(s.best.keep)
	for n := len(kept) / 2; n > 0; n /= 2 {
		for from := len(kept) - n; from >= 0 && !s.late(); from -= n {
			h := s.best
			h.keep = append([]bool(nil), h.keep...)
			for _, i := range kept[from : from+n] {
				h.keep[i] = false
			}
			if s.try(h) {
				better = true
				kept = append(kept[:from:from], kept[from+n:]...)
			}
		}
	}
	return better
}

// kept lists the steps of a set.
func kept(keep []bool) (all []int) {
	for i, k := range keep {
		if k {
			all = append(all, i)
		}
	}
	return all
}

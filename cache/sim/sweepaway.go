package sim

import (
	"math/rand/v2"
	"syscall"
	"time"

	"ubcache/cache"
)

// trouble is what a sweep does to a device at an operation, and when that ends.
type trouble struct {
	at   int          // the operation
	do   func(s *Sim) // nil in other histories
	back int          // steps until an SSD that is away comes back, or has space again
}

// How long an SSD of a sweep takes until it counts as slow, and as lost: longer than a slow index does.
const (
	sweepStallLimit = time.Second
	sweepLossLimit  = 2 * time.Second
)

// configure makes the configuration one in which that can happen.
func (w *sweep) configure(c *Config) {
	switch w.what {
	case sweepStall: // and then it is taken back in place
		c.Vanish, c.StallLimit, c.LossLimit = 1, sweepStallLimit, sweepLossLimit
	case sweepGone:
		c.Gone = 1
	}
}

// prepare sets what happens at the operation, and what the engine does about it.
func (w *sweep) prepare(s *Sim) error {
	s.trouble.at, s.trouble.do = w.at, map[int]func(*Sim){
		sweepVanish: (*Sim).sweepVanish, sweepStall: (*Sim).sweepStall, sweepFull: (*Sim).sweepFull,
		sweepGone: (*Sim).sweepGone,
	}[w.what]
	if s.cfg.Ordered {
		s.orders.rng = rand.New(rand.NewPCG(uint64(w.at), uint64(w.what)))
	}
	if w.what != sweepVanish && w.what != sweepStall {
		return nil
	}
	for i, id := range s.ids {
		t := s.tunables(i)
		t.Loss = cache.LossPolicy{Kind: cache.LossKind(s.rng.IntN(3)), Hold: time.Duration(s.rng.IntN(3)) * 200 * time.Millisecond}
		if err := s.c.SetTunables(id, t); err != nil {
			return err
		}
	}
	return nil
}

// skips reports whether the attempt is none for the scenario: without checksums nothing finds silent faults, and a fault
// of an SSD that stays may cost what the order of an ordered device needs.
func (w *sweep) skips() bool {
	c := Config{}
	if w.sc.Config != nil {
		w.sc.Config(&c)
	}
	switch w.what {
	case sweepLost, sweepMisdirected:
		return !w.checksums || c.Ordered
	case sweepStart:
		return c.Ordered
	}
	return false
}

// sweepVanish makes the SSD vanish; it comes back soon, or late.
func (s *Sim) sweepVanish() {
	err := syscall.EIO
	if s.rng.IntN(2) == 0 {
		err = syscall.ENODEV
	}
	s.vanish(err)
	s.trouble.back = s.rng.IntN(60)
	if s.rng.IntN(3) == 0 {
		s.trouble.back = 400
	}
}

// sweepStall makes the SSD stall, for so long that nobody notices, that it is slow, or lost.
func (s *Sim) sweepStall() {
	s.ssd.stalled = s.now + int64(s.rng.IntN(int(2*sweepLossLimit)))
	s.trouble.back = 100
	s.res.Stalls++
	s.trace("the SSD stalls until %d", s.ssd.stalled)
}

// sweepFull makes the SSD have no space for some time.
func (s *Sim) sweepFull() {
	s.ssd.full = true
	s.trouble.back = 20 + s.rng.IntN(100)
	s.happened(FaultSSDFull)
	s.trace("%v: on", FaultSSDFull)
}

// sweepGone takes a backing device away; mostly it loses what it was not flushed for.
func (s *Sim) sweepGone() {
	i := s.rng.IntN(len(s.backs))
	s.leave(i, goneErrors[s.rng.IntN(len(goneErrors))], s.rng.IntN(4) > 0)
}

// strikeAt does what happens to a device at the operation.
func (s *Sim) strikeAt() {
	if s.trouble.do != nil && s.count == s.trouble.at {
		s.trouble.do(s)
	}
}

// passAway lets the time pass until the SSD is back, and reports whether it has come back.
func (s *Sim) passAway() bool {
	lost := s.lostSSD()
	if !lost && !s.ssd.full || s.van.over || s.trouble.do == nil {
		return false
	}
	if s.trouble.back--; s.trouble.back >= 0 {
		return false
	}
	s.ssd.full = false
	if !lost {
		return false
	}
	s.comeBack()
	return true
}

// lostSSD reports whether the SSD of a sweep needs somebody to bring it back.
func (s *Sim) lostSSD() bool {
	return s.van.gone != nil || s.cfg.Vanish > 0 && s.van.health == cache.HealthLost && s.ssd.stalled <= s.now
}

// control waits for an SSD that a command needs.
func (s *Sim) control(step string) error {
	if s.trouble.do == nil {
		return nil
	}
	s.trouble.back = 0
	return s.idle(step, s.well)
}

// presentAgain waits until the backing devices answer, and says of those that were not given back that they may have
// lost something.
func (s *Sim) presentAgain(step string) error {
	if s.cfg.Gone == 0 {
		return nil
	}
	if err := s.idle(step, func() bool {
		for _, d := range s.backs {
			if d.gone != nil {
				return false
			}
		}
		return true
	}); err != nil {
		return err
	}
	s.loseAbsent()
	return nil
}

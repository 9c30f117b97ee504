package sim

import (
	"fmt"

	"ubcache/cache"
)

// scrubbing is a scrub under way: of device dev of the cache c, which a crash ends.
type scrubbing struct {
	c      *cache.Cache
	dev    int
	report func() (rep cache.ScrubReport, ended bool)
}

// scrub begins a scrub now and then, and looks at what it has found. What it does to blocks reads find out: nothing may be bad
// that no fault explains.
func (s *Sim) scrub() {
	if !s.cfg.Scrubs || s.err != nil {
		return
	}
	k := &s.scrubs
	if k.c != s.c {
		k.c, k.report = s.c, nil
	}
	if k.report == nil {
		if s.rng.IntN(30) == 0 && s.well() && !s.ending {
			s.startScrub()
		}
		return
	}
	rep, ended := k.report()
	if len(rep.Differs) > 0 {
		s.fail(fmt.Errorf("scrub of device %d: clean copies are not what the backing device has: %v", s.ids[k.dev], rep.Differs))
	}
	if !ended {
		return
	}
	s.trace("scrub of device %d: complete %v, %d blocks, %d compared, %d healed", s.ids[k.dev], rep.Complete, rep.Checked,
		rep.Compared, rep.Healed)
	s.res.Scrubs++
	s.res.Scrubbed += rep.Checked
	k.report = nil
}

func (s *Sim) startScrub() {
	k := &s.scrubs
	k.dev = s.rng.IntN(len(s.ids))
	o := cache.ScrubOptions{NoBacking: s.rng.IntN(4) == 0}
	if s.rng.IntN(4) == 0 {
		o.Rate = 1 << 20
	}
	report, err := s.bg().l.StartScrub(s.ids[k.dev], o)
	if err != nil {
		s.trace("no scrub: %v", err)
		return
	}
	s.trace("a scrub of device %d begins", s.ids[k.dev])
	k.report = report
}

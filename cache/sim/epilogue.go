package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"ubcache/cache"
)

// end plays the epilogue, which may turn out to be the operator's.
func (s *Sim) end() error {
	err := s.epilogue()
	if errors.Is(err, errOver) {
		s.c.Abandon()
		return s.err
	}
	return err
}

// epilogue ends all faults but lets their damage be; it reads everything back, stops in order,
// checks the format, starts again warm, overwrites what was lost, writes everything back and
// compares the backing devices.
func (s *Sim) epilogue() error {
	s.armed, s.strike, s.ending = nil, nil, true
	// From the next start on nothing is given up for the time it takes: time passes here as it likes.
	s.cfg.StallLimit, s.cfg.LossLimit = -1, -1
	for _, d := range append(s.backs, s.ssd) {
		d.full, d.dead, d.gone = false, false, nil
	}
	for _, d := range s.backs {
		d.unmark(markUnreadable)
	}
	if err := s.idle("the last request", func() bool { return len(s.reqs) == 0 && s.allPresent() && s.allAttached() }); err != nil {
		return err
	}
	if err := s.readAll(); err != nil {
		return err
	}
	if err := s.restart(s.rng.IntN(2) == 0); err != nil {
		return err
	}
	s.checkWishes("after an orderly stop")
	if s.err != nil {
		return s.err
	}
	if err := s.readAll(); err != nil {
		return err
	}
	if err := s.replaceLost(); err != nil {
		return err
	}
	return s.compareBackings()
}

// readAll reads every device through the cache.
func (s *Sim) readAll() error {
	for dev, m := range s.models {
		for first := 0; first < len(m.sectors); {
			if s.err != nil {
				return s.err
			}
			n := min(1+s.rng.IntN(512), len(m.sectors)-first)
			unit := s.cfg.LBS / sectorSize
			n = max(unit, n/unit*unit)
			if _, err := s.request(dev, cache.ReqRead, first, n); err != nil {
				return err
			}
			first += n
		}
	}
	return s.err
}

// restart stops in order, checks the SSD and starts again. With wait it lets the index be loaded before
// anything else, and compares what is cached with what was.
func (s *Sim) restart(wait bool) error {
	cached, err := s.stop()
	if err != nil {
		return err
	}
	// What the SSD has lost is bad; that has been met by now if everything was read, and not while it was lost once more.
	unmet := s.van.lost && (s.cfg.Ordered || !s.ending || s.res.FailedLost > 0)
	rep, err := cache.Check(context.Background(), s.ssd, cache.CheckOptions{Data: s.res.FailedBad == 0 && !unmet})
	if err != nil {
		return err
	}
	for _, p := range rep.Problems {
		if !s.damaged(p) {
			return fmt.Errorf("check after an orderly stop: %s", p)
		}
	}
	if !rep.Super.Clean {
		return fmt.Errorf("the cache is not marked clean after an orderly stop")
	}
	if err := s.checkCopies(); err != nil {
		return err
	}
	if err := s.open(); err != nil || !wait {
		return err
	}
	if err := s.load(); err != nil {
		return err
	}
	if p := s.c.Verify(); len(p) > 0 {
		return fmt.Errorf("loaded: %s", p[0])
	}
	if now := s.c.Status().CachedBytes; now != cached {
		return fmt.Errorf("%d bytes were cached before an orderly stop, %d after", cached, now)
	}
	return nil
}

// load lets the index be loaded.
func (s *Sim) load() error {
	defer func(slow bool) { s.slow = slow }(s.slow)
	s.slow = false
	return s.idle("loading the index", func() bool { return s.c.Loading().Percent == 100 })
}

// restartInOrder is a restart in the middle of a history. It ends faults that would not let the cache
// stop.
func (s *Sim) restartInOrder() {
	if s.away() {
		return
	}
	s.armed = nil
	for _, d := range append(s.backs, s.ssd) {
		d.full, d.dead = false, false
	}
	s.ending = true
	defer func() { s.ending = false }()
	err := s.idle("the last request before a stop", func() bool {
		return len(s.reqs) == 0 && !slices.ContainsFunc(s.backs, func(d *Disk) bool { return d.gone != nil })
	})
	if err == nil {
		s.loseAbsent()
		_, err = s.stop()
	}
	if err == nil {
		if s.cfg.Faults.has(FaultMetadata) && s.rng.IntN(2) == 0 {
			s.damagePage(s.damageSummary()) // the other copy has it
		}
		err = s.open()
		s.res.Restarts++
		s.trace("restart in order")
	}
	if err != nil && !errors.Is(err, errOver) {
		s.fail(err)
	}
}

// stop stops in order.
func (s *Sim) stop() (cached int64, err error) {
	for crashes := -1; crashes != s.res.Crashes; { // it may crash meanwhile
		crashes = s.res.Crashes
		s.c.StartSettle()
		if err := s.idle("settling", func() bool {
			return len(s.ops) == 0 && s.bg().l.Settled() && s.van.health == cache.HealthOK || crashes != s.res.Crashes
		}); err != nil {
			return 0, err
		}
	}
	if p := s.c.Verify(); len(p) > 0 {
		return 0, fmt.Errorf("at the end: %s", p[0])
	}
	cached = s.c.Status().CachedBytes
	s.warmStops()
	s.countStats()
	for _, l := range s.lanes {
		l.l.Close()
	}
	if err := s.c.Close(); err != nil {
		return 0, err
	}
	s.lanes = nil
	clear(s.ring[:pageBytes])
	return cached, nil
}

// checkCopies reports metadata of which, after an orderly stop, there is but one copy.
func (s *Sim) checkCopies() error {
	const bad = markUnreadable | markWrong
	a, b := s.ssd.now[superA:][:pageBytes], s.ssd.now[superB:][:pageBytes]
	if !bytes.Equal(a[superIn:], b[superIn:]) && !s.ssd.marked(superA, pageBytes, bad) &&
		!s.ssd.marked(superB, pageBytes, bad) {
		return errors.New("the superblocks differ after an orderly stop")
	}
	n := s.geo.SummaryOff[1] - s.geo.SummaryOff[0]
	for at := int64(0); at < n; at += pageBytes {
		if !s.alike(at) {
			return fmt.Errorf("the copies of summary page %d differ after an orderly stop", at/pageBytes)
		}
	}
	return nil
}

// alike reports whether both copies of a summary page say the same, as far as faults have left them.
// They may be of two epochs: a crash came between the two, and before it nothing had changed.
func (s *Sim) alike(at int64) bool {
	const bad = markUnreadable | markWrong
	offs := [2]int64{s.geo.SummaryOff[0] + at, s.geo.SummaryOff[1] + at}
	a, b := s.ssd.now[offs[0]:][:pageBytes], s.ssd.now[offs[1]:][:pageBytes]
	return s.ssd.marked(offs[0], pageBytes, bad) || s.ssd.marked(offs[1], pageBytes, bad) ||
		bytes.Equal(a[:smEpoch], b[:smEpoch]) && bytes.Equal(a[ownSum+8:], b[ownSum+8:])
}

// damaged reports whether a problem that a check found is what faults have done to data, or to a copy
// of metadata.
func (s *Sim) damaged(p cache.Problem) bool {
	const bad = markUnreadable | markWrong
	n := s.geo.DataOff
	switch p.Kind {
	case cache.ProblemClean, cache.ProblemDirty, cache.ProblemRead:
		return s.ssd.marked(n, s.ssd.size-n, bad)
	case cache.ProblemSuper, cache.ProblemSummaryCopy:
		return s.ssd.marked(0, n, bad)
	}
	return false
}

// replaceLost overwrites or discards the blocks that the SSD has lost. Then no read fails any more.
func (s *Sim) replaceLost() error {
	for dev, m := range s.models {
		b := s.backs[dev]
		for first := 0; first < len(m.sectors); first += blockSectors {
			n := min(blockSectors, len(m.sectors)-first)
			p, ok := s.c.Locate(s.ids[dev], int64(first)*sectorSize)
			if !ok || !p.Bad {
				continue
			}
			s.res.Lost++
			if s.res.Crashes == 0 && !s.backingFaults() && s.has(b, m, first, n, p.Sectors) {
				return fmt.Errorf("block %d of device %d is called lost, but the backing device has it",
					first/blockSectors, dev)
			}
			op := cache.ReqWrite
			if s.rng.IntN(2) == 0 && s.cfg.Discards {
				op = cache.ReqDiscard
			}
			r, err := s.request(dev, op, first, n)
			if err != nil {
				return err
			}
			if r.Err != nil {
				return fmt.Errorf("%s of block %d of device %d, which was lost: %w",
					op, first/blockSectors, dev, r.Err)
			}
			r, err = s.request(dev, cache.ReqRead, first, n)
			if err != nil {
				return err
			}
			if r.Err != nil {
				return fmt.Errorf("read of block %d of device %d, which was lost and replaced: %w",
					first/blockSectors, dev, r.Err)
			}
		}
	}
	return s.err
}

// backingFaults reports whether a backing device has failed an operation.
func (s *Sim) backingFaults() bool {
	if s.res.Gone != 0 {
		return true
	}
	for _, f := range []Fault{
		FaultBackingRead, FaultBackingWrite, FaultBackingFlush, FaultBackingFull, FaultBackingSector,
		FaultBackingDead,
	} {
		if s.res.Faults[f] != 0 {
			return true
		}
	}
	return false
}

// has reports whether the backing device has the only legal content of the sectors of a block.
func (s *Sim) has(b *Disk, m *model, first, n int, sectors uint8) bool {
	for i := range n {
		legal := m.sectors[first+i].legal
		if sectors>>i&1 != 0 && (len(legal) > 1 || legal[0].stamp == 0 ||
			!matches(b.now[(first+i)*sectorSize:], first+i, legal[0].stamp)) {
			return false
		}
	}
	return true
}

// compareBackings writes everything back and compares what the backing devices hold.
func (s *Sim) compareBackings() error {
	for _, id := range s.ids {
		if err := s.c.SetDrain(id, true); err != nil {
			return err
		}
	}
	crashes := s.res.Crashes
	err := s.idle("the drain", func() bool {
		for _, id := range s.ids {
			if crashes != s.res.Crashes && s.c.SetDrain(id, true) != nil {
				return false // it was started again, and nobody remembers that
			}
			if b, err := s.c.Backing(id); err != nil || b.Remaining() > 0 {
				return false
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	for dev, m := range s.models {
		for i := range m.sectors {
			if s.van.bad[dev][i/blockSectors] {
				continue // it may not have been written back
			}
			p := s.backs[dev].now[i*sectorSize:]
			legal := m.sectors[i].legal
			if slices.ContainsFunc(legal, func(v version) bool { return matches(p, i, v.stamp) }) {
				continue
			}
			// What the drain has found to be lost stays as it was.
			if pl, ok := s.c.Locate(s.ids[dev], int64(i)*sectorSize); ok && pl.Bad &&
				s.ssd.marked(pl.Off, cache.BlockSize, markUnreadable|markWrong|markDoubted) {
				continue
			}
			return fmt.Errorf("device %d, written back: sector %d is not one of %v on the backing device",
				dev, i, legal)
		}
	}
	s.countStats()
	s.c.Abandon()
	return nil
}

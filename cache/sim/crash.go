package sim

import (
	"context"
	"fmt"
	"slices"

	"ubcache/cache"
)

// crash ends the process, or the power, and starts again; sometimes it crashes while starting.
func (s *Sim) crash() {
	if s.ssd.gone != nil {
		s.comeBack() // it cannot start without
		return
	}
	power := s.rng.IntN(2) == 0
	s.countStats()
	s.die(power)
	s.c.Abandon()
	s.lanes = nil
	for s.rng.IntN(4) == 0 {
		// The start gets this far and no further.
		w := &limited{Disk: s.ssd, left: s.rng.IntN(6)}
		c, err := cache.Open(w, cache.Options{Pending: s.ring})
		if err == nil {
			c.Abandon()
		}
		power = s.rng.IntN(2) == 0
		s.trace("crash while starting, power=%v", power)
		s.die(power)
	}
	if err := s.open(); err != nil {
		s.fail(fmt.Errorf("open after a crash (power cut %v): %w", power, err))
		return
	}
	if p := s.c.Verify(); len(p) > 0 {
		s.fail(fmt.Errorf("after a crash: %s", p[0]))
	}
	s.checkWishes("after a crash")
	s.reissue()
}

// limited is a device that fails after some writes, as if the process had ended there.
type limited struct {
	*Disk
	left int
}

func (w *limited) WriteAt(p []byte, off int64) (int, error) {
	if w.left--; w.left < 0 {
		return 0, errCrash
	}
	return w.Disk.WriteAt(p, off)
}

func (w *limited) Sync() error {
	if w.left < 0 {
		return errCrash
	}
	return w.Disk.Sync()
}

// die decides what of the operations in flight happened, and what of the requests.
func (s *Sim) die(power bool) {
	flying := map[*Disk][]diskWrite{}
	for _, f := range s.ops {
		switch f.op.Kind {
		case cache.OpWrite, cache.OpDiscard, cache.OpZero:
			data := make([]byte, f.op.Len)
			if f.op.Kind == cache.OpWrite {
				copy(data, s.mem(f.op))
			}
			d := s.disk(f.op.Dev)
			flying[d] = append(flying[d], diskWrite{off: f.op.Off, data: data})
		}
	}
	s.ops = nil
	disks := append([]*Disk{s.ssd}, s.backs...)
	if power {
		s.trace("power cut")
		s.res.PowerCuts++
		for _, d := range disks {
			d.powerCut(s.rng, flying[d])
		}
		clear(s.ring)
		s.dropRequests()
		s.wishes.powerCut()
		for _, m := range s.models {
			m.powerCut()
		}
		return
	}
	s.trace("kill")
	s.res.Kills++
	for _, d := range disks {
		for _, w := range flying[d] {
			if s.rng.IntN(2) == 0 {
				d.write(w.data, w.off)
			}
		}
	}
}

func (s *Sim) dropRequests() {
	for _, r := range s.sorted() {
		s.wishes.gone(r)
		if r.written {
			s.models[r.dev].writeDead(r.first, r.n, r.v)
		}
		if r.read != nil {
			s.models[r.dev].forget(r.read)
		}
	}
	clear(s.reqs)
}

func (s *Sim) sorted() (all []*request) {
	for _, r := range s.reqs {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *request) int { return int(a.Tag) - int(b.Tag) })
	return all
}

// reissue sends the requests again that a killed daemon had not answered, as ublk does; or they
// are lost with their client.
func (s *Sim) reissue() {
	if s.rng.IntN(2) == 0 {
		s.dropRequests()
		return
	}
	for _, r := range s.sorted() {
		r.Request = cache.Request{
			Tag: r.Tag, Backing: r.Backing, Op: r.Op, FUA: r.FUA, Off: r.Off, Len: r.Len,
		}
		r.asked.again = true
		s.submit(r)
	}
}

// idle plays on without new requests until done reports true.
func (s *Sim) idle(what string, done func() bool) error {
	for i := 0; !done(); i++ {
		if s.err != nil {
			return s.err
		}
		if i > 2_000_000 {
			return fmt.Errorf("%s does not end: %d operations and %d requests in flight",
				what, len(s.ops), len(s.reqs))
		}
		s.step(false)
	}
	return s.err
}

// epilogue reads everything back, stops in order, checks the format, starts again warm, writes
// everything back and compares the backing devices.
func (s *Sim) epilogue() error {
	if s.ssd.gone != nil {
		if s.comeBack(); s.van.over {
			s.c.Abandon()
			return nil
		}
	}
	if err := s.idle("the last request", func() bool { return len(s.reqs) == 0 }); err != nil {
		return err
	}
	if err := s.readAll(); err != nil {
		return err
	}
	cached, err := s.restart()
	if err != nil {
		return err
	}
	s.checkWishes("after an orderly stop")
	if now := s.c.Status().CachedBytes; now != cached {
		return fmt.Errorf("%d bytes were cached before an orderly stop, %d after", cached, now)
	}
	if s.err != nil {
		return s.err
	}
	if err := s.readAll(); err != nil {
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
			s.tag++
			r := &request{dev: dev, first: first, n: n, data: make([]byte, n*sectorSize)}
			r.Tag, r.Backing, r.Op = s.tag, s.ids[dev], cache.ReqRead
			r.Off, r.Len = int64(first)*sectorSize, int64(n)*sectorSize
			r.read = m.read(first, n)
			r.asked.again = true // no deadline, the data is wanted
			s.submit(r)
			if err := s.idle("a read", func() bool { return s.reqs[r.Tag] == nil }); err != nil {
				return err
			}
			first += n
		}
	}
	return s.err
}

// restart stops in order, checks the SSD and starts again.
func (s *Sim) restart() (cached int64, err error) {
	s.c.StartSettle()
	if err := s.idle("settling", func() bool {
		return len(s.ops) == 0 && s.bg().l.Settled()
	}); err != nil {
		return 0, err
	}
	if p := s.c.Verify(); len(p) > 0 {
		return 0, fmt.Errorf("at the end: %s", p[0])
	}
	cached = s.c.Status().CachedBytes
	s.countStats()
	for _, l := range s.lanes {
		l.l.Close()
	}
	if err := s.c.Close(); err != nil {
		return 0, err
	}
	rep, err := cache.Check(context.Background(), s.ssd, cache.CheckOptions{Data: s.res.FailedBad == 0})
	if err != nil {
		return 0, err
	}
	if len(rep.Problems) > 0 {
		return 0, fmt.Errorf("check after an orderly stop: %s", rep.Problems[0])
	}
	if !rep.Super.Clean {
		return 0, fmt.Errorf("the cache is not marked clean after an orderly stop")
	}
	clear(s.ring)
	return cached, s.open()
}

// compareBackings writes everything back and compares what the backing devices hold.
func (s *Sim) compareBackings() error {
	for _, id := range s.ids {
		if err := s.c.SetDrain(id, true); err != nil {
			return err
		}
	}
	err := s.idle("the drain", func() bool {
		for _, id := range s.ids {
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
		p := make([]byte, sectorSize)
		for i := range m.sectors {
			if s.van.bad[dev][i/blockSectors] {
				continue // it may not have been written back
			}
			s.backs[dev].now.read(p, int64(i)*sectorSize)
			legal := m.sectors[i].legal
			if !slices.ContainsFunc(legal, func(v version) bool { return matches(p, i, v.stamp) }) {
				return fmt.Errorf("device %d, written back: sector %d is not one of %v on the backing device",
					dev, i, legal)
			}
		}
	}
	s.countStats()
	s.c.Abandon()
	return nil
}

func (s *Sim) countStats() {
	st := s.c.Stats()
	s.res.Evicted += st.EvictedBlocks
	s.res.Moved += st.MovedBlocks
	s.res.Checkpoints += st.Checkpoints
	for _, b := range st.Backings {
		s.res.Hits += b.HitBlocks
		s.res.WrittenBack += b.WritebackBlocks
	}
}

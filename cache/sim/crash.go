package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ubcache/cache"
)

// Crash is a way to end a process.
type Crash uint8

// The ways. The numbers are part of replay commands.
const (
	CrashPower        Crash = iota // of the machine and both devices
	CrashSSDPower                  // the backing devices keep what had completed
	CrashBackingPower              // the SSD does
	CrashKill
	CrashKillBacking // and the backing devices lose their volatile caches, too
	numCrashes
)

var crashNames = [numCrashes]string{
	"power cut", "power cut, backing kept", "power cut, SSD kept", "kill", "kill, backing cut",
}

func (c Crash) String() string { return crashNames[c] }

func (c Crash) killed() bool { return c >= CrashKill }

// cuts reports whether the SSD, or the backing devices, lose their volatile caches.
func (c Crash) cuts(ssd bool) bool {
	if ssd {
		return c == CrashPower || c == CrashSSDPower
	}
	return c == CrashPower || c == CrashBackingPower || c == CrashKillBacking
}

// drawCrash prefers the plain ones.
func (s *Sim) drawCrash() Crash {
	return [...]Crash{
		CrashPower, CrashPower, CrashPower, CrashSSDPower, CrashBackingPower,
		CrashKill, CrashKill, CrashKillBacking,
	}[s.rng.IntN(8)]
}

// crash ends the process, or the power, and starts again; sometimes it crashes while starting.
func (s *Sim) crash() {
	s.armed = nil
	s.countStats()
	how := s.drawCrash()
	s.die(how)
	s.c.Abandon()
	s.lanes = nil
	for s.rng.IntN(4) == 0 {
		left := s.rng.IntN(8)
		s.crashStart(left)
		how = s.drawCrash()
		s.trace("crash while starting, after %d writes", left)
		s.die(how)
	}
	s.restartAfter(how)
}

// crashStart starts the cache, which gets as far as that many writes and flushes of the SSD.
func (s *Sim) crashStart(left int) {
	s.res.CrashedStarts++
	s.ssd.hook = func(kind cache.OpKind, _, _ int64) error {
		if kind == cache.OpRead {
			return nil
		}
		if left--; left < 0 {
			return errCrash
		}
		return nil
	}
	c, err := cache.Open(s.ssd, cache.Options{Pending: s.ring})
	s.ssd.hook = nil
	if err == nil {
		c.Abandon()
	}
}

// restartAfter starts the cache after a crash.
func (s *Sim) restartAfter(how Crash) {
	var d *damage
	if s.cfg.Faults.has(FaultMetadata) && s.rng.IntN(2) == 0 {
		d = s.damageMetadata()
	}
	err := s.open()
	if d != nil && d.mayRefuse && errors.Is(err, cache.ErrCorrupt) {
		s.trace("refused: %v", err)
		s.res.RefusedStarts++
		d.undo(s)
		err = s.open()
	}
	if err != nil {
		s.fail(fmt.Errorf("open after a crash (%v): %w", how, err))
		return
	}
	if p := s.c.Verify(); len(p) > 0 {
		s.fail(fmt.Errorf("after a crash: %s", p[0]))
	}
	s.checkWishes("after a crash")
	s.reissue()
}

// die decides what of the operations in flight happened, and what of the requests.
func (s *Sim) die(how Crash) {
	s.trace("%v", how)
	s.res.Crashes++
	s.res.Cuts[how]++
	for i, d := range append([]*Disk{s.ssd}, s.backs...) {
		d.stalled = 0
		flying := s.flyingOn(d)
		if how.cuts(i == 0) {
			d.powerCut(s.rng, flying)
			continue
		}
		for _, w := range flying {
			if s.rng.IntN(2) == 0 {
				d.write(w.data, w.off)
			}
		}
		if !how.killed() { // what had completed is kept
			d.settled()
		}
	}
	s.ops = nil
	if how == CrashKill {
		return
	}
	s.dropRequests()
	for _, m := range s.models {
		m.powerCut()
	}
	if !how.killed() {
		clear(s.ring[:pageBytes])
		s.wishes.forget()
	}
}

// flyingOn is the writes in flight of a device.
func (s *Sim) flyingOn(d *Disk) (all []diskWrite) {
	for _, f := range s.ops {
		if s.disk(f.op.Dev) != d {
			continue
		}
		switch f.op.Kind {
		case cache.OpWrite:
			// The memory is the engine's, which is about to free it.
			all = append(all, diskWrite{off: f.op.Off, data: bytes.Clone(s.mem(f.op))})
		case cache.OpDiscard, cache.OpZero:
			all = append(all, diskWrite{off: f.op.Off, data: zeroSectors(f.op.Len)})
		}
	}
	return all
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
		if i > 1_000_000 {
			return fmt.Errorf("%s does not end: %d operations and %d requests in flight",
				what, len(s.ops), len(s.reqs))
		}
		if s.script {
			s.next()
		} else {
			s.step(false)
		}
	}
	return s.err
}

// epilogue ends all faults but lets their damage be; it reads everything back, stops in order,
// checks the format, starts again warm, overwrites what was lost, writes everything back and
// compares the backing devices.
func (s *Sim) epilogue() error {
	s.armed, s.strike = nil, nil
	for _, d := range append(s.backs, s.ssd) {
		d.full, d.dead = false, false
	}
	for _, d := range s.backs {
		d.unmark(markUnreadable)
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
	if err := s.replaceLost(); err != nil {
		return err
	}
	return s.compareBackings()
}

// newRequest makes a request and tells the model of it.
func (s *Sim) newRequest(dev int, op cache.ReqOp, first, n int) *request {
	m := s.models[dev]
	s.tag++
	r := &request{dev: dev, first: first, n: n, data: s.buffer(n)}
	r.Tag, r.Backing, r.Op = s.tag, s.ids[dev], op
	r.Off, r.Len = int64(first)*sectorSize, int64(n)*sectorSize
	r.asked.again = true // no deadline, the data is wanted
	switch {
	case op == cache.ReqRead:
		r.read = m.read(first, n)
	case op != cache.ReqFlush:
		r.v, r.written = m.write(first, n, op != cache.ReqWrite), true
		r.issued = m.clock
		s.fillData(r, r.v.stamp)
	default:
		r.flush = m.flush()
	}
	return r
}

// request plays one request to its end.
func (s *Sim) request(dev int, op cache.ReqOp, first, n int) (*request, error) {
	r := s.newRequest(dev, op, first, n)
	s.submit(r)
	return r, s.idle(op.String(), func() bool { return s.reqs[r.Tag] == nil })
}

// buffer is memory for the data of n sectors.
func (s *Sim) buffer(n int) []byte { return make([]byte, n*sectorSize) }

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

// restart stops in order, checks the SSD and starts again.
func (s *Sim) restart() (cached int64, err error) {
	for crashes := -1; crashes != s.res.Crashes; { // it may crash meanwhile
		crashes = s.res.Crashes
		s.c.StartSettle()
		if err := s.idle("settling", func() bool {
			return len(s.ops) == 0 && s.bg().l.Settled() || crashes != s.res.Crashes
		}); err != nil {
			return 0, err
		}
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
	rep, err := cache.Check(context.Background(), s.ssd, cache.CheckOptions{Data: true})
	if err != nil {
		return 0, err
	}
	for _, p := range rep.Problems {
		if !s.damaged(p) {
			return 0, fmt.Errorf("check after an orderly stop: %s", p)
		}
	}
	if !rep.Super.Clean {
		return 0, fmt.Errorf("the cache is not marked clean after an orderly stop")
	}
	if err := s.checkCopies(); err != nil {
		return 0, err
	}
	clear(s.ring[:pageBytes])
	return cached, s.open()
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
func (s *Sim) alike(at int64) bool {
	const bad = markUnreadable | markWrong
	offs := [2]int64{s.geo.SummaryOff[0] + at, s.geo.SummaryOff[1] + at}
	a, b := s.ssd.now[offs[0]:][:pageBytes], s.ssd.now[offs[1]:][:pageBytes]
	return s.ssd.marked(offs[0], pageBytes, bad) || s.ssd.marked(offs[1], pageBytes, bad) ||
		bytes.Equal(a[:ownPlace], b[:ownPlace]) && bytes.Equal(a[ownSum+8:], b[ownSum+8:])
}

// damaged reports whether a problem that a check found is one of data that faults have hurt.
func (s *Sim) damaged(problem string) bool {
	const bad = markUnreadable | markWrong
	n := s.geo.DataOff
	return s.ssd.marked(n, s.ssd.size-n, bad) &&
		(strings.Contains(problem, "fails its checksum") || strings.Contains(problem, "cannot be read"))
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
		for i := range m.sectors {
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

func (s *Sim) countStats() {
	st := s.c.Stats()
	s.res.Evicted += st.EvictedBlocks
	s.res.Moved += st.MovedBlocks
	s.res.Checkpoints += st.Checkpoints
	for _, b := range st.Backings {
		s.res.Hits += b.HitBlocks
		s.res.WrittenBack += b.WritebackBlocks
		s.res.Healed += b.HealedBlocks
	}
}

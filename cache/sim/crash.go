package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

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
	if s.away() {
		s.comeBack() // it cannot start without
		return
	}
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

// ringLost is where the pending ring notes that a flush has failed.
const ringLost = 56

// crashStart starts the cache, which gets as far as that many writes and flushes of the SSD.
func (s *Sim) crashStart(left int) {
	s.brokenStart(false, func(kind cache.OpKind) bool {
		if kind != cache.OpRead {
			left--
		}
		return left < 0 && kind != cache.OpRead
	})
}

// brokenStart starts the cache, and operations of the SSD that fails names fail: since the process has ended, unless
// it is to live on.
func (s *Sim) brokenStart(lives bool, fails func(kind cache.OpKind) bool) {
	s.res.CrashedStarts++
	forgot := false
	s.ssd.hook = func(kind cache.OpKind, _, _ int64) error {
		if !fails(kind) {
			return nil
		}
		forgot = forgot || kind == cache.OpFlush
		return errCrash
	}
	lost := binary.LittleEndian.Uint64(s.ring[ringLost:])
	c, err := cache.Open(s.ssd, cache.Options{Pending: s.ring, Load: s.options().Load})
	s.ssd.hook = nil
	if err == nil {
		c.Abandon() // it has done without what failed
	}
	switch {
	case !forgot:
	case lives:
		s.van.forgot, s.warm.was = true, nil
		s.giveUp()
	default: // that was no flush that failed
		binary.LittleEndian.PutUint64(s.ring[ringLost:], lost)
	}
}

// giveUp excuses what is lost after a flush of the SSD has failed.
func (s *Sim) giveUp() {
	f := &s.res.Faults
	switch {
	case !s.van.forgot:
	case !s.cfg.Checksums: // nothing shows what the failed flush has cost
		s.van.lost = true
		s.noteBad(nil)
		s.wishes.forget() // with a pin that was not on record yet, the copy that had it
	case f[FaultCorrupt]+f[FaultLost]+f[FaultMisdirected]+f[FaultSSDSector]+f[FaultSSDRead] > 0:
		s.wishes.forget() // a copy that the start finds to be wrong
	}
	s.van.forgot = false
}

// restartAfter starts the cache after a crash.
func (s *Sim) restartAfter(how Crash) {
	var d *damage
	if s.cfg.Faults.has(FaultMetadata) && s.rng.IntN(2) == 0 {
		d = s.damageMetadata()
	}
	s.warm.empty = d != nil && d.mayRefuse // if nothing is dirty
	s.salvage(s.warm.empty)
	err := s.open()
	if d != nil && d.mayRefuse && errors.Is(err, cache.ErrCorrupt) {
		s.trace("refused: %v", err)
		s.res.RefusedStarts++
		d.undo(s)
		s.warm.empty = false
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
	s.lookAtAllImages()
	s.reissue()
}

// die decides what of the operations in flight happened, and what of the requests.
func (s *Sim) die(how Crash) {
	how = s.worst(how)
	s.warmDies(how)
	s.noteBroken()
	clear(s.orders.broken)
	s.trace("%v", how)
	s.res.Crashes++
	s.res.Cuts[how]++
	for i, d := range append([]*Disk{s.ssd}, s.backs...) {
		d.stalled, d.gone, d.forgot = 0, nil, false
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
	if how.killed() {
		s.giveUp()
	}
	s.van.forgot = false
	for i := range s.absences {
		s.absences[i] = absence{owed: s.absences[i].owed}
	}
	if how == CrashKill {
		return // the clients live on
	}
	clear(s.absences)
	s.dropRequests()
	for _, m := range s.models {
		m.powerCut()
	}
	if !how.killed() {
		clear(s.ring[:pageBytes])
		s.wishes.forget()
	}
}

// worst is the crash, or the one that it is if a backing device is away then and forgets.
func (s *Sim) worst(how Crash) Crash {
	for _, d := range s.backs {
		if how == CrashKill && (d.gone != nil && d.forgets || d.forgot) {
			return CrashKillBacking
		}
	}
	return how
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
	if s.rng.IntN(2) == 0 && !s.ending {
		s.dropRequests()
		return
	}
	for _, r := range s.sorted() {
		r.Request = cache.Request{
			Tag: r.Tag, Backing: r.Backing, Op: r.Op, FUA: r.FUA, Off: r.Off, Len: r.Len,
		}
		r.asked.again, r.made = true, false
		if r.flush != nil && s.cfg.Gone > 0 {
			// The daemon that is gone may have known of a loss, and the new one does not.
			r.flush, r.issued = s.models[r.dev].flush(), s.models[r.dev].clock
		}
		s.submit(r)
	}
}

// idle plays on without new requests until done reports true.
func (s *Sim) idle(what string, done func() bool) error {
	for i := 0; !done(); i++ {
		if s.err != nil {
			return s.err
		}
		if s.van.over {
			return errOver
		}
		if s.ending && s.away() || s.script && s.failedFlush() {
			if s.comeBack(); s.van.over {
				return errOver
			}
			continue
		}
		s.lookAtImages()
		if i > 30_000 {
			return fmt.Errorf("%s does not end: %d operations and %d requests in flight, the SSD is %v",
				what, len(s.ops), len(s.reqs), s.van.health)
		}
		if s.script {
			s.next()
		} else {
			s.step(false)
		}
	}
	return s.err
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
		r.flush, r.issued = m.flush(), m.clock
	}
	return r
}

// request plays one request to its end.
func (s *Sim) request(dev int, op cache.ReqOp, first, n int) (*request, error) {
	r := s.newRequest(dev, op, first, n)
	s.submit(r)
	return r, s.idle(op.String(), func() bool { return s.reqs[r.Tag] == nil })
}

// buffer is memory for the data of n sectors, none of which has content that is legal anywhere.
func (s *Sim) buffer(n int) []byte { return s.buffers.take(n) }

// buffers are memory of requests that have ended, by the power of two of its size.
type buffers [32][][]byte

func (b *buffers) take(n int) []byte {
	size := bits.Len(uint(max(n, 1) - 1))
	var p []byte
	if free := b[size]; len(free) > 0 {
		p, b[size] = free[len(free)-1], free[:len(free)-1]
	} else {
		p = make([]byte, sectorSize<<size)
	}
	p = p[:n*sectorSize]
	for i := 0; i < len(p); i += sectorSize {
		binary.LittleEndian.PutUint64(p[i:], neverLegal+1)
	}
	return p
}

// give takes the memory of a request that has ended, on which nothing is under way any more.
func (b *buffers) give(r *request) {
	for _, p := range [...]*[]byte{&r.data, &r.target} {
		if cap(*p) == 0 {
			continue
		}
		size := bits.Len(uint(cap(*p)/sectorSize) - 1)
		b[size] = append(b[size], (*p)[:cap(*p)])
		*p = nil
	}
}

func (s *Sim) countStats() {
	s.lookAtGivenUp()
	st := s.c.Stats()
	if load := s.c.Status().Loading; load.Took != 0 {
		s.res.Loaded++
		s.res.LateDropped += load.Dropped
	}
	s.res.Evicted += st.EvictedBlocks
	s.res.Moved += st.MovedBlocks
	s.res.Checkpoints += st.Checkpoints
	for _, b := range st.Backings {
		s.res.Hits += b.HitBlocks
		s.res.WrittenBack += b.WritebackBlocks
		s.res.Batches += b.SettledBatches
		s.res.Healed += b.HealedBlocks
	}
}

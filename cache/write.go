package cache

import (
	"errors"

	"ubcache/attrs"
)

// writePiece writes the part of a request that lies in one region to new slots of the SSD, and
// then makes the index point to them: an overwrite never touches the old slot, so a crash
// leaves the old or the new block. Blocks written in part are merged with what is cached of
// them; for that the piece excludes all other changes of its blocks.
//
// Where no slot is to be had, or the SSD fails the write, it goes to the backing device. On an
// ordered device it waits at first while too much is to be written back. A block that such a device has lost, of
// which the SSD has the only copy, is not overwritten before it is there again: see order.
type writePiece struct {
	r     *Request
	span  span
	lock  rangeLock
	w     waiter
	step  writeStep
	first Block
	n     int // blocks
	waits int // operations under way
	err   error
	lost  error // a merge found its old data lost
	room  int   // promised by the order of the device and not used yet

	runs  []slotRun
	sums  [regionBlocks]uint32
	masks [regionBlocks]uint8
	next  *writePiece
}

type writeStep uint8

const (
	writeReserve writeStep = iota // waits for journal room
	writeLock                     // waits for its blocks
	writeData                     // the slots are being written
	writeBase                     // waits until the ordered device has again what it has lost
)

func (l *Lane) startWrite(r *Request, s span) {
	p := l.freeWrites
	if p == nil {
		p = &writePiece{}
	} else {
		l.freeWrites = p.next
	}
	p.r, p.span, p.err, p.lost, p.room, p.runs = r, s, nil, nil, 0, p.runs[:0]
	p.first, p.n = s.first(), int(s.last()-s.first())+1
	p.w = waiter{lane: l, owner: p}
	p.step = writeReserve
	p.run(l, nil)
}

// run goes on from what the piece waited for.
func (p *writePiece) run(l *Lane, err error) {
	o := &p.r.b.order
	switch p.step {
	case writeLock:
		p.write(l)
		return
	case writeBase:
		if err != nil && !errors.Is(err, ErrSSDLost) {
			p.finish(l, err)
			return
		}
		if err == nil && !o.waitBased(l.c, &p.w) {
			l.c.pokeBackground()
			return
		}
		p.step = writeReserve
	}
	if lost := errors.Is(err, ErrSSDLost); p.room == 0 && o.on.Load() && !lost {
		if err != nil { // nothing can be written back
			p.finish(l, err)
			return
		}
		if !o.admit(l.c, p.n, l.d.Now(), &p.w) {
			l.c.pokeBackground()
			return
		}
		p.room = p.n
	}
	if err != nil { // the journal cannot be written
		p.through(l, 0)
		return
	}
	if !l.c.journal.reserveOrWait(p.n, &p.w) {
		return
	}
	var placed, ok bool
	if p.runs, placed, ok = l.allocAll(p.r.way.stream, p.n, p.runs); !ok {
		p.through(l, p.n)
		return
	}
	if !placed {
		p.r.misplaced(attrs.ReasonBusy)
	}
	p.step = writeLock
	kind := lockWrite
	if p.partial() {
		kind = lockMerge
	}
	p.lock = rangeLock{
		backing: p.r.b.id, kind: kind, first: p.first, last: p.first + Block(p.n-1), owner: p.w,
	}
	s := l.c.index.stripeOf(p.r.b.id, p.first)
	s.mu.Lock()
	granted := s.acquire(&p.lock)
	s.mu.Unlock()
	if granted {
		p.write(l)
	}
}

// partial reports whether the first or last block is written in part.
func (p *writePiece) partial() bool {
	return p.span.off%BlockSize != 0 || (p.span.off+p.span.len)%BlockSize != 0
}

// whole reports whether all of block i is written.
func (p *writePiece) whole(i int) bool {
	at := int64(p.first)*BlockSize + int64(i)*BlockSize
	return at >= p.span.off && at+BlockSize <= p.span.off+p.span.len
}

// slot is the new place of block i.
func (p *writePiece) slot(i int) Slot {
	for _, r := range p.runs {
		if i < r.n {
			return r.first + Slot(i)
		}
		i -= r.n
	}
	panic("cache: block without a slot")
}

// write starts one operation per run of slots; blocks written in part go through an edge.
func (p *writePiece) write(l *Lane) {
	if l.tooLate(p.r) {
		p.giveUp(l)
		return
	}
	p.step, p.waits = writeData, 1
	if mutated(mutRecordBeforeData) && !l.c.checksums && !p.partial() {
		for i := range p.n {
			p.masks[i], p.sums[i] = fullMask, 0
		}
		s := l.c.index.stripeOf(p.r.b.id, p.first)
		s.mu.Lock()
		p.insert(l, s)
		s.mu.Unlock()
	}
	i := 0
	for _, r := range p.runs {
		from, to := i, i+r.n
		i = to
		if from < to && !p.whole(from) {
			p.waits++
			l.startWriteEdge(p, from)
			from++
		}
		tail := from < to && !p.whole(to-1)
		if tail {
			to--
		}
		if from < to {
			p.writeRun(l, r.first+Slot(r.n-(i-from)), from, to)
		}
		if tail {
			p.waits++
			l.startWriteEdge(p, to)
		}
	}
	p.opsDone(l, nil)
}

// writeRun writes whole blocks [from, to) to the slots from s on.
func (p *writePiece) writeRun(l *Lane, s Slot, from, to int) {
	_, _, reqOff := blockPart(p.span, p.r, p.first+Block(from))
	for i := from; i < to; i++ {
		p.masks[i] = fullMask
		if l.c.checksums {
			data := p.r.Data[reqOff+(i-from)*BlockSize:][:BlockSize]
			p.sums[i] = dataSum(data, uint64(makeKey(p.r.b.id, p.first+Block(i))))
		}
	}
	p.waits++
	l.transfer(p, OpWrite, SSD, l.c.geo.slotOff(s), p.r, reqOff, (to-from)*BlockSize, 0)
}

func (p *writePiece) opDone(l *Lane, _ *Op, err error) { p.opsDone(l, err) }

// opsDone ends an operation and, after the last, the piece.
func (p *writePiece) opsDone(l *Lane, err error) {
	if err != nil && p.err == nil {
		p.err = err
	}
	if p.waits--; p.waits > 0 {
		return
	}
	s := l.c.index.stripeOf(p.r.b.id, p.first)
	s.mu.Lock()
	if p.err == nil && l.c.lost() {
		p.err = ErrSSDLost
	}
	early := p.err == nil && p.lost == nil && p.overLacking(l)
	if !early && p.err == nil && p.lost == nil && (!mutated(mutRecordBeforeData) || l.c.checksums || p.partial()) {
		p.insert(l, s)
	}
	s.release(&p.lock)
	s.mu.Unlock()
	switch {
	case p.lost != nil:
		if p.err != nil { // the SSD has failed what was to go beside it, too
			l.ssdWriteFailed(p.r.b, p.runs, p.err)
		}
		l.c.journal.unreserve(p.n)
		l.dropRuns(p.runs)
		p.finish(l, p.lost)
	case p.err != nil:
		l.ssdWriteFailed(p.r.b, p.runs, p.err)
		p.through(l, p.n)
	case early: // all of it again
		l.c.journal.unreserve(p.n)
		l.dropRuns(p.runs)
		p.runs, p.step = p.runs[:0], writeBase
		p.run(l, nil)
	default:
		p.r.touched |= touchedSSD
		p.r.reached |= reachedSSD
		l.io[p.r.b.id].CachedWriteBlocks.Add(int64(p.n))
		l.dropRuns(p.runs)
		p.finish(l, nil)
	}
}

// overLacking reports whether the write would replace what an ordered device has lost. A FLUSH may have promised that
// since, and what comes after the FLUSH may be there before the new version has its turn. The stripe is locked.
func (p *writePiece) overLacking(l *Lane) bool {
	b := p.r.b
	if o := &b.order; o.based.Load() || !o.on.Load() || !o.noted.Load() {
		return false // what is dirty may be much, and the device is no image before it has that
	}
	for i := range p.n {
		e, ok := l.c.index.find(makeKey(b.id, p.first+Block(i)))
		if ok && e.st&(stDirty|stBad|stQueued) == stDirty { // pending is there again, but not flushed
			return true
		}
	}
	return false
}

// insert points the index to the new slots. The stripe is locked.
func (p *writePiece) insert(l *Lane, s *stripe) {
	b := p.r.b
	if b.dirtySince.Load() == 0 {
		b.dirtySince.Store(p.r.started)
	}
	i := 0
	for _, r := range p.runs {
		for j := range r.n {
			e := entry{
				slot: r.first + Slot(j), st: state(p.masks[i]) | stDirty, sum: p.sums[i],
				owner: p.r.way.tenant,
			}
			l.c.mapFresh(b, s, makeKey(b.id, p.first+Block(i)), e, l.d.Now(), p.room > 0)
			i++
		}
	}
	p.room = 0
}

// giveUp ends a piece that has done nothing and must not begin any more.
func (p *writePiece) giveUp(l *Lane) {
	s := l.c.index.stripeOf(p.r.b.id, p.first)
	s.mu.Lock()
	s.release(&p.lock)
	s.mu.Unlock()
	l.c.journal.unreserve(p.n)
	l.dropRuns(p.runs)
	p.finish(l, ErrLate)
}

// through gives the piece's part of the request to the backing device, and back what it held.
func (p *writePiece) through(l *Lane, reserved int) {
	l.c.journal.unreserve(reserved)
	l.dropRuns(p.runs)
	r, s := p.r, p.span
	r.notCached()
	p.free(l)
	l.startPiece(r, s, false)
}

func (p *writePiece) finish(l *Lane, err error) {
	r := p.r
	p.free(l)
	l.pieceDone(r, err)
}

func (p *writePiece) free(l *Lane) {
	p.r.b.order.release(p.room)
	p.r, p.next = nil, l.freeWrites
	l.freeWrites = p
}

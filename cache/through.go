package cache

import (
	"errors"
	"sync"

	"ubcache/attrs"
)

// through changes the backing device: writes past the cache, writethrough, discard, write
// zeroes. Its order is what keeps the SSD from ever showing older data than the backing device
// had, whenever the power goes:
//
//  1. exclude all other changes of the blocks; if the device is ordered, wait until it has all that
//     was acknowledged before, what it has lost since included;
//  2. take clean copies out of the index, and wait until that, and every earlier removal in
//     their stripes, is durable;
//  3. change the backing device, and beside it write the new copy, if there is to be one;
//  4. if dirty copies are left that the change made obsolete: flush the backing device, and only
//     then take them out, for until then they may be newer than what a crash leaves there;
//  5. map the new copy as pending: dirty on record, so that after a crash it is written to the
//     backing device again, and clean once a flush of that has covered the change.
type through struct {
	r     *Request
	span  span // the window under way
	rest  span // the windows after it
	cache bool // also write a copy to the SSD
	step  throughStep
	w     waiter
	locks []rangeLock // one per region of the window
	at    int         // the lock that is waited for
	held  int         // journal room that it was promised
	room  int         // what is not used of it yet
	waits int
	err   error
	stale bool // dirty copies are left
	marks int  // regions for which loading has promised room
	// bare says that the change is made without the SSD, see lost.go; late that it had been made
	// when the SSD was lost.
	bare, late bool
	anew       bool   // the window begins anew: its pinned blocks may have left the index already
	rests      bool   // it waits for the device
	wrote      uint64 // the change, as Backing.wrote counts
	// losses is the smallest Backing.losses with which an operation of the change began.
	losses uint64
	need   LSN
	order  LSN        // what an ordered device has to write back before
	whole  blockRange // blocks of the window that are written in full
	runs   []slotRun
	sums   []uint32
	pins   []uint64 // bits of the window's blocks that were pinned and clean
	next   *through
}

type throughStep uint8

const (
	throughAbsent throughStep = iota // waits for the backing device
	throughReserve
	throughLock
	throughOrder   // waits until what came before is on the ordered device
	throughDurable // waits for the removals
	throughMarker  // waits until it may change what a lost SSD knows
	throughChange  // the devices are being written
	throughFlush   // the backing device is being flushed
)

const (
	// windowBytes bounds the locks of one change; longer discards go window by window.
	windowBytes = 64 << 20
	// roomPerRegion is the journal room of the removals in one region: clean copies, dirty ones,
	// and sectors at both ends.
	roomPerRegion = 4
	zeroBytes     = 1 << 20
)

// zeroes is what write zeroes writes to a device that cannot do it by itself.
func zeroes() ([]byte, error) {
	zeroMem.Lock()
	defer zeroMem.Unlock()
	if zeroMem.p == nil {
		var err error
		if zeroMem.p, err = offHeap(zeroBytes); err != nil {
			return nil, err
		}
	}
	return zeroMem.p, nil
}

var zeroMem struct {
	sync.Mutex
	p []byte
}

// startThrough makes a whole request a change of the backing device.
func (l *Lane) startThrough(r *Request, s span, cache bool) {
	r.pending = 1
	l.startPiece(r, s, cache)
}

// startPiece makes part of a request a change of the backing device.
func (l *Lane) startPiece(r *Request, s span, cache bool) {
	t := l.freeThroughs
	if t == nil {
		t = &through{}
	} else {
		l.freeThroughs = t.next
	}
	t.r, t.cache, t.err, t.next = r, cache, nil, nil
	t.w = waiter{lane: l, owner: t}
	if r.Op == ReqWrite && !cache {
		l.io[r.b.id].BypassBytes.Add(s.len)
		r.misplaced(attrs.ReasonNotCached)
	}
	t.window(l, s)
}

// window begins the first part of s that one set of locks covers.
func (t *through) window(l *Lane, s span) {
	end := min(s.off+s.len, s.off/windowBytes*windowBytes+windowBytes)
	t.span, t.rest = span{s.off, end - s.off}, span{end, s.off + s.len - end}
	regions := int(t.span.last()>>regionShift-t.span.first()>>regionShift) + 1
	if cap(t.locks) < regions {
		t.locks = make([]rangeLock, regions)
	}
	t.locks = t.locks[:regions]
	t.at, t.need, t.stale, t.marks, t.runs = 0, 0, false, 0, t.runs[:0]
	t.bare, t.late = false, false
	t.whole = blockRange{
		from: int(roundUp(t.span.off, BlockSize)/BlockSize) - int(t.span.first()),
		to:   int((t.span.off+t.span.len)/BlockSize) - int(t.span.first()),
	}
	if t.cache && t.whole.from >= t.whole.to {
		t.cache = false
		t.r.notCached()
	}
	// What the change covers in part goes to the backing device only.
	if t.whole.from > 0 || t.whole.to <= int(t.span.last()-t.span.first()) {
		t.r.misplaced(attrs.ReasonNotCached)
	}
	if !t.anew {
		t.clearPins()
	}
	t.anew = false
	t.room = roomPerRegion * regions
	if t.cache {
		t.room += t.whole.to - t.whole.from
	}
	t.step = throughAbsent
	if ok, err := t.await(); ok || err != nil {
		t.run(l, err)
		return
	}
	t.rests = true
	l.rest(t.r)
	l.d.Wake() // others may be served
}

// await reports whether the backing device is there. If not, the change waits before it has had any
// effect, or fails.
func (t *through) await() (bool, error) {
	if t.r.b.Presence() != Present && t.r.timed() && !t.r.track.deadline.begun {
		t.r.track.deadline.late = true
		return false, ErrLate
	}
	return t.r.b.awaitPresence(&t.w)
}

// run goes on from what was waited for.
func (t *through) run(l *Lane, err error) {
	if t.rests {
		t.rests = false
		l.resume(t.r)
	}
	if t.step == throughDurable {
		l.commitEnds(t.r)
	}
	if t.step == throughAbsent && errors.Is(err, ErrSSDLost) {
		err = nil // that is looked at later
	}
	switch {
	case t.step == throughMarker:
		t.withoutSSD(l)
		return
	case err != nil && t.step == throughAbsent: // the backing device is gone
		t.room = 0
		t.locks = t.locks[:0]
		t.err = err
		t.finish(l)
		return
	case err != nil && t.step == throughReserve:
		t.room, t.step = 0, throughLock // withoutSSD needs none
		t.lock(l)
		return
	case err != nil && t.step == throughOrder && !errors.Is(err, ErrSSDLost): // of the backing device
		t.err = err
		t.finish(l)
		return
	case err != nil:
		t.withoutSSD(l)
		return
	}
	switch t.step {
	case throughAbsent:
		if !t.idle() && !t.r.b.order.waitBased(l.c, &t.w) {
			l.c.pokeBackground()
			return
		}
		t.step = throughReserve
		fallthrough
	case throughReserve:
		if !t.promise(l) {
			return
		}
		if l.c.journal.reserveChange(t.r.b, t.room, &t.w) {
			t.held, t.step = t.room, throughLock
			t.lock(l)
		}
	case throughLock:
		t.at++
		t.lock(l)
	case throughOrder:
		t.inOrder(l)
	case throughDurable:
		t.change(l)
	}
}

// promise gets room for what has to be remembered of the change while the index is being loaded; or
// the change waits until all is loaded.
func (t *through) promise(l *Lane) bool {
	if t.marks > 0 || !l.c.loading.on.Load() {
		return true
	}
	var ok bool
	t.marks, ok = l.c.loading.reserve(l.c, t.r.b.id, t.span.first(), t.span.last(), &t.w)
	return ok
}

// lock takes the regions in ascending order, so that two changes never wait for each other.
func (t *through) lock(l *Lane) {
	b := t.r.b
	for first, last := t.span.first(), t.span.last(); t.at < len(t.locks); t.at++ {
		lo := max(first, (first>>regionShift+Block(t.at))<<regionShift)
		hi := min(last, lo|(regionBlocks-1))
		k := &t.locks[t.at]
		*k = rangeLock{backing: b.id, kind: lockThrough, first: lo, last: hi, owner: t.w}
		s := l.c.index.stripeOf(b.id, lo)
		s.mu.Lock()
		granted := s.acquire(k)
		s.mu.Unlock()
		if !granted {
			return
		}
	}
	if l.tooLate(t.r) { // before clean copies are lost for it
		t.err = ErrLate
		t.finish(l)
		return
	}
	if l.c.lost() || t.room == 0 {
		t.withoutSSD(l)
		return
	}
	for i := range t.locks {
		t.dropClean(l, &t.locks[i])
	}
	t.step, t.order = throughOrder, l.c.journal.nextLSN()
	t.inOrder(l)
}

// idle reports whether nothing is changed.
func (t *through) idle() bool { return t.r.Op == ReqDiscard && !t.r.b.discards.Load() }

// inOrder waits for the writeback of what was acknowledged before. What comes later need not wait for
// this change: it does not touch the same blocks, and nobody knows yet that the change will be.
func (t *through) inOrder(l *Lane) {
	if o := &t.r.b.order; o.live() && !t.idle() && !mutated(mutOrderOvertaken) {
		said, ok, retreat := o.waitSettled(l.c, t.order, &t.w)
		if retreat {
			t.restart(l)
			return
		}
		if !ok {
			l.c.pokeBackground()
			return
		}
		t.need = max(t.need, said)
	}
	if mutated(mutRemovalVolatile) {
		t.need = 0
	}
	t.step = throughDurable
	if l.c.journal.waitDurable(t.need, &t.w, false) {
		t.change(l)
		return
	}
	l.commitBegins(t.r)
}

// dropClean takes the clean copies of a region's blocks out of the index and notes which removals
// have to be durable before the backing device may change. Copies that may be there but are not loaded
// yet count as removed.
func (t *through) dropClean(l *Lane, k *rangeLock) {
	c, b := l.c, t.r.b
	s := c.index.stripeOf(b.id, k.first)
	s.mu.Lock()
	defer s.mu.Unlock()
	lacks := c.loading.mayLack()
	if c.loading.on.Load() {
		if c.loading.remember(b.id, k.first, k.last, t.marks > 0) {
			t.marks--
		}
	}
	if (b.cached.Load() != 0 || lacks) && !mutated(mutKeepClean) {
		lo, hi := k.first, k.last
		if b.pinned.Load() != 0 && t.r.Op == ReqWrite {
			lo, hi = t.keepPins(l, s, lo, hi)
		}
		stale, lsn := c.unmapRange(b, lo, hi, true)
		t.stale = t.stale || stale
		if lacks && lsn == 0 && lo <= hi && !mutated(mutLateCopyUnrecorded) {
			lsn = c.journal.append(unmapRecord(b, lo, hi, true))
		}
		if lsn != 0 {
			t.room--
			s.lastUnmap = lsn
		}
	}
	t.need = max(t.need, s.lastUnmap)
}

// unmapRange takes the blocks, or the clean ones among them, out of the index with one record,
// and reports whether dirty ones are left. The stripe is locked; room for the record is reserved.
func (c *Cache) unmapRange(b *Backing, first, last Block, cleanOnly bool) (left bool, lsn LSN) {
	var touched [regionBlocks]BucketID
	n := 0
	for blk := first; blk <= last; blk++ {
		k := makeKey(b.id, blk)
		e, ok := c.index.find(k)
		switch {
		case !ok:
		case cleanOnly && e.st&stDirty != 0:
			left = true
		default:
			touched[n] = c.bucketOf(e.slot)
			n++
			c.unmapEntry(b, k, e)
		}
	}
	if n == 0 || mutated(mutDiscardUnrecorded) && !cleanOnly {
		return left, 0
	}
	return left, c.journal.append(unmapRecord(b, first, last, cleanOnly), touched[:n]...)
}

func unmapRecord(b *Backing, first, last Block, cleanOnly bool) record {
	r := record{kind: recUnmap, backing: b.id, block: first, sum: uint32(last - first + 1)}
	if cleanOnly {
		r.flags = recCleanOnly
	}
	return r
}

// change starts the change of the backing device and the write of the copy.
func (t *through) change(l *Lane) {
	b := t.r.b
	t.step, t.waits, t.losses = throughChange, 1, noLosses
	off := b.dataOff + t.span.off
	switch {
	case t.r.Op == ReqWrite:
		t.waits++
		l.transfer(t, OpWrite, b.id, off, t.r, int(t.span.off-t.r.Off), int(t.span.len), 0)
		if t.cache {
			t.copy(l)
		}
	case t.r.Op == ReqDiscard && b.discards.Load():
		t.single(l, OpDiscard, off)
	case t.r.Op == ReqDiscard:
		t.stale = false // the backing device keeps its data, so dirty data stays too
	case b.zeroes.Load():
		t.single(l, OpZero, off)
	default:
		var mem []byte
		if mem, t.err = zeroes(); t.err != nil {
			break
		}
		for done := int64(0); done < t.span.len; done += zeroBytes {
			t.waits++
			l.moveFor(t.r, t, OpWrite, b.id, off+done, mem[:min(zeroBytes, t.span.len-done)], 0)
		}
	}
	t.opsDone(l)
}

// single starts one operation without data on the whole window.
func (t *through) single(l *Lane, kind OpKind, off int64) {
	t.waits++
	op := l.newOp(t)
	op.Kind, op.Dev, op.Off, op.Len = kind, t.r.b.id, off, t.span.len
	l.issue(op, t.r)
}

// copy starts the writes of the blocks to the SSD.
func (t *through) copy(l *Lane) {
	n := t.whole.to - t.whole.from
	st := t.r.way.stream
	if st == streamDirty {
		st = streamClean
	}
	var placed bool
	if t.runs, placed, t.cache = l.allocAll(st, n, t.runs); !t.cache {
		t.r.notCached()
		return
	}
	if !placed {
		t.r.misplaced(attrs.ReasonBusy)
	}
	if cap(t.sums) < n {
		t.sums = make([]uint32, n)
	}
	t.sums = t.sums[:n]
	first := t.span.first() + Block(t.whole.from)
	reqOff := int(int64(first)*BlockSize - t.r.Off)
	i := 0
	for _, run := range t.runs {
		for j := i; l.c.checksums && j < i+run.n; j++ {
			k := makeKey(t.r.b.id, first+Block(j))
			t.sums[j] = dataSum(t.r.Data[reqOff+j*BlockSize:][:BlockSize], uint64(k))
		}
		t.waits++
		l.transfer(t, OpWrite, SSD, l.c.geo.slotOff(run.first), t.r, reqOff+i*BlockSize,
			run.n*BlockSize, 0)
		i += run.n
	}
}

func (t *through) opDone(l *Lane, op *Op, err error) {
	switch {
	case op.Dev != SSD && err == nil:
		t.losses = min(t.losses, op.losses)
	case op.Kind == OpFlush && errors.Is(err, ErrLost):
		t.losses = 0 // no loss at all was the change safe from
	case err == nil:
	case op.Dev == SSD: // no copy then
		t.cache = false
		t.r.notCached()
		l.ssdWriteFailed(t.r.b, t.runs, err)
	case t.err == nil:
		t.err = err
	}
	t.opsDone(l)
}

func (t *through) opsDone(l *Lane) {
	if t.waits--; t.waits > 0 {
		return
	}
	b, lost := t.r.b, l.c.lost()
	if lost {
		t.cache = false // no record of a copy will be on the SSD
	}
	covered := t.cache && t.whole.from == 0 && t.whole.to == int(t.span.last()-t.span.first())+1
	if t.step == throughChange {
		t.wrote = b.changed(t.span.first(), t.span.last())
		if !covered {
			storeMax(&b.bare, t.wrote)
		}
	}
	// A loss that comes from here on counts this change among those that it may have taken. If it was
	// taken already, a full copy stays dirty, and without a copy the data is still at hand.
	if t.err == nil && !covered && t.losses != noLosses && t.losses != b.losses.Load() &&
		!mutated(mutLossUnrepeated) {
		if !t.cache {
			t.change(l)
			return
		}
		t.err = ErrLost
	}
	switch {
	case t.err != nil:
	case t.step == throughFlush:
		b.flushDone(t.wrote, t.losses)
	case t.stale && !covered && !mutated(mutStaleDroppedEarly):
		t.step, t.waits = throughFlush, 1
		op := l.newOp(t)
		op.Kind, op.Dev = OpFlush, b.id
		l.issue(op, t.r)
		return
	}
	if lost && !t.bare && t.err == nil && t.stale {
		// The SSD will not know that what it has is obsolete.
		t.late = true
		t.withoutSSD(l)
		return
	}
	switch {
	case t.err != nil || t.step != throughChange:
	case covered:
		t.r.copied = min(t.r.copied, t.losses)
	default:
		t.r.losses = min(t.r.losses, t.losses)
	}
	t.settle(l)
	t.finish(l)
}

// finish lets go of everything and answers, or begins the next window.
func (t *through) finish(l *Lane) {
	l.c.journal.unreserveChange(t.r.b, t.held, t.room)
	l.c.loading.giveBack(t.marks)
	t.held, t.room, t.marks = 0, 0, 0
	t.unlock(l)
	l.dropRuns(t.runs)
	t.runs = t.runs[:0]
	if t.step >= throughChange || t.late {
		t.r.touched |= touchedBacking
		t.r.reached |= reachedBacking
	}
	if t.err == nil && t.rest.len > 0 {
		t.window(l, t.rest)
		return
	}
	r, err := t.r, t.err
	t.r, t.next = nil, l.freeThroughs
	l.freeThroughs = t
	l.pieceDone(r, err)
}

// unlock lets go of the regions.
func (t *through) unlock(l *Lane) {
	for i := range t.locks {
		k := &t.locks[i]
		s := l.c.index.stripeOf(t.r.b.id, k.first)
		s.mu.Lock()
		s.release(k)
		s.mu.Unlock()
	}
}

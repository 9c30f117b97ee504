package cache

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// Presence says whether a backing device can be reached, and what becomes of requests meanwhile
// that need it. It is the daemon's to decide (Cache.SetPresence): the engine only says when an
// operation has failed in a way that a device's absence explains (Options.Suspect).
//
// While a device is absent
//   - reads of what is on the SSD are served, and in the writeback modes all writes go to the SSD, up
//     to the dirty limit: streams do not bypass it, nothing is written through;
//   - what needs the device waits, or fails: operations that had been begun are parked on their
//     lane, as they are (opList); changes of the device wait before they have had any effect, so that
//     they drop no clean copies for nothing (Backing.mu.waiting). Both are part of their requests:
//     nothing is allocated, and there are never more of them than requests in flight;
//   - writeback and flushes of the background pause.
type Presence uint32

// The presences.
const (
	Present Presence = iota
	// Holding: the device is absent, and what needs it waits for its return.
	Holding
	// Failing: it is absent, and what needs it fails at once with ErrAbsent.
	Failing
)

func (p Presence) String() string { return [...]string{"present", "holding", "failing"}[p] }

var (
	// ErrAbsent is the error of a request that needed a backing device that is gone.
	ErrAbsent = errors.New("the backing device is gone")
	// ErrLost is the error of a flush that a loss has overtaken: writes that were acknowledged
	// and not flushed may be gone with what the backing device had in its volatile cache.
	ErrLost = errors.New("the backing device may have lost writes that were not flushed yet")
)

// HoldForever is a Tunables.BackingHold without an end.
const HoldForever = time.Duration(math.MaxInt64)

const (
	defaultBackingHold = 30 * time.Second
	maxBackingHold     = 24 * time.Hour
)

// checkHold reports what cannot be a Tunables.BackingHold: on record it is whole seconds.
func checkHold(d time.Duration) error {
	if d != HoldForever && (d < 0 || d > maxBackingHold || d%time.Second != 0) {
		return fmt.Errorf("backing-loss: %v is not whole seconds up to 24h", d)
	}
	return nil
}

// On record, a hold is its seconds and 1; 0 is the default, as before there was a choice.
const holdForeverOnRecord = math.MaxUint32

func encodeHold(d time.Duration) uint32 {
	if d == HoldForever {
		return holdForeverOnRecord
	}
	return uint32(d/time.Second) + 1
}

func decodeHold(n uint32) time.Duration {
	switch n {
	case 0:
		return defaultBackingHold
	case holdForeverOnRecord:
		return HoldForever
	}
	return time.Duration(n-1) * time.Second
}

// explainsAbsence reports whether an error is one that operations on a device get that is gone. What
// drivers say of a bad sector is not; EIO may mean anything. A disk that Linux has removed has no sectors
// any more: reads are past its end, writes find no space, discards are invalid.
func explainsAbsence(err error) bool {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return errors.Is(err, io.ErrUnexpectedEOF)
	}
	switch e {
	case syscall.ENODEV, syscall.ENXIO, syscall.EIO, syscall.ENOLINK, syscall.ETIMEDOUT,
		syscall.EREMOTEIO, syscall.ESHUTDOWN, syscall.ENOTCONN, syscall.ENOSPC, syscall.EINVAL:
		return true
	}
	return false
}

// Presence is the present one.
func (b *Backing) Presence() Presence { return Presence(b.presence.Load()) }

// Hold is how long requests are to wait for the device when it is gone; see Tunables.BackingHold.
func (b *Backing) Hold() time.Duration { return time.Duration(b.hold.Load()) }

// SetPresence says that a backing device is gone, or is there again. A device that returns must be the
// one that it was, no operation on its old file may be under way (Lane.Quiet), and if it may have lost
// what was not flushed, Lost comes first. Any thread may call it.
func (c *Cache) SetPresence(id BackingID, p Presence) {
	b := c.backing(id)
	if b == nil {
		return
	}
	b.mu.Lock()
	b.presence.Store(uint32(p))
	var list waitList
	if p != Holding {
		list = b.mu.waiting.takeAll()
	}
	b.mu.Unlock()
	var err error
	if p == Failing {
		err = ErrAbsent
	}
	list.wakeAll(err)
	c.wakeLanes()
}

// BeginProbe numbers a probe of a device that is suspected to be gone; it comes before the probe.
func (c *Cache) BeginProbe(id BackingID) uint64 {
	if b := c.backing(id); b != nil {
		return b.probes.Add(1)
	}
	return 0
}

// Alive says that a probe has found the device to be there. Operations that had failed before the
// probe began are tried once more, and then their errors count.
func (c *Cache) Alive(id BackingID, probe uint64) {
	if b := c.backing(id); b != nil {
		storeMax(&b.judged, probe)
		c.wakeLanes()
	}
}

func (c *Cache) wakeLanes() {
	for _, l := range *c.lanes.Load() {
		l.d.Wake()
	}
}

// Lost makes dirty again what an absent device may have lost of what it had and was not flushed for.
// Where that has a copy on the SSD, it is written back once more. The others are like what any disk
// loses of its volatile cache with its power: the next flush says so.
func (c *Cache) Lost(id BackingID) {
	if b := c.backing(id); b != nil {
		c.lose(b, false)
	}
}

// noLosses is the count of losses of what none can take.
const noLosses = math.MaxUint64

// lose is Lost, and what follows from a failed flush: nobody knows what a device still has of the
// writes for which its flush failed. told says that a client learns of it anyhow, from a flush that has begun to tell.
//
// Whoever reads a pending block from the device compares Backing.losses, as it was before the index was asked, with what
// it is when the read has ended. If it differs, what came may be older than the block, and the index is asked again.
func (c *Cache) lose(b *Backing, told bool) {
	b.losing.Add(1)
	defer b.losing.Add(-1)
	b.mu.Lock()
	n := b.losses.Add(1)
	var pending []pendingSlot
	if covered := b.flushed.Load(); !mutated(mutLossForgotten) {
		b.mu.pending = slices.DeleteFunc(b.mu.pending, func(p pendingSlot) bool {
			if p.wrote <= covered {
				return false
			}
			pending = append(pending, p)
			return true
		})
	}
	b.mu.Unlock()
	if b.bare.Load() > b.flushed.Load() {
		b.bareLoss.Store(n)
		if !mutated(mutLossUnreported) {
			c.keepUntold(b, told)
		}
	}
	if len(pending) > 0 {
		b.order.doubt() // before the first of them may be overwritten
	}
	for _, p := range pending {
		s := c.index.stripeOf(b.id, p.k.block())
		s.mu.Lock()
		if e, ok := c.findIn(p.k, p.slot, p.life); ok && e.st&stPending != 0 {
			c.setState(b, e, e.st&^stPending)
		}
		s.mu.Unlock()
	}
	if len(pending) > 0 {
		b.losses.Add(1) // who has read the count in between may still have found one of them pending
	}
	if b.loose() > 0 {
		b.order.doubt()
	}
	if len(pending) > 0 {
		for _, p := range c.journal.losePending(b.id, pending) {
			if c.lost() { // else settleLoss finds it
				c.noteUnsafe(b, p.k, p.slot)
			}
		}
		b.dirtySince.CompareAndSwap(0, 1) // as old as can be: it had been written back already
		c.pokeBackground()
	}
}

func storeMax(v *atomic.Uint64, n uint64) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// awaitPresence reports whether a change of the backing device may begin. If it has to wait, its
// waiter runs when the device is there, or, with an error, when it is not waited for any more.
func (b *Backing) awaitPresence(w *waiter) (bool, error) {
	if b.Presence() == Present {
		return true, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.Presence() {
	case Holding:
		b.mu.waiting.push(w)
		return false, nil
	case Failing:
		return false, ErrAbsent
	}
	return true, nil
}

// opList is a queue of operations.
type opList struct{ head, tail *Op }

func (q *opList) push(op *Op) {
	op.next = nil
	if q.head == nil {
		q.head = op
	} else {
		q.tail.next = op
	}
	q.tail = op
}

func (q *opList) pop() *Op {
	op := q.head
	if op != nil {
		if q.head = op.next; q.head == nil {
			q.tail = nil
		}
		op.next = nil
	}
	return op
}

// reach reports whether an operation on a backing device may be submitted. One of a request that may
// not is parked; the background does not begin any.
func (l *Lane) reach(op *Op) bool {
	if op.Dev == SSD {
		return true
	}
	if b := l.c.backing(op.Dev); b != nil {
		op.losses = b.losses.Load()
		if op.owner != nil && b.Presence() != Present {
			l.park(op)
			return false
		}
	}
	l.flying[op.Dev]++
	return true
}

// covers reports whether a flush of a backing device that has succeeded counts. If the device was held for meanwhile
// nobody knows yet whether it still had what the flush was to cover.
func (l *Lane) covers(op *Op) bool {
	b := l.c.backing(op.Dev)
	return b == nil || b.Presence() == Present
}

// hold looks at an operation on a backing device that has failed. It reports whether that is not the
// last word: the operation is parked until it is known whether the device is there.
func (l *Lane) hold(op *Op, err error) bool {
	b := l.c.backing(op.Dev)
	if b == nil {
		return false
	}
	if op.Kind == OpFlush {
		f, told := op.done.(*flush)
		if told = told && f.r.Op == ReqFlush; told {
			f.tells(b)
		}
		l.c.lose(b, told)
	}
	if l.c.opts.Suspect == nil || !explainsAbsence(err) {
		return false
	}
	op.failed, op.ticket = err, b.probes.Load()+1 // before anybody begins one
	if b.Presence() == Present {
		l.c.opts.Suspect(b.id)
	} else {
		op.failed, op.again = nil, false
	}
	if op.owner == nil {
		return false
	}
	l.park(op)
	return true
}

// park lets an operation of a request wait for its device. It may have to fail, and not before its owner has returned.
func (l *Lane) park(op *Op) {
	l.parked.push(op)
	l.rest(op.owner)
	l.io[op.Dev].Held.Add(1)
	l.d.Wake()
}

// unpark goes on with parked operations for which it is known by now what to do. A flush that failed
// on a device that is there is not tried again: the second one may succeed without the first one's
// data. One that was overtaken by a loss has failed, too.
func (l *Lane) unpark() {
	if l.parked.head == nil {
		return
	}
	list := l.parked
	l.parked = opList{}
	for op := list.pop(); op != nil; op = list.pop() {
		b := op.owner.b
		switch p := b.Presence(); {
		case p != Present && op.owner.timed() && op.owner.Op == ReqRead:
			op.owner.track.deadline.late = true // what it waits for takes longer than any deadline
			l.endPark(op, ErrLate)
		case p == Holding:
			op.failed, op.again = nil, false // the absence explains it
			l.parked.push(op)
		case p == Failing && op.failed != nil:
			l.endPark(op, op.failed)
		case p == Failing:
			l.endPark(op, ErrAbsent)
		case op.failed != nil && b.judged.Load() < op.ticket:
			l.parked.push(op)
		case op.failed != nil && (op.again || op.Kind == OpFlush):
			l.endPark(op, op.failed)
		case op.Kind == OpFlush && op.losses < b.bareLoss.Load():
			if f, ok := op.done.(*flush); ok && f.r.Op == ReqFlush {
				f.tells(b)
				b.unreported.Store(false)
			}
			l.endPark(op, ErrLost)
		default:
			l.resume(op.owner)
			op.again = op.failed != nil
			op.failed, op.losses = nil, b.losses.Load()
			l.flying[b.id]++
			l.d.Submit(op)
		}
	}
}

// endPark ends an operation that was parked.
func (l *Lane) endPark(op *Op, err error) {
	l.resume(op.owner)
	l.conclude(op, err)
}

// Quiet reports whether the lane has no operation on the device under way: only then may its file be
// replaced. It is asked on the lane's thread while the device is absent, so that none begins.
func (l *Lane) Quiet(id BackingID) bool {
	l.unpark()
	return l.flying[id] == 0
}

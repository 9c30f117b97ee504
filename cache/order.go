package cache

import (
	"sync"
	"sync/atomic"
	"time"
)

// order makes the writeback of a backing device ordered: the device is at all times a consistent
// older image, as a disk with a volatile cache might be after a power cut.
//
// Writes are grouped in batches. A batch ends when a FLUSH or a write with FUA is acknowledged, at
// the newest record that is durable by then: what was acknowledged before the flush was issued is
// in it or in an earlier one, what is issued after the acknowledgement is in a later one. All of a
// batch is on the backing device, and flushed there, before anything of the next one is written.
// So the backing device has all of the batches 1 to n, and of batch n+1 any part.
//
// Each version of a block that a write makes is put in the queue in the order of its record. One
// that is overwritten before it was written back leaves the index but keeps its slot: it is a
// shadow. When a batch is on the backing device, it is settled: a record says so, its shadows are
// gone and its blocks are clean. Until then the journal's tail stays where it is, so that a start
// finds the queue again (orderrecover.go).
//
// A start that does not know that a batch was settled writes it again, older versions of its blocks
// included, since it may find it cut to smaller batches. Therefore nothing of the next one is
// written before that record is durable.
//
// What else changes the backing device (discards, what finds no room on the SSD, the other modes)
// waits until all that was queued before it is settled: see through.
//
// A backing device that loses what it was not flushed for may lack such changes. Of those that the SSD has, which
// are dirty again, the next flush promises that they stay. So they are written there again, and flushed, before
// anything that comes later, and not overwritten on the SSD before: the base is no longer there until then. So it is
// at a start, which does not know what the device had been flushed for.
type order struct {
	on   atomic.Bool // what is written is queued
	want atomic.Bool // the setting; the background lane makes on follow it
	from LSN         // older records are of another time in which the device was ordered

	max atomic.Int64 // blocks that may be in the queue
	age atomic.Int64 // nanoseconds that they may be there

	queued  atomic.Int64 // blocks in the index that are in the queue, bad ones not counted
	shadows atomic.Int64 // slots
	lost    atomic.Int64 // versions that the SSD could not return: the image lacks them
	broken  atomic.Int64 // times that the order was given up, see giveUp
	based   atomic.Bool  // the backing device has all that was dirty before the queue began, and has not lost it
	sound   atomic.Bool  // it is a consistent image
	noted   atomic.Bool  // that it is one, or was when the start found it, is on record: see orderRun.looksSound
	fresh   atomic.Bool  // the order began in this life: the backing device need not be an image yet

	mu struct {
		sync.Mutex
		ring     orderRing
		scan     uint64 // versions before it have been looked at by cut
		promised int64  // versions of writes under way
		allowed  int64  // versions that there may be
		room     waitList
		settled  waitList // until all before their LSN is settled
		last     LSN      // the newest settled record
		doubts   uint64   // times that based ended
	}
}

const (
	defaultOrderedAge = 30 * time.Second
	defaultOrderedMax = 256 << 20
	minOrderedAge     = time.Second
	maxOrderedAge     = 24 * time.Hour
	minOrderedMax     = 1 << 20
	maxOrderedMax     = 1 << 40
)

// live reports whether there is anything to do with the queue. It is cheap.
func (o *order) live() bool {
	return o.on.Load() || o.want.Load() || o.queued.Load()+o.shadows.Load() != 0
}

// admit promises room for n versions, or queues w, whose owner then asks again: while there are too
// many of them, or the oldest is too old. If the order has just ended nobody would wake it.
func (o *order) admit(c *Cache, n int, now int64, w *waiter) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.lost() {
		w.wake(ErrSSDLost)
		return false
	}
	have := o.mu.ring.len() + o.mu.promised
	if have > 0 && o.on.Load() && (have+int64(n) > o.mu.allowed || o.ageLocked(now) > o.age.Load()) {
		o.mu.room.push(w)
		return false
	}
	o.mu.promised += int64(n)
	return true
}

// release gives back what was promised and not used.
func (o *order) release(n int) {
	if n == 0 {
		return
	}
	o.mu.Lock()
	o.mu.promised -= int64(n)
	room := o.mu.room.takeAll()
	o.mu.Unlock()
	room.wakeAll(nil)
}

// wakeAll lets go of all who wait for the queue.
func (o *order) wakeAll(err error) {
	o.mu.Lock()
	wake := o.mu.room.takeAll()
	wake.join(o.mu.settled.takeAll())
	o.mu.Unlock()
	wake.wakeAll(err)
}

// waited reports whether somebody waits for the queue.
func (o *order) waited() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.room.head != nil || o.mu.settled.head != nil
}

// said is the newest settled record.
func (o *order) said() LSN {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.last
}

// unsettled reports whether the backing device lacks something that was queued. What the SSD cannot return counts:
// until its turn it stays in the index, and the device by itself is the older image, without a hole.
func (o *order) unsettled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.ring.len() != 0
}

// doubt notes that the backing device may lack blocks that were not queued, which are dirty by now. The stripe
// may be locked.
func (o *order) doubt() {
	o.mu.Lock()
	o.mu.doubts++
	o.based.Store(false)
	again := o.mu.settled.takeAll() // their locks may be in the way, see waitSettled
	o.mu.Unlock()
	again.wakeAll(nil)
}

// basedSince notes that all is there that was when the doubts were so many, and reports whether there are
// no more.
func (o *order) basedSince(doubts uint64) bool {
	o.mu.Lock()
	ok := o.mu.doubts == doubts
	o.based.Store(ok)
	again := o.mu.settled.takeAll()
	o.mu.Unlock()
	again.wakeAll(nil)
	return ok
}

// image reports whether the backing device is a consistent image, or may have been one when the start found it.
func (o *order) image() bool { return o.sound.Load() || !o.fresh.Load() }

// waitBased reports true if the backing device lacks nothing that is to be written there before anything else,
// or is no image yet. Otherwise w's owner asks again when that may have changed.
func (o *order) waitBased(c *Cache, w *waiter) bool {
	if o.based.Load() || !o.on.Load() {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if q := &o.mu.ring; o.based.Load() || !o.on.Load() || c.lost() || !o.image() && q.len() == 0 {
		return true
	}
	w.lsn = 0
	o.mu.settled.push(w)
	return false
}

// lacking is how many blocks an ordered device may have lost since it was an image, which are to be written
// there again, and flushed.
func (b *Backing) lacking() int64 {
	if o := &b.order; !o.on.Load() || !o.image() || o.based.Load() {
		return 0
	}
	return max(b.loose(), 0) + b.uncovered() + int64(b.losing.Load()) // some are not counted while they are being lost
}

// ageLocked is how long the oldest version has been in the queue; of one that an earlier process
// made it is not known, and said to be half of what is allowed.
func (o *order) ageLocked(now int64) int64 {
	q := &o.mu.ring
	if q.len() == 0 {
		return 0
	}
	at := q.at(q.head).at
	if at == 0 {
		return o.age.Load() / 2
	}
	return max(now-at, 1)
}

// cut ends the batch with the newest version whose record is before durable, which is the LSN up to
// which the journal was durable when it was written last. It is called before a flush is
// acknowledged.
func (o *order) cut(durable LSN) {
	if !o.live() || mutated(mutOrderUncut) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	q := &o.mu.ring
	i := max(o.mu.scan, q.head)
	for i != q.tail && q.lsn(i) < durable {
		i++
	}
	if o.mu.scan = i; i != q.head {
		q.endAt(i - 1)
	}
}

// waitSettled reports true if all versions with records before l are on the backing device; it
// then returns the record that says so, which has to be durable before the backing device is
// changed. Otherwise w's owner asks again when they are, or when the attempt failed; or it has to let go
// of its locks first, and to wait for the base.
func (o *order) waitSettled(c *Cache, l LSN, w *waiter) (said LSN, ok, retreat bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.lost() {
		w.wake(ErrSSDLost)
		return 0, false, false
	}
	if q := &o.mu.ring; q.len() != 0 && q.lsn(q.head) < l {
		if o.on.Load() && !o.based.Load() {
			return 0, false, true
		}
		w.lsn = l
		o.mu.settled.push(w)
		return 0, false, false
	}
	return o.mu.last, true, false
}

// oldest is the LSN of the oldest version, none if there is none.
func (o *order) oldest(none LSN) LSN {
	if o.queued.Load()+o.shadows.Load() == 0 && !o.on.Load() {
		return none
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if q := &o.mu.ring; q.len() != 0 {
		return q.lsn(q.head)
	}
	return none
}

// oldestQueued is the first record that a start needs to find the queues again. journal.mu may be
// held.
func (c *Cache) oldestQueued(none LSN) LSN {
	oldest := none
	if mutated(mutOrderTail) {
		return none
	}
	for _, b := range c.backings.Load() {
		if b != nil {
			oldest = min(oldest, b.order.oldest(none))
		}
	}
	return oldest
}

// orderLimit is how many versions the queue of a device may have: below dirty-max, at which writes go past the cache, each of
// them behind the whole queue.
func (c *Cache) orderLimit(t *Tunables) int64 {
	return max(1, min(t.OrderedMax/BlockSize, c.geo.slots()*int64(t.DirtyMax)/100*3/4))
}

// reserve gets the memory that setLimits needs, before the order is on record.
func (o *order) reserve(c *Cache, t *Tunables) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.ring.reserve(uint64(c.orderLimit(t)))
}

// setLimits takes over the tunables.
func (o *order) setLimits(c *Cache, t Tunables) {
	limit := c.orderLimit(&t)
	o.max.Store(limit)
	o.age.Store(int64(t.OrderedAge))
	o.mu.Lock()
	o.mu.allowed = limit
	if t.Ordered {
		o.mu.ring.grow(uint64(limit))
	}
	room := o.mu.room.takeAll()
	o.mu.Unlock()
	o.want.Store(t.Ordered)
	room.wakeAll(nil)
}

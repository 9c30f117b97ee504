package cache

import (
	"sync"
	"sync/atomic"
)

// bucketState is where a bucket is in its life: free → open → closed → freeing → free.
type bucketState uint8

const (
	bucketFree    bucketState = iota // nothing cached, may be opened
	bucketOpen                       // a lane fills it
	bucketClosed                     // full; on the FIFO
	bucketFreeing                    // emptied, its record is not durable yet
	bucketRetired                    // the SSD failed to write it: never used again until a restart
	bucketLoading                    // what it holds is not in the index yet, or not all of it
)

const noBucket = BucketID(1<<32 - 1)

// bucket is the state of one bucket. live and dirty count its entries and change with them,
// under their stripes' locks.
type bucket struct {
	live     atomic.Int32
	dirty    atomic.Int32 // dirty or pending
	pinned   atomic.Int32 // blocks that eviction keeps
	pins     atomic.Int32 // reads of its slots under way
	writing  atomic.Int32 // slots handed out whose writes are not finished, and one while open
	failed   atomic.Bool  // a write failed: retire it when it is empty
	emptying atomic.Bool  // eviction has chosen it: nothing in it can be pinned any more
	state    bucketState  // guarded by allocator.mu
	fifoNext BucketID     // guarded by allocator.mu
	// life counts how often it became free. Whoever remembers a slot for longer than its bucket is held by a
	// dirty block or a pin has to compare it: the slot may have been used again, and for the same block.
	life atomic.Uint32

	// Guarded by journal.mu: the first change that no summary of the bucket has, and the queue.
	dirtyLSN  LSN
	queueNext BucketID
}

// bucketQueue lists the buckets whose summary is behind, the longest behind first. All of it is
// guarded by journal.mu.
type bucketQueue struct {
	head, tail BucketID
	// writing is the oldest change that the checkpoint under way is about to write, 0 if none.
	writing LSN
}

// note marks the bucket's summary as behind from that record on.
func (q *bucketQueue) note(all []bucket, b BucketID, l LSN) {
	k := &all[b]
	if k.dirtyLSN != 0 {
		return
	}
	k.dirtyLSN, k.queueNext = l, noBucket
	if q.head == noBucket {
		q.head = b
	} else {
		all[q.tail].queueNext = b
	}
	q.tail = b
}

// noteFirst marks summaries as behind from a record on that is older than all others, also those that
// are in the queue.
func (q *bucketQueue) noteFirst(all []bucket, ids []BucketID, l LSN) {
	if len(ids) == 0 {
		return
	}
	first := make(map[BucketID]bool, len(ids))
	for _, b := range ids {
		first[b] = true
	}
	var rest []BucketID
	for b := q.head; b != noBucket; b = all[b].queueNext {
		if !first[b] {
			rest = append(rest, b)
		}
	}
	*q = bucketQueue{head: noBucket, tail: noBucket, writing: q.writing}
	for _, b := range ids {
		all[b].dirtyLSN = 0
		q.note(all, b, l)
	}
	for _, b := range rest {
		behind := all[b].dirtyLSN
		all[b].dirtyLSN = 0
		q.note(all, b, behind)
	}
}

// take moves up to n buckets from the queue to the checkpoint that is about to write them.
func (q *bucketQueue) take(all []bucket, n int) (ids []BucketID) {
	for q.head != noBucket && len(ids) < n {
		b := q.head
		if q.writing == 0 {
			q.writing = all[b].dirtyLSN
		}
		all[b].dirtyLSN = 0
		q.head = all[b].queueNext
		ids = append(ids, b)
	}
	return ids
}

// oldest is the first record that replay needs; none if all summaries are written.
func (q *bucketQueue) oldest(all []bucket, none LSN) LSN {
	if q.writing != 0 {
		return q.writing
	}
	if q.head != noBucket {
		return all[q.head].dirtyLSN
	}
	return none
}

// allocator hands out buckets. Slots of an open bucket are its lane's to hand out.
type allocator struct {
	c *Cache

	freeCount atomic.Int32
	retired   atomic.Int32
	extra     atomic.Int32 // open buckets of streams that can be done without

	mu struct {
		sync.Mutex
		free     []BucketID // a queue: the longest free first
		fifoHead BucketID   // closed buckets, the oldest first
		fifoTail BucketID
		closed   int
	}
}

// addFree returns an empty bucket whose emptiness is durable.
func (a *allocator) addFree(b BucketID) {
	a.mu.Lock()
	k := &a.c.buckets[b]
	k.emptying.Store(false)
	k.life.Add(1)
	if k.failed.Load() {
		k.state = bucketRetired
		a.retired.Add(1)
	} else {
		k.state = bucketFree
		a.mu.free = append(a.mu.free, b)
		a.freeCount.Store(int32(len(a.mu.free)))
	}
	a.mu.Unlock()
}

// unwriting ends n writes of a bucket's slots; the last one closes it.
func (c *Cache) unwriting(b BucketID, n int) {
	if c.buckets[b].writing.Add(-int32(n)) != 0 {
		return
	}
	a := &c.alloc
	a.mu.Lock()
	a.pushFIFO(b)
	a.mu.Unlock()
}

// pushFIFO puts a closed bucket at the young end. a.mu is held.
func (a *allocator) pushFIFO(b BucketID) {
	k := &a.c.buckets[b]
	k.state, k.fifoNext = bucketClosed, noBucket
	if a.mu.fifoHead == noBucket {
		a.mu.fifoHead = b
	} else {
		a.c.buckets[a.mu.fifoTail].fifoNext = b
	}
	a.mu.fifoTail = b
	a.mu.closed++
}

// adopt puts closed buckets that are older than all others on the FIFO, in their order.
func (a *allocator) adopt(ids []BucketID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	young, tail := a.mu.fifoHead, a.mu.fifoTail
	a.mu.fifoHead, a.mu.fifoTail = noBucket, noBucket
	for _, b := range ids {
		a.pushFIFO(b)
	}
	switch {
	case young == noBucket:
	case a.mu.fifoHead == noBucket:
		a.mu.fifoHead, a.mu.fifoTail = young, tail
	default:
		a.c.buckets[a.mu.fifoTail].fifoNext, a.mu.fifoTail = young, tail
	}
}

// popFIFO takes the oldest closed bucket.
func (a *allocator) popFIFO() BucketID {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.mu.fifoHead
	if b != noBucket {
		a.mu.fifoHead = a.c.buckets[b].fifoNext
		a.mu.closed--
	}
	return b
}

// take takes a closed bucket off the FIFO, wherever it is there.
func (a *allocator) take(b BucketID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	all, last := a.c.buckets, noBucket
	for at := a.mu.fifoHead; at != noBucket; last, at = at, all[at].fifoNext {
		if at != b {
			continue
		}
		if last == noBucket {
			a.mu.fifoHead = all[b].fifoNext
		} else {
			all[last].fifoNext = all[b].fifoNext
		}
		if a.mu.fifoTail == b {
			a.mu.fifoTail = last
		}
		a.mu.closed--
		return true
	}
	return false
}

// oldest fills ids with the oldest closed buckets and returns how many there are.
func (a *allocator) oldest(ids []BucketID) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for at := a.mu.fifoHead; at != noBucket && n < len(ids); at = a.c.buckets[at].fifoNext {
		ids[n] = at
		n++
	}
	return n
}

// pushFront returns a bucket that popFIFO took, as the oldest.
func (a *allocator) pushFront(b BucketID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := &a.c.buckets[b]
	k.state, k.fifoNext = bucketClosed, a.mu.fifoHead
	if a.mu.fifoHead == noBucket {
		a.mu.fifoTail = b
	}
	a.mu.fifoHead = b
	a.mu.closed++
}

// pushBack returns a bucket that popFIFO took, as the youngest.
func (a *allocator) pushBack(b BucketID) {
	a.mu.Lock()
	a.pushFIFO(b)
	a.mu.Unlock()
}

func (c *Cache) bucketOf(s Slot) BucketID {
	return BucketID(int64(s) / c.geo.slotsPerBucket())
}

// lifeOf is the present life of the slot's bucket. It does not end while a block is in the slot.
func (c *Cache) lifeOf(s Slot) uint32 { return c.buckets[c.bucketOf(s)].life.Load() }

// findIn looks a block up that was in the slot in that life of its bucket, and reports whether it still is. Then
// the slot has what it had: it is written once in a life. The stripe is locked.
func (c *Cache) findIn(k key, s Slot, life uint32) (e entry, ok bool) {
	e, ok = c.index.find(k)
	return e, ok && e.slot == s && (c.lifeOf(s) == life || mutated(mutLivesConfused))
}

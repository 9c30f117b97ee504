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
)

const noBucket = BucketID(1<<32 - 1)

// bucket is the state of one bucket. live and dirty count its entries and change with them,
// under their stripes' locks.
type bucket struct {
	live     atomic.Int32
	dirty    atomic.Int32 // dirty or pending
	pins     atomic.Int32 // reads of its slots under way
	writing  atomic.Int32 // slots handed out whose writes are not finished, and one while open
	failed   atomic.Bool  // a write failed: retire it when it is empty
	state    bucketState  // guarded by allocator.mu
	fifoNext BucketID     // guarded by allocator.mu

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

// stream separates data by its expected lifetime: each lane fills one bucket per stream.
type stream uint8

const (
	streamDirty stream = iota // written by the user
	streamClean               // copied from the backing device
	numStreams
)

// allocator hands out buckets. Slots of an open bucket are its lane's to hand out.
type allocator struct {
	c *Cache

	freeCount atomic.Int32

	mu struct {
		sync.Mutex
		free     []BucketID // a queue: the longest free first
		fifoHead BucketID   // closed buckets, the oldest first
		fifoTail BucketID
		closed   int
	}
}

// openBucket is a lane's open bucket of one stream.
type openBucket struct {
	id   BucketID // noBucket if none
	next int64    // slots handed out
}

// alloc hands out up to n slots that lie side by side, fewer at the end of a bucket, none if no
// bucket is free. The caller answers for them with written or dropped.
func (l *Lane) alloc(st stream, n int) (first Slot, got int) {
	o, c := &l.open[st], l.c
	if o.id == noBucket {
		o.id = c.alloc.takeFree()
		if o.id == noBucket {
			return noSlot, 0
		}
		o.next = 0
	}
	per := c.geo.slotsPerBucket()
	k := &c.buckets[o.id]
	got = int(min(int64(n), per-o.next))
	first = Slot(int64(o.id)*per + o.next)
	o.next += int64(got)
	k.writing.Add(int32(got))
	if o.next == per {
		c.unwriting(o.id, 1) // what openness held
		o.id = noBucket
	}
	return first, got
}

// takeFree opens the bucket that has been free the longest.
func (a *allocator) takeFree() BucketID {
	a.mu.Lock()
	if len(a.mu.free) == 0 {
		a.mu.Unlock()
		a.c.pokeBackground()
		return noBucket
	}
	b := a.mu.free[0]
	a.mu.free = a.mu.free[1:]
	a.c.buckets[b].state = bucketOpen
	a.c.buckets[b].writing.Store(1)
	low := len(a.mu.free) < a.c.reserve
	a.freeCount.Store(int32(len(a.mu.free)))
	a.mu.Unlock()
	if low {
		a.c.pokeBackground()
	}
	return b
}

// addFree returns an empty bucket whose emptiness is durable.
func (a *allocator) addFree(b BucketID) {
	a.mu.Lock()
	k := &a.c.buckets[b]
	if k.failed.Load() {
		k.state = bucketRetired
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

// pushBack returns a bucket that popFIFO took, as the youngest.
func (a *allocator) pushBack(b BucketID) {
	a.mu.Lock()
	a.pushFIFO(b)
	a.mu.Unlock()
}

func (c *Cache) bucketOf(s Slot) BucketID {
	return BucketID(int64(s) / c.geo.slotsPerBucket())
}

// slotRun hands out the slots of one write: pieces of buckets.
type slotRun struct {
	first Slot
	n     int
}

// allocAll hands out n slots in pieces, or none at all.
func (l *Lane) allocAll(st stream, n int, runs []slotRun) ([]slotRun, bool) {
	runs = runs[:0]
	for n > 0 {
		s, got := l.alloc(st, n)
		if got == 0 {
			l.dropRuns(runs)
			return runs[:0], false
		}
		runs = append(runs, slotRun{s, got})
		n -= got
	}
	return runs, true
}

// dropRuns ends the writes of slots, mapped by now or never to be.
func (l *Lane) dropRuns(runs []slotRun) {
	for _, r := range runs {
		l.c.unwriting(l.c.bucketOf(r.first), r.n)
	}
}

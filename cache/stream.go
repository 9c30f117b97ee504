package cache

import "ubcache/attrs"

// stream separates data by its expected lifetime: each lane fills one bucket per stream. The first
// two are always there. The others get a bucket while there are buckets to spare; without one
// their data goes to the first two.
type stream uint8

const (
	streamDirty  stream = iota // written by the user
	streamClean                // copied from the backing device
	streamPinned               // what a client pins, and what eviction moves
	streamShort                // written by the user, who says how long the data will live
	streamMedium
	streamLong
	streamExtreme
	numStreams
)

// streamOf is the stream of each lifetime.
var streamOf = [...]stream{
	attrs.LifetimeNone: streamDirty, attrs.LifetimeShort: streamShort,
	attrs.LifetimeMedium: streamMedium, attrs.LifetimeLong: streamLong,
	attrs.LifetimeExtreme: streamExtreme,
}

// base is the stream that stands in for st.
func (st stream) base() stream {
	switch st {
	case streamClean, streamPinned:
		return streamClean
	}
	return streamDirty
}

// openBucket is a lane's open bucket of one stream.
type openBucket struct {
	id   BucketID // noBucket if none
	next int64    // slots handed out
}

// maxExtra bounds the open buckets of all lanes for streams that can be done without. An open
// bucket cannot be evicted, and its lane may never fill it.
func (c *Cache) maxExtra() int32 { return int32(c.geo.Buckets / 16) }

// opened makes sure that the lane has an open bucket for the stream and reports whether it has.
// forMove is for eviction, which may take the last free bucket.
func (l *Lane) opened(st stream, forMove bool) bool {
	o, a := &l.open[st], &l.c.alloc
	if o.id != noBucket {
		return true
	}
	if st > streamClean && !forMove &&
		(a.extra.Load() >= l.c.maxExtra() || int(a.freeCount.Load()) <= l.c.reserve/2+1) {
		return false
	}
	if o.id = a.takeFree(forMove); o.id == noBucket {
		return false
	}
	o.next = 0
	if st > streamClean {
		a.extra.Add(1)
	}
	return true
}

// closeBucket ends what openness held of the stream's bucket.
func (l *Lane) closeBucket(st stream) {
	o := &l.open[st]
	if o.id == noBucket {
		return
	}
	l.c.unwriting(o.id, 1)
	o.id = noBucket
	if st > streamClean {
		l.c.alloc.extra.Add(-1)
	}
}

// choose finds a stream of the lane that has a slot: st, or the one that stands in for it, or any:
// a place among strangers is better than none. It is numStreams if no bucket is free.
func (l *Lane) choose(st stream) stream {
	if l.opened(st, false) {
		return st
	}
	if base := st.base(); base != st && l.opened(base, false) {
		return base
	}
	for o := range numStreams {
		if l.open[o].id != noBucket {
			return o
		}
	}
	return numStreams
}

// alloc hands out up to n slots of an open stream that lie side by side, fewer at the end of its
// bucket. The caller answers for them with written or dropped.
func (l *Lane) alloc(st stream, n int) (first Slot, got int) {
	o, c := &l.open[st], l.c
	per := c.geo.slotsPerBucket()
	k := &c.buckets[o.id]
	got = int(min(int64(n), per-o.next))
	first = Slot(int64(o.id)*per + o.next)
	o.next += int64(got)
	k.writing.Add(int32(got))
	if o.next == per {
		l.closeBucket(st)
	}
	return first, got
}

// slotRun is slots of one write: a piece of a bucket.
type slotRun struct {
	first Slot
	n     int
}

// allocAll hands out n slots in pieces, or none at all. placed says that they are of the stream
// that was asked for.
func (l *Lane) allocAll(st stream, n int, runs []slotRun) (_ []slotRun, placed, ok bool) {
	runs, placed = runs[:0], true
	for n > 0 {
		at := l.choose(st)
		if at == numStreams {
			l.dropRuns(runs)
			return runs[:0], false, false
		}
		placed = placed && at == st
		s, got := l.alloc(at, n)
		runs = append(runs, slotRun{s, got})
		n -= got
	}
	return runs, placed, true
}

// dropRuns ends the writes of slots, mapped by now or never to be.
func (l *Lane) dropRuns(runs []slotRun) {
	for _, r := range runs {
		l.c.unwriting(l.c.bucketOf(r.first), r.n)
	}
}

// takeFree opens the bucket that has been free the longest. The last one is for eviction: to empty a bucket it may
// have to move what is pinned there, or will be by the time that none is free.
func (a *allocator) takeFree(forMove bool) BucketID {
	a.mu.Lock()
	n := len(a.mu.free)
	if n == 0 || n == 1 && !forMove && (a.c.pins.all.Load() > 0 || a.mu.closed > 0) {
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

package cache

import (
	"sync"
	"sync/atomic"
)

// pins counts what eviction keeps. A pin is a bit of the block's entry, its journal record and its
// summary, so it outlives a restart. A write that leaves a copy in the cache takes it along. What
// takes the block out of the cache ends it: a discard, a write in mode none, a detach, a copy that
// the SSD fails, and eviction.lastResort.
type pins struct {
	all atomic.Int64 // blocks, of all backing devices
	// mu makes looking at the quota and pinning one step. Whoever holds it has a stripe locked.
	mu sync.Mutex
}

// maxPins is how much may be pinned in all, in blocks: half of the cache, as far as it is in use. Eviction can always find
// buckets of which less than that is pinned; see policy.PinnedStays.
func (c *Cache) maxPins() int64 {
	return (c.geo.slots() - int64(c.alloc.retired.Load())*c.geo.slotsPerBucket()) / 2
}

// pinRoom is how many more blocks of the backing device may be pinned.
func (c *Cache) pinRoom(b *Backing) int64 {
	return min(b.pinMax.Load()-b.pinned.Load(), c.maxPins()-c.pins.all.Load())
}

// pinResult is what became of a block that was to be pinned.
type pinResult uint8

const (
	pinDone  pinResult = iota
	pinHad             // it was pinned before
	pinQuota           // there is no room for it
	pinGone            // it is not cached, or about to be evicted
)

// pinBlock pins a block. The stripe is locked; room for one record is reserved, and used if the
// block was not pinned and is now.
func (c *Cache) pinBlock(b *Backing, k key) pinResult {
	e, ok := c.index.find(k)
	switch {
	case !ok || e.st&stBad != 0 || e.st&(stLeave|stPending) == stLeave|stPending:
		return pinGone // the last: perhaps the SSD has failed it, and it goes with the next flush
	case e.st&stPinned != 0:
		return pinHad
	}
	if r := c.markPinned(b, e); r != pinDone {
		return r
	}
	e.st = e.st&^stLeave | stPinned
	c.journal.append(mapRecord(k, e), c.bucketOf(e.slot))
	return pinDone
}

// markPinned changes the state of an entry that is not pinned. The stripe is locked.
func (c *Cache) markPinned(b *Backing, e entry) pinResult {
	c.pins.mu.Lock()
	defer c.pins.mu.Unlock()
	if c.pinRoom(b) <= 0 {
		return pinQuota
	}
	st := e.st&^stLeave | stPinned
	c.setState(b, e, st)
	// Eviction marks the bucket first and then looks for pinned blocks, so one sees the other.
	if c.buckets[c.bucketOf(e.slot)].emptying.Load() {
		e.st, st = st, e.st
		c.setState(b, e, st)
		return pinGone
	}
	return pinDone
}

// mapPinned is mapBlock for a copy of a block that was pinned until its change began; the pin comes
// back if the quota still has room for it. The stripe is locked.
func (c *Cache) mapPinned(b *Backing, s *stripe, k key, e entry) {
	c.pins.mu.Lock()
	defer c.pins.mu.Unlock()
	if c.pinRoom(b) > 0 {
		e.st |= stPinned
	}
	c.mapBlock(b, s, k, e)
}

// unpinBlock ends a pin and reports whether there was one. The stripe is locked; room for one
// record is reserved, and used if it reports true.
func (c *Cache) unpinBlock(b *Backing, k key) bool {
	e, ok := c.index.find(k)
	if !ok || e.st&stPinned == 0 {
		return false
	}
	c.setState(b, e, e.st&^stPinned)
	e.st &^= stPinned
	c.journal.append(mapRecord(k, e), c.bucketOf(e.slot))
	return true
}

// anyPinned reports whether a block of the span is pinned.
func (l *Lane) anyPinned(b *Backing, s span) bool {
	return b.pinned.Load() != 0 && l.c.survey(b, s).Pinned != 0
}

// keepPins deals with the pinned clean blocks of a region [lo, hi] that a write past the cache is
// about to change, before they are taken out of the index: it notes those that the write covers,
// so that the copy inherits the pin. Of those at its ends that it covers in part it only takes the
// sectors; they stay where they are, and what is returned is the range without them. The stripe is
// locked.
func (t *through) keepPins(l *Lane, s *stripe, lo, hi Block) (Block, Block) {
	base := t.span.first()
	from, to := base+Block(max(t.whole.from, 0)), base+Block(max(t.whole.to, 0))
	clean := func(blk Block) bool {
		e, ok := l.c.index.find(makeKey(t.r.b.id, blk))
		return ok && e.st&stPinned != 0 && e.st&stDirty == 0
	}
	if lo == base && lo < from && clean(lo) {
		t.dropSectors(l, s, lo)
		lo++
	}
	if hi >= lo && hi == t.span.last() && hi >= to && clean(hi) {
		t.dropSectors(l, s, hi)
		if hi == 0 {
			return 1, 0
		}
		hi--
	}
	for blk := max(lo, from); t.cache && blk <= hi && blk < to; blk++ {
		if clean(blk) {
			i := int(blk - base)
			t.pins[i/64] |= 1 << (i % 64)
		}
	}
	return lo, hi
}

// clearPins makes room for the pins of the window's blocks.
func (t *through) clearPins() {
	n := int(t.span.last()-t.span.first())/64 + 1
	if cap(t.pins) < n {
		t.pins = make([]uint64, n)
	}
	t.pins = t.pins[:n]
	clear(t.pins)
}

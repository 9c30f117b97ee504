package cache

import (
	"time"

	"ubcache/policy"
)

// eviction keeps a reserve of free buckets. A bucket is emptied in memory under one record, and
// becomes free when that is durable and no read of its slots is under way.
type eviction struct {
	bg      *background
	w       waiter
	running bool
	freeing []BucketID
	last    LSN // of the records that emptied them
	trims   int
	retry   int64 // not before then, after a search that found nothing
	move    mover
	stuck   BucketID             // the last one that the mover found no room for
	aside   []BucketID           // of a search
	over    [tenantRows + 1]bool // tenants that have more than their share
}

const (
	evictBatch = 32
	// maxTrims bounds the discards under way: an SSD that does them one by one must not seem to hang for them.
	maxTrims = 16
	// evictPause is between searches of a cache in which everything is dirty.
	evictPause = int64(20 * time.Millisecond)
)

// start empties buckets if too few are free.
func (v *eviction) start() {
	c, l := v.bg.l.c, v.bg.l
	if v.running || c.loading.on.Load() {
		return
	}
	if len(v.freeing) > 0 { // emptied, but pinned at the time
		v.release(l)
	}
	free := int(c.alloc.freeCount.Load()) + len(v.freeing) + v.trims
	if free >= c.reserve || c.closing.Load() { // the next start needs no reserve, and has the failed buckets back
		return
	}
	now := l.d.Now()
	if now < v.retry {
		return
	}
	anyOver := c.tenants.over(&v.over)
	var last LSN
	for range min(evictBatch, 2*c.reserve-free) {
		b := noBucket
		if anyOver {
			b = v.pickOver()
		}
		if b == noBucket {
			b = v.pick()
		}
		if b == noBucket {
			v.retry = now + evictPause
			break
		}
		if !c.journal.reserve(1) {
			v.spare(b)
			break
		}
		last = v.empty(b)
		v.freeing = append(v.freeing, b)
	}
	if last == 0 {
		return
	}
	v.running, v.last = true, last
	v.w = waiter{lane: l, owner: v}
	if mutated(mutBucketReused) || c.journal.waitDurable(last, &v.w, false) {
		v.run(l, nil)
	}
}

// overSearch bounds the search for buckets of tenants that are over their share.
const overSearch = 64

// pickOver takes the bucket off the FIFO, of the oldest ones, that such tenants have most of.
func (v *eviction) pickOver() BucketID {
	c := v.bg.l.c
	var ids [overSearch]BucketID
	best, most := noBucket, 0
	for _, b := range ids[:c.alloc.oldest(ids[:])] {
		if c.buckets[b].dirty.Load() > 0 || c.buckets[b].pinned.Load() > 0 {
			continue
		}
		if w := v.view(b); policy.OverShare(w) && w.Over > most {
			best, most = b, w.Over
		}
	}
	if best == noBucket || !c.alloc.take(best) {
		return noBucket
	}
	if !c.claim(best) {
		c.alloc.pushBack(best)
		return noBucket
	}
	return best
}

// maxAside bounds the buckets that a search leaves at the old end for the mover.
const maxAside = 32

// pick takes the bucket that the policy wants to go off the FIFO, claimed. One with pinned blocks
// is given to the mover, if that is free, and found again without them.
func (v *eviction) pick() BucketID {
	c := v.bg.l.c
	c.alloc.mu.Lock()
	closed := c.alloc.mu.closed
	c.alloc.mu.Unlock()
	passed, dirty, kept := 0, 0, 0
	v.stuck, v.aside = noBucket, v.aside[:0]
	defer v.putAside()
	for range 2*closed + 1 {
		b := c.alloc.popFIFO()
		if b == noBucket {
			break
		}
		if c.buckets[b].dirty.Load() > 0 {
			c.alloc.pushBack(b)
			if dirty++; dirty > closed {
				break
			}
			continue
		}
		view := v.view(b)
		view.Passed, view.Closed = passed, closed-kept
		if policy.PinnedStays(view) {
			c.alloc.pushBack(b)
			if kept++; kept > closed {
				break
			}
			continue
		}
		if view.Live > 0 && !v.bg.evictor.Evict(view) {
			passed++
			v.cool(b)
			c.alloc.pushBack(b)
			continue
		}
		if c.claim(b) {
			v.bg.pressed = false
			return b
		}
		if v.move.start(b) {
			continue
		}
		kept++
		if len(v.aside) < maxAside {
			v.aside = append(v.aside, b)
		} else if c.alloc.pushBack(b); kept > closed {
			break
		}
	}
	if dirty > 0 && !v.hopes() {
		dirty = 0
	}
	return v.lastResort(dirty)
}

// putAside returns what waits for the mover to where it was.
func (v *eviction) putAside() {
	for i := len(v.aside) - 1; i >= 0; i-- {
		v.bg.l.c.alloc.pushFront(v.aside[i])
	}
	v.aside = v.aside[:0]
}

// lastResort is for a search that found nothing. Dirty buckets need writeback, pinned ones the
// mover. Should that lack a free bucket to move to, and there be nothing else to hope for, then the
// pins of one bucket go: they must never stop the cache.
func (v *eviction) lastResort(dirty int) BucketID {
	c := v.bg.l.c
	v.bg.pressed = dirty > 0 || !v.move.busy
	v.putAside()
	b := v.stuck
	if b == noBucket || dirty > 0 || v.move.busy || len(v.freeing)+v.trims > 0 || !c.alloc.take(b) {
		return noBucket
	}
	c.buckets[b].emptying.Store(true)
	return b
}

// hopes reports whether some dirty bucket will be clean, as far as can be seen.
func (v *eviction) hopes() bool {
	for _, b := range v.bg.l.c.backings.Load() {
		if b == nil || b.Presence() != Present {
			continue
		}
		if b.order.live() || b.Remaining() > 0 && v.bg.l.d.Now() >= v.bg.wb.pause[b.id] {
			return true
		}
	}
	return false
}

// claim makes sure that nothing in the bucket is pinned, nor will be, until it is free or spared.
func (c *Cache) claim(b BucketID) bool {
	k := &c.buckets[b]
	k.emptying.Store(true)
	if k.pinned.Load() == 0 {
		return true
	}
	k.emptying.Store(false)
	return false
}

// spare gives a claimed bucket back.
func (v *eviction) spare(b BucketID) {
	v.bg.l.c.buckets[b].emptying.Store(false)
	v.bg.l.c.alloc.pushBack(b)
}

// view is what the policy is told of a bucket.
func (v *eviction) view(b BucketID) policy.BucketView {
	c := v.bg.l.c
	k := &c.buckets[b]
	w := policy.BucketView{
		Slots: int(c.geo.slotsPerBucket()), Live: int(k.live.Load()), Pinned: int(k.pinned.Load()),
	}
	if w.Live == 0 {
		return w
	}
	c.slotsOf(b, func(s Slot) {
		key, st := c.index.at(s)
		switch {
		case key == 0:
		case v.over[c.index.ownerOf(s)]:
			w.Over++
		case st&stRefMax != 0:
			w.Hot++
		}
	})
	return w
}

// slots calls f with every slot of the bucket.
func (c *Cache) slotsOf(b BucketID, f func(Slot)) {
	per := c.geo.slotsPerBucket()
	for i := range per {
		f(Slot(int64(b)*per + i))
	}
}

// locked calls f with each entry of the bucket, its stripe locked.
func (c *Cache) locked(b BucketID, f func(st *stripe, k key, e entry)) {
	c.slotsOf(b, func(s Slot) {
		k, _ := c.index.at(s)
		if k == 0 {
			return
		}
		st := c.index.stripeOf(k.backing(), k.block())
		st.mu.Lock()
		if now, state := c.index.at(s); now == k {
			f(st, k, entry{slot: s, st: state, sum: c.index.sumAt(s)})
		}
		st.mu.Unlock()
	})
}

// cool makes the bucket's blocks count as not hit.
func (v *eviction) cool(b BucketID) {
	c := v.bg.l.c
	c.locked(b, func(_ *stripe, _ key, e entry) {
		if e.st&stRefMax != 0 {
			c.index.setState(e.slot, e.st&^stRefMax)
		}
	})
}

// empty takes the bucket's blocks out of the index. The record comes first, so that whoever finds
// a block gone finds the LSN to wait for; no entry of the bucket can become dirty, for new slots
// are only handed out of open buckets.
func (v *eviction) empty(b BucketID) LSN {
	c, l := v.bg.l.c, v.bg.l
	lsn := c.journal.append(record{kind: recFree, slot: uint32(b)}, b)
	c.locked(b, func(st *stripe, k key, e entry) {
		c.unmapEntry(c.backing(k.backing()), k, e)
		st.lastUnmap = max(st.lastUnmap, lsn)
		l.stats.EvictedBlocks.Add(1)
		if e.st&stPinned != 0 { // only for lack of anything else
			l.stats.PinsGivenUp.Add(1)
		}
	})
	c.alloc.mu.Lock()
	c.buckets[b].state = bucketFreeing
	c.alloc.mu.Unlock()
	l.stats.EvictedBuckets.Add(1)
	return lsn
}

// run goes on when the records are durable.
func (v *eviction) run(l *Lane, err error) {
	v.running = false
	if err != nil {
		return // the next start tries again: release checks that the records are durable
	}
	v.release(l)
}

// release frees the emptied buckets that nobody reads any more.
func (v *eviction) release(l *Lane) {
	c := l.c
	if !c.journal.isDurable(v.last) && !mutated(mutBucketReused) {
		return
	}
	keep := v.freeing[:0]
	for _, b := range v.freeing {
		switch {
		case c.buckets[b].pins.Load() > 0, c.opts.Discard && v.trims >= maxTrims:
			keep = append(keep, b)
		case c.opts.Discard:
			op := l.newOp(v)
			op.Kind, op.Dev, op.arg = OpDiscard, SSD, uint32(b)
			op.Off, op.Len = c.geo.slotOff(Slot(int64(b)*c.geo.slotsPerBucket())), c.geo.BucketBytes
			v.trims++
			l.send(op)
		default:
			c.alloc.addFree(b)
		}
	}
	v.freeing = keep
}

// opDone ends the discard of a bucket, which is free whatever came of it.
func (v *eviction) opDone(l *Lane, op *Op, _ error) {
	v.trims--
	l.c.alloc.addFree(BucketID(op.arg))
	if len(v.freeing) > 0 && !v.running && !l.c.lost() {
		v.release(l)
	}
}

package cache

// settle brings the index in line with the backing device.
func (t *through) settle(l *Lane) {
	c, b := l.c, t.r.b
	for i := range t.locks {
		k := &t.locks[i]
		s := c.index.stripeOf(b.id, k.first)
		s.mu.Lock()
		switch {
		case t.bare && t.err == nil:
			t.dropBare(l, k)
		case t.bare:
			t.leaveBare(l, k)
		case t.err != nil:
			c.keepDirty(b, k.first, k.last)
		default:
			t.mapCopy(l, s, k)
			if t.stale {
				t.dropStale(l, s, k)
			}
		}
		s.mu.Unlock()
	}
}

// dropStale takes out what is dirty and was not mapped anew; of a block that the change covers in
// part, it takes the sectors. The stripe is locked.
func (t *through) dropStale(l *Lane, s *stripe, k *rangeLock) {
	base := t.span.first()
	from, to := base+Block(max(t.whole.from, 0)), base+Block(max(t.whole.to, 0)) // whole blocks
	for _, blk := range [2]Block{base, t.span.last()} {
		if (blk < from || blk >= to) && blk >= k.first && blk <= k.last {
			t.dropSectors(l, s, blk)
		}
	}
	if t.cache {
		return // mapped anew
	}
	lo, hi := max(k.first, from), min(k.last+1, to)
	if lo < hi {
		if _, lsn := l.c.unmapRange(t.r.b, lo, hi-1, false); lsn != 0 {
			t.room--
			s.lastUnmap = lsn
		}
	}
}

// dropSectors makes the changed sectors of a dirty block invalid in its slot. The stripe is locked.
func (t *through) dropSectors(l *Lane, s *stripe, blk Block) {
	k := makeKey(t.r.b.id, blk)
	e, ok := l.c.index.find(k)
	if !ok {
		return
	}
	from, n, _ := blockPart(t.span, t.r, blk)
	gone := sectors(from, n)
	if e.st&gone == 0 {
		return
	}
	t.room--
	if e.st&stMask&^gone == 0 {
		_, s.lastUnmap = l.c.unmapRange(t.r.b, blk, blk, false)
		return
	}
	e.st &^= gone
	l.c.mapBlock(t.r.b, s, k, e)
}

// mapCopy maps the copy's blocks of one region as pending. The stripe is locked.
func (t *through) mapCopy(l *Lane, s *stripe, k *rangeLock) {
	if !t.cache {
		return
	}
	b := t.r.b
	i, first := 0, t.span.first()+Block(t.whole.from)
	for _, run := range t.runs {
		for j := range run.n {
			blk := first + Block(i)
			if blk >= k.first && blk <= k.last {
				e := entry{
					slot: run.first + Slot(j), st: fullMask | stDirty, sum: t.sums[i],
					owner: t.r.way.tenant,
				}
				if l.c.pend(b, makeKey(b.id, blk), e.slot, t.wrote, t.losses) {
					e.st |= stPending
				} // else writeback will write it once more
				if mutated(mutPendingIsClean) {
					e.st &^= stDirty | stPending
				}
				lost := e.st&stPending == 0 && b.losses.Load() != t.losses
				if at := i + t.whole.from; t.pins[at/64]>>(at%64)&1 != 0 {
					l.c.mapPinned(b, s, makeKey(b.id, blk), e)
				} else {
					l.c.mapBlock(b, s, makeKey(b.id, blk), e)
				}
				if lost {
					b.order.doubt()
				}
				t.r.reached |= reachedSSD
				t.room--
			}
			i++
		}
	}
}

// keepDirty makes pending blocks dirty again after a failed change: the backing device may have
// anything by now. They wait for no flush any more: one that covers what was there before the change
// says nothing about what is written back after it. And the pending ring must not say either that the backing device
// has them: should the SSD lose them, the next start would read from there. An ordered device is no image before it has
// them again. The stripe is locked.
func (c *Cache) keepDirty(b *Backing, first, last Block) {
	var dirty map[Slot]key
	for blk := first; blk <= last; blk++ {
		k := makeKey(b.id, blk)
		e, ok := c.index.find(k)
		if !ok || e.st&stDirty == 0 {
			continue
		}
		if dirty == nil {
			dirty = map[Slot]key{}
		}
		dirty[e.slot] = k // even if it is not pending: cleanSlot may have ended that meanwhile
		c.setState(b, e, e.st&^stPending)
	}
	if dirty == nil {
		return
	}
	b.order.doubt()
	b.dropPending(first, last)
	if c.lost() && b.marker.CompareAndSwap(markerMade, markerAsked) {
		c.pokeBackground() // it does not tell of these
	}
	if mutated(mutFailedChangeKept) {
		return
	}
	for _, k := range c.journal.dirtyPending(dirty) {
		if c.lost() { // else settleLoss finds it
			c.markUnsafe(b, k)
		}
	}
}

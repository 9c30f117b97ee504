package cache

// appendFresh appends the record of a block that a write has just mapped, and queues the version
// if the device is ordered, which it reports. Promised room is used up either way. The stripe is
// locked; the record was reserved.
func (j *journal) appendFresh(b *Backing, k key, e entry, now int64, promised bool,
	touched ...BucketID,
) (l LSN, queue bool) {
	r, o := mapRecord(k, e), &b.order
	if !promised && !o.on.Load() {
		return j.append(r, touched...), false
	}
	j.mu.Lock()
	o.mu.Lock()
	if promised {
		o.mu.promised--
	}
	if queue = o.on.Load(); queue {
		r.flags |= recOrdered
		o.mu.ring.put(queued{k: k, mask: r.mask, slot: e.slot, sum: e.sum, lsn: j.mu.next, at: now})
	}
	poke := queue && o.mu.ring.len() == o.mu.allowed/2
	o.mu.Unlock()
	l, half := j.appendLocked(r, touched)
	j.mu.Unlock()
	if half || poke {
		j.c.pokeBackground()
	}
	return l, queue
}

// mapFresh is mapBlock for what a client has written: if the device is ordered, that is a version
// which the queue gets.
func (c *Cache) mapFresh(b *Backing, s *stripe, k key, e entry, now int64, promised bool) {
	touched, n, clean := c.place(b, k, &e)
	lsn, queue := c.journal.appendFresh(b, k, e, now, promised, touched[:n]...)
	if queue {
		c.setState(b, e, e.st|stQueued)
	}
	if clean {
		s.lastUnmap = lsn
	}
}

// shadow takes a version out of the index that is not on the backing device yet and must get there
// before the one that replaces it. The stripe is locked.
func (c *Cache) shadow(b *Backing, k key, e entry) {
	c.countShadow(b, e.slot, 1)
	c.account(b, e.st, -1, e.slot)
	c.index.unlink(k, e.slot)
	c.index.setState(e.slot, e.st&(stMask|stBad)|stShadow)
}

// unshadow ends that. The stripe is locked.
func (c *Cache) unshadow(b *Backing, slot Slot) {
	c.index.clear(slot)
	c.countShadow(b, slot, -1)
}

func (c *Cache) countShadow(b *Backing, slot Slot, n int64) {
	k := &c.buckets[c.bucketOf(slot)]
	k.live.Add(int32(n))
	k.dirty.Add(int32(n))
	c.dirty.Add(n)
	b.order.shadows.Add(n)
}

// settleOne ends the turn of one version. One that is bad, and not lost, was read before the SSD failed it, or after.
func (r *orderRun) settleOne(v queued) {
	c, b := r.bg.l.c, r.b
	_, lost := r.lost[v.slot]
	if lost {
		b.order.lost.Add(1)
	}
	s := c.index.stripeOf(b.id, v.k.block())
	s.mu.Lock()
	defer s.mu.Unlock()
	k, st := c.index.at(v.slot)
	if k != v.k || st&stQueued == 0 {
		panic("cache: what was queued is not in its slot")
	}
	if st.shadow() {
		if lost && st&stBad == 0 { // else it was counted before it was overwritten
			r.bg.l.io[b.id].BadBlocks.Add(1)
		}
		c.unshadow(b, v.slot)
		return
	}
	e := entry{slot: v.slot, st: st}
	st &^= stQueued
	if st&stBad != 0 && !lost {
		st = st&^(stBad|stPinned) | stLeave // what the SSD fails loses its pin
	}
	if st&stBad == 0 && c.pend(b, v.k, v.slot, r.wrote, r.losses) {
		st |= stPending
	}
	c.setState(b, e, st)
}

// unqueue makes a version one that nobody has to wait for.
func (c *Cache) unqueue(b *Backing, v queued) {
	s := c.index.stripeOf(b.id, v.k.block())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch k, st := c.index.at(v.slot); {
	case k != v.k || st&stQueued == 0:
		panic("cache: what was queued is not in its slot")
	case st.shadow():
		c.unshadow(b, v.slot)
	default:
		c.setState(b, entry{slot: v.slot, st: st}, st&^stQueued)
	}
}

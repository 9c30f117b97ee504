package cache

// tickOrders sets off what ordered devices have to write back, and reports whether to look again
// soon.
func (bg *background) tickOrders(now int64) (soon bool) {
	for _, b := range bg.l.c.backings.Load() {
		if b == nil || !b.order.live() {
			continue
		}
		soon = bg.orderOf(b).tick(now) || soon
	}
	return soon
}

// orderOf is what writes back the queue of the device.
func (bg *background) orderOf(b *Backing) *orderRun {
	r := bg.orders[b.id]
	if r == nil {
		r = &orderRun{bg: bg, b: b, last: bg.l.d.Now()}
		r.w = waiter{lane: bg.l, owner: r}
		for i := range r.slots {
			r.slots[i].r = r
		}
		bg.orders[b.id] = r
	}
	return r
}

// dropOrder forgets what the device had to write back, which is lost; false if it is at it.
func (bg *background) dropOrder(b *Backing) bool {
	if bg.orders[b.id] == nil && !b.order.live() {
		return true
	}
	r := bg.orderOf(b)
	if r.busy {
		return false
	}
	r.dissolve(false)
	bg.orders[b.id] = nil
	return true
}

// tick follows the setting and begins a batch if it is time.
func (r *orderRun) tick(now int64) (soon bool) {
	c, o := r.bg.l.c, &r.b.order
	if o.on.Load() && o.based.Load() && !o.sound.Load() {
		r.looksSound()
		soon = !o.sound.Load()
	}
	switch {
	case r.busy:
		if r.step == orderSettle {
			r.settle()
		}
		return true
	case r.b.forgetting.Load():
		return false
	case !o.want.Load() && o.on.Load():
		// The superblock says so already, but it may have said otherwise again by a later start.
		if !c.journal.reserveSettled() {
			return true
		}
		r.dissolve(true)
		return false
	case o.want.Load() && !o.on.Load():
		o.mu.Lock()
		o.mu.ring.grow(uint64(o.max.Load()))
		o.on.Store(true)
		o.mu.Unlock()
		o.fresh.Store(true)
		c.pokeBackground()
		return true
	case c.closing.Load():
		return false
	case r.b.Presence() != Present:
		return r.absent()
	case now < r.retry:
		return r.giveUp()
	case !o.based.Load():
		r.base(now)
		return true
	}
	return r.begin(now) || soon
}

// loose is how many dirty blocks are not in the queue: before the device was ordered, what was
// dirty then, and afterwards what the backing device has had before.
func (b *Backing) loose() int64 { return b.dirty.Load() - b.bad.Load() - b.order.queued.Load() }

// base flushes the backing device when nothing is left that was dirty before the queue began, that
// an earlier process may have left unflushed, or that the device has lost.
func (r *orderRun) base(now int64) {
	o := &r.b.order
	o.mu.Lock()
	r.doubts = o.mu.doubts // before a look at what is dirty
	o.mu.Unlock()
	if r.b.loose() > 0 || r.bg.wb.flyingOf[r.b.id] > 0 || r.b.losing.Load() > 0 {
		switch j := &r.bg.l.c.journal; {
		case !o.image() || now < r.bg.wb.pause[r.b.id]:
			r.giveUp() // it may take long, and nothing is lost by beginning anew
		case j.heldBy(o):
			j.urge() // writeback may wait for a record, or for who does and has the lock
		}
		return // writeback is at it
	}
	r.busy, r.step, r.begun, r.judged = true, orderBase, now, r.b.judged.Load()
	r.baseEnd = r.bg.l.c.journal.nextLSN()
	r.flush()
}

// looksSound notes when the backing device has become a consistent image: when it has all that was
// written until the base was there. Before anybody is told it is on record, so that a start knows that
// what is dirty and not queued is what the device has lost. The other way round nobody waits for the record:
// a device that is said to be an image and is none makes writes wait, no more.
func (r *orderRun) looksSound() {
	o, j := &r.b.order, &r.bg.l.c.journal
	if o.sound.Load() {
		return
	}
	o.mu.Lock()
	q := &o.mu.ring
	ok := q.len() == 0 || q.lsn(q.head) >= r.baseEnd
	o.mu.Unlock()
	switch {
	case !ok:
		return
	case o.noted.Load():
	case r.image == 0:
		if !r.bg.l.c.closing.Load() && j.reserveSettled() {
			j.images.Or(r.b.bit())
			r.image = j.append(settledRecord(r.b.id, 0)) // of nothing: it makes a page be written
			j.kick(r.bg.l)
		}
		return
	case !j.isDurable(r.image):
		j.kick(r.bg.l)
		return
	}
	o.noted.Store(true)
	o.sound.Store(true)
}

// absent is the tick while the device is gone. Who waits for it waits on, or fails, as the policy has it.
func (r *orderRun) absent() (soon bool) {
	r.ticket = 0
	if r.b.Presence() == Failing {
		r.b.order.wakeAll(ErrAbsent)
	}
	r.giveUp()
	return true
}

// giveUp ends the order for now if others wait for the journal that the queue holds while the backing
// device fails, or has not got the base yet: one device must not stop the rest. What is dirty stays. The
// tick begins anew.
func (r *orderRun) giveUp() (soon bool) {
	j, o := &r.bg.l.c.journal, &r.b.order
	if !j.hasNoRoom() || !o.on.Load() || !j.heldBy(o) {
		return false
	}
	if j.reserveSettled() {
		if o.image() {
			o.broken.Add(1)
		}
		r.dissolve(true)
	}
	return true
}

// dissolve ends the order: what is queued is dirty like anything else, in its newest version. A start
// must not look for the queue then: a record says so, for which room is reserved, or one that follows.
func (r *orderRun) dissolve(record bool) {
	c, o := r.bg.l.c, &r.b.order
	j := &c.journal
	j.mu.Lock() // what is written after the end is on record after it, too: see appendFresh
	o.mu.Lock()
	o.on.Store(false)
	o.based.Store(false)
	o.sound.Store(false)
	o.noted.Store(false)
	r.image = 0
	r.anew() // the slots are others' from here on
	j.images.And(^r.b.bit())
	first, end := o.mu.ring.head, o.mu.ring.tail // nothing more comes
	o.mu.Unlock()
	if record {
		j.appendLocked(settledRecord(r.b.id, j.mu.next), nil)
	}
	j.mu.Unlock()
	for i := first; i != end; i++ {
		o.mu.Lock()
		v := o.mu.ring.at(i)
		o.mu.Unlock()
		c.unqueue(r.b, v)
	}
	o.mu.Lock()
	o.mu.ring.free()
	wake := o.mu.room.takeAll()
	wake.join(o.mu.settled.takeAll())
	o.mu.Unlock()
	r.free()
	wake.wakeAll(nil)
	c.journal.advanceTail()
}

package cache

// withoutSSD goes on with a change whose locks are held and that the SSD does not learn of. It may have
// to wait, and is then called again.
func (t *through) withoutSSD(l *Lane) {
	b := t.r.b
	if !l.c.lost() {
		t.restart(l)
		return
	}
	t.step = throughMarker
	pass, err := l.mayChange(b, t.late || t.missed(l))
	switch {
	case pass == passWait:
		l.c.ssdHealth.park(l.c, &t.w)
		return
	case pass == passFail:
		t.err = err
		if t.late {
			t.settle(l)
		}
		t.finish(l)
		return
	}
	t.bare, t.cache = true, false
	if t.late {
		t.settle(l)
		t.finish(l)
		return
	}
	t.r.notCached()
	for i := range t.locks {
		t.forgetClean(l, &t.locks[i])
	}
	t.change(l)
}

// missed reports whether the SSD, as it would be found, knows something of the blocks: they are in the
// index, or were and it may not have heard that they are not any more, or may be but are not loaded.
func (t *through) missed(l *Lane) bool {
	c, b := l.c, t.r.b
	if c.blind {
		return true
	}
	for i := range t.locks {
		k := &t.locks[i]
		s := c.index.stripeOf(b.id, k.first)
		s.mu.Lock()
		known := s.lastUnmap != 0 && !c.journal.isDurable(s.lastUnmap) || c.loading.mayLack()
		for blk := k.first; blk <= k.last && !known && b.cached.Load() != 0; blk++ {
			_, known = c.index.find(makeKey(b.id, blk))
		}
		s.mu.Unlock()
		if known {
			return true
		}
	}
	return false
}

// forgetClean takes the clean copies out of the index, without a record. A pending one stays until the change has been
// flushed, as a dirty one does: the backing device may lose it yet, and has something older then.
func (t *through) forgetClean(l *Lane, k *rangeLock) {
	c, b := l.c, t.r.b
	s := c.index.stripeOf(b.id, k.first)
	s.mu.Lock()
	defer s.mu.Unlock()
	for blk := k.first; blk <= k.last && b.cached.Load() != 0; blk++ {
		key := makeKey(b.id, blk)
		e, ok := c.index.find(key)
		switch {
		case !ok:
		case e.st&stDirty == 0:
			c.unmapEntry(b, key, e)
		default:
			t.stale = true
		}
	}
}

// dropBare takes the changed sectors out of dirty copies, and pending ones as a whole, for the flush of the change has
// covered the rest, without a record. The stripe is locked.
func (t *through) dropBare(l *Lane, k *rangeLock) {
	c, b := l.c, t.r.b
	if !t.stale && !t.late {
		return
	}
	for blk := k.first; blk <= k.last; blk++ {
		key := makeKey(b.id, blk)
		e, ok := c.index.find(key)
		if !ok {
			continue
		}
		from, n, _ := blockPart(t.span, t.r, blk)
		if left := e.st &^ sectors(from, n); left&stMask != 0 && !e.st.onBacking() {
			c.setState(b, e, left)
			continue
		}
		c.unmapEntry(b, key, e)
		c.madeSafe(b, key)
	}
}

// leaveBare is for a change that has failed: the backing device may have something else now than pending copies, which are
// no likeness of it once a flush has covered them. The stripe is locked.
func (t *through) leaveBare(l *Lane, k *rangeLock) {
	c, b := l.c, t.r.b
	for blk := k.first; blk <= k.last && t.stale; blk++ {
		if e, ok := c.index.find(makeKey(b.id, blk)); ok && e.st&stPending != 0 {
			c.setState(b, e, e.st&^stPinned|stLeave)
		}
	}
}

// restart begins the window anew, for the SSD has come back while the change waited, or its locks are in the
// way of what has to come before.
func (t *through) restart(l *Lane) {
	if t.late { // the change has been made, and the dirty copies can be dropped on record
		t.late = false
		t.step, t.waits = throughFlush, 1
		op := l.newOp(t)
		op.Kind, op.Dev = OpFlush, t.r.b.id
		l.issue(op, t.r)
		return
	}
	l.c.journal.unreserveChange(t.r.b, t.held, t.room)
	t.held = 0
	l.c.loading.giveBack(t.marks)
	t.unlock(l)
	t.anew = true
	t.window(l, span{t.span.off, t.span.len + t.rest.len})
}

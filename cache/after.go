package cache

import "ubcache/attrs"

// afterwards is what is done with a request's blocks when it has been served, for the sake of its
// hint.
type afterwards uint8

const (
	afterNothing afterwards = iota
	afterLook               // whether all of them are cached, as was promised
	afterPin
	afterUnpin
	afterEvict
)

// aftermath does that, region by region; each may have to wait for journal room. The request is
// answered when it is done. It holds no locks while it waits.
type aftermath struct {
	r    *Request
	w    waiter
	part span
	rest span
	next *aftermath
}

func (l *Lane) startAfter(r *Request) {
	s := span{r.Off, r.Len}
	if !l.worthIt(r, s) {
		l.served(r)
		return
	}
	a := l.freeAfters
	if a == nil {
		a = &aftermath{}
	} else {
		l.freeAfters = a.next
	}
	a.r, a.next = r, nil
	a.w = waiter{lane: l, owner: a}
	a.part, a.rest = s.cut()
	a.run(l, nil)
}

// worthIt reports whether there is more to do, and takes back what was promised and cannot be
// done: a pin is for all blocks or for none.
func (l *Lane) worthIt(r *Request, s span) bool {
	if r.way.after == afterUnpin || r.way.after == afterEvict {
		return true
	}
	n := l.c.survey(r.b, s)
	switch {
	case n.Cached-n.bad < n.Blocks:
		r.res.Ignore(attrs.IDHint, attrs.ReasonNotCached)
	case r.way.after == afterLook:
	case l.c.pinRoom(r.b) < n.Blocks-n.Pinned:
		r.res.Ignore(attrs.IDHint, attrs.ReasonQuota)
	default:
		return n.Pinned < n.Blocks
	}
	return false
}

// run does what is left to do, and goes on with it when there is journal room.
func (a *aftermath) run(l *Lane, err error) {
	for ; a.part.len > 0; a.part, a.rest = a.rest.cut() {
		if err != nil {
			a.r.ignoreHint(attrs.ReasonDegraded)
			break
		}
		n := int(a.part.last()-a.part.first()) + 1
		if !l.c.journal.reserveOrWait(n, &a.w) {
			return
		}
		l.c.journal.unreserve(n - a.apply(l))
	}
	r := a.r
	a.r, a.next = nil, l.freeAfters
	l.freeAfters = a
	if r.way.after == afterEvict && r.b.leaving.Load() != 0 {
		l.c.pokeBackground()
	}
	l.served(r)
}

// apply works on the blocks of one region and returns how many records that took.
func (a *aftermath) apply(l *Lane) (used int) {
	c, b := l.c, a.r.b
	s := c.index.stripeOf(b.id, a.part.first())
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.r.way.after == afterEvict {
		return a.evict(l, s)
	}
	for blk := a.part.first(); blk <= a.part.last(); blk++ {
		k := makeKey(b.id, blk)
		if a.r.way.after == afterUnpin {
			if c.unpinBlock(b, k) {
				used++
			}
			continue
		}
		switch c.pinBlock(b, k) {
		case pinDone:
			used++
		case pinQuota:
			a.r.ignoreHint(attrs.ReasonQuota)
		case pinGone:
			a.r.ignoreHint(attrs.ReasonNotCached)
		}
	}
	return used
}

// evict takes clean blocks out of the cache and marks dirty ones to leave it: they are written
// back next, and dropped when that is certain to be on the backing device. The issuer does not wait
// for it. Pinned blocks stay, and those that the SSD has lost. The stripe is locked.
func (a *aftermath) evict(l *Lane, s *stripe) (used int) {
	c, b := l.c, a.r.b
	var touched [regionBlocks]BucketID
	run, n, first := 0, 0, Block(0)
	drop := func() {
		if run == 0 {
			return
		}
		s.lastUnmap = c.journal.append(record{
			kind: recUnmap, flags: recCleanOnly, backing: b.id, block: first, sum: uint32(run),
		}, touched[:n]...)
		l.stats.EvictedBlocks.Add(int64(n))
		run, n = 0, 0
		used++
	}
	loading := c.loading.on.Load()
	for blk := a.part.first(); blk <= a.part.last(); blk++ {
		k := makeKey(b.id, blk)
		e, ok := c.index.find(k)
		if run == 0 {
			first = blk
		}
		switch {
		case !ok && loading:
			// What comes late is left out. A record says so to the start after a crash: whoever changes the
			// backing device has to wait for it.
			c.loading.remember(b.id, blk, blk, false)
			run++
			continue
		case !ok:
		case e.st&stPinned != 0:
			a.r.ignoreHint(attrs.ReasonOverruled)
		case e.st&stBad != 0:
			a.r.ignoreHint(attrs.ReasonDegraded)
		case e.st&stDirty != 0:
			c.setState(b, e, e.st|stLeave)
		default:
			touched[n] = c.bucketOf(e.slot)
			n++
			run++
			c.unmapEntry(b, k, e)
			continue
		}
		drop()
	}
	drop()
	return used
}

// ignoreHint takes a promise back.
func (r *Request) ignoreHint(why attrs.Reason) {
	if r.Attrs != nil {
		r.res.Ignore(attrs.IDHint, why)
	}
}

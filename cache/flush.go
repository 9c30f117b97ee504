package cache

// flushScope says what a flush makes durable.
type flushScope uint8

const (
	flushSSD     flushScope = 1 << iota // the journal, and with it all data on the SSD
	flushBacking                        // what was written past the cache
	flushAll     = flushSSD | flushBacking
)

// flush makes what was acknowledged durable: a commit of the journal, and at the same time a
// flush of the backing device if something was written straight to it since its last flush.
type flush struct {
	r       *Request
	w       waiter
	pending int
	parked  bool   // it waits for news of the SSD, not for a commit
	again   bool   // the write of the request has to be made again
	telling bool   // it fails, and its issuer learns so of a loss
	covers  uint64 // changes of the backing device
	losses  uint64 // of it, when this began
	later   uint64 // those of the second flush of it, without the SSD
	err     error
	next    *flush
}

// startFlush flushes for a request and then finishes it.
func (l *Lane) startFlush(r *Request, scope flushScope) {
	f := l.freeFlushes
	if f == nil {
		f = &flush{}
	} else {
		l.freeFlushes = f.next
	}
	*f = flush{r: r, pending: 1, losses: r.b.losses.Load()}
	f.w = waiter{lane: l, owner: f}
	lost := l.c.lost() // then there is one flush of the backing device for both
	if scope&flushBacking != 0 && r.Op == ReqFlush && r.b.unreported.Load() &&
		f.takes(r.b) {
		f.err = ErrLost
	}
	if scope&flushBacking != 0 && !lost && !mutated(mutBackingUnflushed) {
		if f.covers = r.b.wrote.Load(); r.b.direct.Load() > r.b.flushed.Load() {
			f.pending++
			op := l.newOp(f)
			op.Kind, op.Dev = OpFlush, r.b.id
			l.issue(op, r)
		} else if n := r.b.losses.Load(); r.losses != noLosses && r.losses != n {
			f.err = ErrLost // perhaps the flush that covers it came too late
		} else {
			r.flushed(n)
		}
	}
	if scope&flushSSD != 0 {
		f.pending++
		if lost {
			f.withoutSSD(l)
		} else if l.c.journal.waitDurable(l.c.journal.nextLSN()-1, &f.w, false) {
			f.pending--
		} else {
			l.commitBegins(r)
		}
	}
	f.done(l, nil)
}

func (f *flush) opDone(l *Lane, op *Op, err error) {
	r := f.r
	switch {
	case err != nil:
	case r.losses != noLosses && r.losses != r.b.losses.Load():
		err = ErrLost // a part of the write was gone before the rest was there, or is since the flush of somebody else failed
	case f.overtaken():
		err = ErrLost
	case op.arg == flushLater:
		r.b.flushDone(f.later, op.losses)
	default:
		r.b.flushDone(f.covers, op.losses)
		if r.b.losses.Load() == op.losses {
			r.flushed(op.losses)
		}
	}
	f.done(l, err)
}

// flushed notes that the backing device has been flushed for the request's changes, with so many losses before. Those of
// them that were whole then no later loss takes.
func (r *Request) flushed(losses uint64) {
	if r.losses == losses {
		r.losses = noLosses
	}
	if r.copied == losses {
		r.copied = noLosses
	}
}

// overtaken reports whether the backing device has lost something of what a FLUSH is to cover since it began. Then
// its issuer learns so.
func (f *flush) overtaken() bool {
	b := f.r.b
	if f.r.Op != ReqFlush || f.losses >= b.bareLoss.Load() {
		return false
	}
	f.tells(b)
	b.unreported.Store(false)
	return true
}

// run goes on when the journal is durable, or when it is known that it will not be.
func (f *flush) run(l *Lane, err error) {
	if !f.parked {
		l.commitEnds(f.r)
	}
	switch {
	case err != nil || f.parked && l.c.lost():
		f.withoutSSD(l)
	case f.parked: // it has come back
		f.parked = false
		f.flushBacking(l)
		if l.c.journal.waitDurable(l.c.journal.nextLSN()-1, &f.w, false) {
			f.done(l, nil)
		} else {
			l.commitBegins(f.r)
		}
	default:
		f.done(l, nil)
	}
}

// flushLater is the Op.arg of a flush of the backing device that the loss of the SSD has made necessary.
const flushLater = 1

// withoutSSD makes durable what can be without the SSD: the backing device then has all that was
// acknowledged, but for dirty data that the SSD has as well, on record.
func (f *flush) withoutSSD(l *Lane) {
	r := f.r
	b := r.b
	f.parked = false
	if r.Op == ReqWrite && r.touched&touchedSSD != 0 {
		// A write with FUA that has gone to the SSD, perhaps without a record: it is made again.
		f.again = true
		f.done(l, nil)
		return
	}
	r.losses = min(r.losses, r.copied) // the SSD makes no copy durable any more
	switch pass, err := l.mayFlush(b, r.Op == ReqFlush); {
	case pass == passFail:
		f.done(l, err)
	case pass == passWait:
		f.parked = true
		l.c.ssdHealth.park(l.c, &f.w)
	case !l.c.lost(): // it came back this moment, and that is why it may
		f.parked = true
		f.run(l, nil)
	default:
		f.flushBacking(l)
		f.done(l, nil)
	}
}

// flushBacking flushes the backing device for what was written there since this began, the SSD being lost.
func (f *flush) flushBacking(l *Lane) {
	b := f.r.b
	if f.later = b.wrote.Load(); f.later <= b.flushed.Load() {
		// The flush of somebody else has covered that, perhaps when it was lost already.
		if f.r.losses != noLosses && f.r.losses != b.losses.Load() || f.overtaken() {
			f.err = ErrLost
		}
		return
	}
	f.pending++
	op := l.newOp(f)
	op.Kind, op.Dev, op.arg = OpFlush, b.id, flushLater
	l.issue(op, f.r)
}

func (f *flush) done(l *Lane, err error) {
	if err != nil && f.err == nil {
		f.err = err
	}
	if f.pending--; f.pending > 0 {
		return
	}
	r, again := f.r, f.again && f.err == nil
	r.Err = f.err
	if r.Err == nil {
		r.b.order.cut(LSN(l.c.journal.durableLSN.Load()))
	}
	if f.telling {
		r.b.telling.Add(-1)
	}
	f.r, f.next = nil, l.freeFlushes
	l.freeFlushes = f
	if again {
		r.touched, r.losses, r.copied = 0, noLosses, noLosses
		l.startThrough(r, span{r.Off, r.Len}, false)
		return
	}
	l.finish(r)
}

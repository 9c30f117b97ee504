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
	covers  uint64 // changes of the backing device
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
	*f = flush{r: r, pending: 1}
	f.w = waiter{lane: l, owner: f}
	if scope&flushBacking != 0 && !mutated(mutBackingUnflushed) {
		if r.Op == ReqFlush && r.b.unreported.Load() && r.b.unreported.CompareAndSwap(true, false) {
			f.err = ErrLost
		}
		if f.covers = r.b.wrote.Load(); r.b.direct.Load() > r.b.flushed.Load() {
			f.pending++
			op := l.newOp(f)
			op.Kind, op.Dev = OpFlush, r.b.id
			l.issue(op, r)
		}
	}
	if scope&flushSSD != 0 {
		f.pending++
		if l.c.journal.waitDurable(l.c.journal.nextLSN()-1, &f.w, false) {
			f.pending--
		} else {
			l.commitBegins(r)
		}
	}
	f.done(l, nil)
}

func (f *flush) opDone(l *Lane, op *Op, err error) {
	if err == nil {
		f.r.b.flushDone(f.covers, op.losses)
	}
	f.done(l, err)
}

func (f *flush) run(l *Lane, err error) {
	l.commitEnds(f.r)
	f.done(l, err)
}

func (f *flush) done(l *Lane, err error) {
	if err != nil && f.err == nil {
		f.err = err
	}
	if f.pending--; f.pending > 0 {
		return
	}
	r := f.r
	r.Err = f.err
	if r.Err == nil {
		r.b.order.cut(LSN(l.c.journal.durableLSN.Load()))
	}
	f.r, f.next = nil, l.freeFlushes
	l.freeFlushes = f
	l.finish(r)
}

package cache

import (
	"syscall"

	"ubcache/attrs"
)

// way is how a request goes through the cache: what the mode of its device says, as its attributes
// change it.
type way struct {
	modeRow
	admit admission
	refs  refRule
}

// admission says whether a request's data enters the cache.
type admission uint8

const (
	admitPolicy admission = iota // as the sequential detector has it
	admitAlways
	admitNever
)

// refRule says what a hit means to the eviction policy.
type refRule uint8

const (
	refCount refRule = iota // one more reference
	refKeep                 // nothing
	refDrop                 // the block goes first
)

// apply is the state of an entry after a hit.
func (k refRule) apply(st state) state {
	switch {
	case k == refDrop:
		return st &^ stRefMax
	case k == refCount && st&stRefMax != stRefMax:
		return st + stRefOne
	}
	return st
}

// decide chooses the way of a request, and answers for the attributes that have a part in that.
// Those that the engine does not act on stay unanswered. It returns an errno if the request must
// fail for a required attribute, before it has had any effect.
func (l *Lane) decide(r *Request) syscall.Errno {
	mode := r.b.Mode()
	r.way = way{modeRow: modeTable[mode]}
	if r.Attrs == nil {
		return 0
	}
	if r.res = r.Results; r.res == nil {
		r.res = &l.tracked(r).answers
	}
	dir := attrs.Write
	if r.Op == ReqRead {
		dir = attrs.Read
	}
	r.res.Begin(r.Attrs, attrs.Request{Direction: dir, Off: r.Off, Bytes: r.Len},
		attrs.Device(r.b.number.Load()))
	if r.Op <= ReqWrite {
		if r.res.Pending(r.Attrs, attrs.IDMode) {
			l.decideMode(r, mode)
		}
		if r.res.Pending(r.Attrs, attrs.IDHint) {
			l.decideHint(r, mode)
		}
	}
	l.decideObserved(r)
	_, errno := r.Attrs.CheckRequired(r.res)
	return errno
}

// decideMode lets a request be more careful with its data than its device is, not less: that is the
// operator's to decide.
func (l *Lane) decideMode(r *Request, mode Mode) {
	w := r.Attrs.Mode()
	switch {
	case mode == None:
		r.res.Ignore(attrs.IDMode, attrs.ReasonMode)
	case w == attrs.Writethrough:
		r.way.modeRow = modeTable[Writethrough]
		r.res.Handle(attrs.IDMode)
	case w == attrs.Writearound:
		r.way.modeRow = modeTable[Writearound]
		r.res.Handle(attrs.IDMode)
	case !r.way.back:
		r.res.Ignore(attrs.IDMode, attrs.ReasonMode)
	case l.full(r.b):
		r.res.Ignore(attrs.IDMode, attrs.ReasonBusy)
	default:
		r.way.admit = admitAlways
		r.res.Handle(attrs.IDMode)
	}
}

// decideHint acts on the hints that concern the request itself. Pins, eviction and prefetch are not
// answered: nobody handles them yet.
func (l *Lane) decideHint(r *Request, mode Mode) {
	switch r.Attrs.Hint() {
	case attrs.HintDefault:
		r.res.Handle(attrs.IDHint)
	case attrs.HintCache:
		l.decideCache(r, mode)
	case attrs.HintBypass, attrs.HintOnce:
		l.decideBypass(r)
	}
}

// decideCache admits the data, if the mode has anything to admit it to.
func (l *Lane) decideCache(r *Request, mode Mode) {
	switch {
	case mode == None || r.Op == ReqRead && !r.way.fill:
		r.res.Ignore(attrs.IDHint, attrs.ReasonMode)
		return
	case r.Op == ReqWrite && r.way.back && l.full(r.b):
		r.res.Ignore(attrs.IDHint, attrs.ReasonBusy)
		return
	case r.Op == ReqWrite && !r.way.back:
		r.way.through = true // with a copy on the SSD
	}
	r.way.admit = admitAlways
	r.res.Handle(attrs.IDHint)
}

// decideBypass leaves the cache as it is, but for data that is newer there than on the backing
// device: it can only be overwritten where it is.
func (l *Lane) decideBypass(r *Request) {
	asked := r.Op == ReqWrite && r.Attrs.Mode() == attrs.Writeback &&
		r.res.For(attrs.IDMode).Status == attrs.Handled
	if asked || r.Op == ReqWrite && r.way.back && l.anyDirty(r.b, span{r.Off, r.Len}) {
		r.res.Ignore(attrs.IDHint, attrs.ReasonOverruled)
		return
	}
	r.way.admit, r.way.refs = admitNever, refKeep
	if r.Attrs.Hint() == attrs.HintOnce {
		r.way.refs = refDrop
	}
	r.res.Handle(attrs.IDHint)
}

// full reports whether the device may make no more dirty data.
func (l *Lane) full(b *Backing) bool { return l.c.dirty.Load() >= b.dirtyMax.Load() }

// admits reports whether the data of a request enters the cache. The detector sees every request.
func (l *Lane) admits(r *Request) bool {
	seq := l.sequential(r)
	return r.way.admit == admitAlways || r.way.admit == admitPolicy && !seq
}

// notCached takes back what was promised for data that found no room on the SSD.
func (r *Request) notCached() {
	if r.Attrs == nil {
		return
	}
	if r.Attrs.Hint() == attrs.HintCache {
		r.res.Ignore(attrs.IDHint, attrs.ReasonBusy)
	}
	if r.Op == ReqWrite && r.Attrs.Mode() == attrs.Writeback {
		r.res.Ignore(attrs.IDMode, attrs.ReasonBusy)
	}
}

// answerOrigin says where the data of a request came from or went to.
func (r *Request) answerOrigin() {
	if r.Attrs == nil {
		return
	}
	switch r.reached {
	case reachedSSD:
		r.res.Origin = attrs.OriginSSD
	case reachedBacking:
		r.res.Origin = attrs.OriginBacking
	case reachedSSD | reachedBacking:
		r.res.Origin = attrs.OriginMixed
	}
}

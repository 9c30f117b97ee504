package cache

import (
	"syscall"

	"ubcache/attrs"
	"ubcache/policy"
)

// way is how a request goes through the cache: what the mode of its device says, as its attributes
// change it.
type way struct {
	modeRow
	admit  admission
	refs   refRule
	after  afterwards
	stream stream
	tenant uint8 // row in tenants, 0 for nobody
	over   bool  // the tenant's quota is used up
	lives  bool  // so far all data went to the stream of its lifetime
	// promised is what was set aside of the quota, in blocks.
	promised int64
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
	refTwice                // two more; what is filled begins with one
)

// first is the references of a block that is filled.
func (k refRule) first() state {
	if k == refTwice {
		return stRefOne
	}
	return 0
}

// apply is the state of an entry after a hit.
func (k refRule) apply(st state) state {
	switch {
	case k == refDrop:
		return st &^ stRefMax
	case k == refKeep || st&stRefMax == stRefMax:
		return st
	case k == refTwice && st&stRefMax == 0:
		return st + 2*stRefOne
	case k == refTwice:
		return st | stRefMax
	}
	return st + stRefOne
}

// decide chooses the way of a request, and answers for the attributes that have a part in that.
// Those that the engine does not act on stay unanswered. It returns an errno if the request must
// fail for a required attribute, before it has had any effect.
func (l *Lane) decide(r *Request) syscall.Errno {
	mode := r.b.Mode()
	if r.Attrs != nil {
		if r.res = r.Results; r.res == nil {
			r.res = &l.tracked(r).answers
		}
	}
	r.way = way{modeRow: modeTable[mode]}
	if r.Op == ReqRead {
		r.way.stream = streamClean
	}
	if r.Attrs == nil {
		return 0
	}
	dir := attrs.Write
	if r.Op == ReqRead {
		dir = attrs.Read
	}
	r.res.Begin(r.Attrs, attrs.Request{Direction: dir, Off: r.Off, Bytes: r.Len},
		attrs.Device(r.b.number.Load()))
	if r.res.Pending(r.Attrs, attrs.IDPriority) {
		l.decidePriority(r)
	}
	if r.Op <= ReqWrite {
		if r.res.Pending(r.Attrs, attrs.IDTenant) {
			l.decideTenant(r)
		}
		if r.res.Pending(r.Attrs, attrs.IDMode) {
			l.decideMode(r, mode)
		}
		if r.res.Pending(r.Attrs, attrs.IDHint) {
			l.decideHint(r, mode)
		}
		if r.res.Pending(r.Attrs, attrs.IDLifetime) {
			l.decideLifetime(r)
		}
	} else {
		r.decideWithoutData()
	}
	l.decideObserved(r)
	_, errno := r.Attrs.CheckRequired(r.res)
	if r.Op == ReqRead && r.Attrs.Stamp() != 0 && errno == 0 {
		l.rememberDecision(r, mode)
	}
	return errno
}

// decideWithoutData answers what a flush, a discard or a write of zeroes has no data for. It is on its
// tenant's account all the same: that is statistics.
func (r *Request) decideWithoutData() {
	for _, id := range [...]attrs.ID{attrs.IDHint, attrs.IDMode, attrs.IDLifetime} {
		if r.res.Pending(r.Attrs, id) {
			r.res.Ignore(id, attrs.ReasonDirection)
		}
	}
	if r.res.Pending(r.Attrs, attrs.IDTenant) {
		r.res.Handle(attrs.IDTenant)
	}
}

// decideMode lets a request be more careful with its data than its device is, not less: that is the
// operator's to decide.
func (l *Lane) decideMode(r *Request, mode Mode) {
	w := r.Attrs.Mode()
	switch {
	case mode == None:
		r.res.Ignore(attrs.IDMode, attrs.ReasonMode)
	case r.ordered() && w != attrs.Writeback:
		r.res.Ignore(attrs.IDMode, attrs.ReasonOverruled)
	case w == attrs.Writearound && l.anyPinned(r.b, span{r.Off, r.Len}):
		r.res.Ignore(attrs.IDMode, attrs.ReasonOverruled)
	case w == attrs.Writethrough:
		r.way.modeRow = modeTable[Writethrough]
		r.res.Handle(attrs.IDMode)
	case w == attrs.Writearound:
		r.way.modeRow = modeTable[Writearound]
		r.res.Handle(attrs.IDMode)
	case !r.way.back:
		r.res.Ignore(attrs.IDMode, attrs.ReasonMode)
	case r.way.over:
		r.res.Ignore(attrs.IDMode, attrs.ReasonQuota)
	case l.full(r.b):
		r.res.Ignore(attrs.IDMode, attrs.ReasonBusy)
	default:
		r.way.admit = admitAlways
		r.res.Handle(attrs.IDMode)
	}
}

// decideHint acts on the hints that concern the request itself, and notes what is to be done after
// it.
func (l *Lane) decideHint(r *Request, mode Mode) {
	switch r.Attrs.Hint() {
	case attrs.HintDefault:
		r.res.Handle(attrs.IDHint)
	case attrs.HintCache:
		l.decideCache(r, mode)
	case attrs.HintBypass, attrs.HintOnce:
		l.decideBypass(r)
	case attrs.HintPin:
		l.decidePin(r, mode)
	case attrs.HintUnpin:
		if !l.anyPinned(r.b, span{r.Off, r.Len}) {
			r.res.Ignore(attrs.IDHint, attrs.ReasonNotCached)
			return
		}
		r.way.after = afterUnpin
		r.res.Handle(attrs.IDHint)
	case attrs.HintEvict:
		l.decideEvict(r)
	case attrs.HintPrefetch:
		if r.Op != ReqRead {
			r.res.Ignore(attrs.IDHint, attrs.ReasonDirection)
			return
		}
		if l.decideCache(r, mode); r.way.admit == admitAlways {
			r.way.after = afterLook
		}
	}
}

// decidePin admits the data as the hint cache does, and pins it when it is there.
func (l *Lane) decidePin(r *Request, mode Mode) {
	n := l.c.survey(r.b, span{r.Off, r.Len})
	if l.c.pinRoom(r.b) < n.Blocks-n.Pinned {
		r.res.Ignore(attrs.IDHint, attrs.ReasonQuota)
		return
	}
	if l.decideCache(r, mode); r.res.For(attrs.IDHint).Status == attrs.Handled {
		r.way.after, r.way.stream = afterPin, streamPinned
	}
}

// decideEvict lets as little as possible into the cache that has to leave it again.
func (l *Lane) decideEvict(r *Request) {
	if l.anyPinned(r.b, span{r.Off, r.Len}) {
		r.res.Ignore(attrs.IDHint, attrs.ReasonOverruled)
		return
	}
	r.way.after, r.way.refs = afterEvict, refKeep
	if r.Op == ReqRead || !r.way.back {
		r.way.admit = admitNever
	}
	r.res.Handle(attrs.IDHint)
}

// decideTenant puts the request on its tenant's account. Beyond the quota nothing more enters the
// cache, not even what overwrites dirty data, and what has to for a pin is on nobody's account.
func (l *Lane) decideTenant(r *Request) {
	row := l.tenantRow(r.Attrs.Tenant())
	if row == 0 {
		r.res.Ignore(attrs.IDTenant, attrs.ReasonBusy)
		return
	}
	s := span{r.Off, r.Len}
	n, ok := l.c.tenants.promise(row, int64(s.last()-s.first())+1)
	if !ok {
		r.way.over, r.way.admit = true, admitNever
		r.res.Ignore(attrs.IDTenant, attrs.ReasonQuota)
		return
	}
	r.way.tenant, r.way.promised = row, n
	r.res.Handle(attrs.IDTenant)
}

// decidePriority weighs the request's hits; the scheduler has seen to the rest.
func (l *Lane) decidePriority(r *Request) {
	switch r.Attrs.Priority().Class {
	case attrs.ClassRT:
		r.way.refs = refTwice
	case attrs.ClassIdle:
		r.way.refs = refKeep
	}
	r.res.Handle(attrs.IDPriority)
}

// decideLifetime chooses the stream of what is written to the SSD.
func (l *Lane) decideLifetime(r *Request) {
	if !r.way.back && !r.way.through {
		r.res.Ignore(attrs.IDLifetime, attrs.ReasonMode)
		return
	}
	if r.way.stream != streamDirty {
		r.res.Ignore(attrs.IDLifetime, attrs.ReasonOverruled) // by a pin
		return
	}
	r.way.stream, r.way.lives = streamOf[r.Attrs.Lifetime()], true
	r.res.Handle(attrs.IDLifetime)
}

// decideCache admits the data, if the mode has anything to admit it to. A write that asks to go around
// the cache gets that.
func (l *Lane) decideCache(r *Request, mode Mode) {
	around := r.Op == ReqWrite && r.Attrs.Mode() == attrs.Writearound &&
		r.res.For(attrs.IDMode).Status == attrs.Handled
	switch {
	case around:
		r.res.Ignore(attrs.IDHint, attrs.ReasonOverruled)
		return
	case mode == None || r.Op == ReqRead && !r.way.fill:
		r.res.Ignore(attrs.IDHint, attrs.ReasonMode)
		return
	case r.way.over:
		r.res.Ignore(attrs.IDHint, attrs.ReasonQuota)
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
	if s := (span{r.Off, r.Len}); asked || r.ordered() || r.Op == ReqWrite &&
		(r.way.back && l.anyDirty(r.b, s) || l.anyPinned(r.b, s)) {
		r.res.Ignore(attrs.IDHint, attrs.ReasonOverruled)
		return
	}
	r.way.admit, r.way.refs = admitNever, refKeep
	if r.Attrs.Hint() == attrs.HintOnce {
		r.way.refs = refDrop
	}
	r.res.Handle(attrs.IDHint)
}

// ordered reports whether the request is a write that has to take its turn on the way to the backing
// device, so that it goes to the SSD first.
func (r *Request) ordered() bool {
	return r.Op == ReqWrite && r.way.back && r.b.order.on.Load()
}

// full reports whether the device may make no more dirty data.
func (l *Lane) full(b *Backing) bool { return l.c.dirty.Load() >= b.dirtyMax.Load() }

// admits reports whether the data of a request enters the cache. The detector does not see requests that it has no
// say in, which would only take the places of streams. What idle requests read is not worth a write beside requests of
// class rt, unless they insist.
func (l *Lane) admits(r *Request) bool {
	if r.way.admit != admitPolicy {
		return r.way.admit == admitAlways
	}
	seq := l.sequential(r)
	yields := r.Op == ReqRead && r.job.Class == policy.Idle && l.contention(r.started).RT
	return !seq && !yields
}

// notCached takes back what was promised for data that found no room on the SSD.
func (r *Request) notCached() {
	if r.Attrs == nil {
		return
	}
	switch r.Attrs.Hint() {
	case attrs.HintCache:
		r.res.Ignore(attrs.IDHint, attrs.ReasonBusy)
	case attrs.HintPin, attrs.HintPrefetch:
		if r.way.after != afterNothing { // it was promised
			r.way.after = afterNothing
			r.res.Ignore(attrs.IDHint, attrs.ReasonBusy)
		}
	}
	if r.Op == ReqWrite && r.Attrs.Mode() == attrs.Writeback {
		r.res.Ignore(attrs.IDMode, attrs.ReasonBusy)
	}
	r.misplaced(attrs.ReasonBusy)
}

// insist takes back the promise to keep a write out of the cache, when there is no other place for it.
func (r *Request) insist() {
	if r.Attrs == nil {
		return
	}
	if h := r.Attrs.Hint(); h == attrs.HintBypass || h == attrs.HintOnce {
		r.res.Ignore(attrs.IDHint, attrs.ReasonDegraded)
	}
}

// misplaced says that not all data went to the stream of its lifetime.
func (r *Request) misplaced(why attrs.Reason) {
	if r.way.lives {
		r.way.lives = false
		r.res.Ignore(attrs.IDLifetime, why)
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

package cache

import "ubcache/attrs"

// decision is how a lane decided on the read before, for the next one of which the same is said. What depends on
// more than the attributes and on what is compared here is not remembered.
type decision struct {
	stamp  uint64 // of the set; 0: none
	b      *Backing
	number uint32
	mode   Mode
	tenant lastTenant // if way.tenant is not 0
	way    way
	res    attrs.Results
}

// remembered are the attributes of reads whose decision depends on nothing else than a decision has.
const remembered = 1<<attrs.IDHint | 1<<attrs.IDPriority | 1<<attrs.IDTenant | 1<<attrs.IDLifetime | 1<<attrs.IDMode

// rememberDecision remembers how a read was decided on, if that is good for another one.
func (l *Lane) rememberDecision(r *Request, mode Mode) {
	d, w := &l.decided, &r.way
	d.stamp = 0
	if h := r.Attrs.Hint(); h > attrs.HintOnce { // what is cached counts for it
		return
	}
	quota := w.promised != 0 || r.res.For(attrs.IDTenant).Status == attrs.Ignored || w.tenant != 0 && w.tenant != l.tenant.row
	if r.Attrs.Came()&^remembered != 0 || quota || !r.res.Repeatable() {
		return
	}
	d.stamp, d.b, d.number, d.mode = r.Attrs.Stamp(), r.b, r.b.number.Load(), mode
	d.tenant, d.way = l.tenant, *w
	d.res.Repeat(r.res, 0)
}

// decideAgain accepts a read as the one before, if it can: then there is nothing to refuse it for.
func (l *Lane) decideAgain(r *Request) bool {
	d := &l.decided
	if d.stamp == 0 || r.Attrs.Stamp() != d.stamp || r.Op != ReqRead || r.Results == nil ||
		r.b != d.b || r.b.Mode() != d.mode || r.b.number.Load() != d.number {
		return false
	}
	if t := d.way.tenant; t != 0 &&
		(l.c.tenants.byID.Load() != d.tenant.rows || l.c.tenants.rows[t].quota.Load() != 0) {
		return false
	}
	r.way, r.res = d.way, r.Results
	r.res.Repeat(&d.res, r.Len)
	return true
}

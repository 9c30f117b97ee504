package cache

import (
	"math/bits"
	"sync/atomic"

	"ubcache/attrs"
)

const (
	numAttrs    = int(attrs.IDTrace) + 1
	numStatuses = int(attrs.Invalid) + 1
	numSources  = int(attrs.SourceExplicit) + 1
	numHints    = int(attrs.HintPrefetch) + 1
	numClasses  = int(attrs.ClassIdle)
	numLevels   = 8

	// maxTenants is how many tenants a lane tells apart; what the others do is counted together.
	maxTenants = 64
	// maxKinds is how many kinds a lane tells apart. Requests of others are counted in each of their places.
	maxKinds = 16
)

// attrCounters count what became of requests with attributes. One lane writes them, at the end of each
// such request, and anybody may read them.
type attrCounters struct {
	unreadable counter // sets of which nothing counted
	answer     [numAttrs]answers
	unknown    answers // ids that are not known

	// Groups are made when they are first needed; they are too large to have all of them.
	hints   [numHints]atomic.Pointer[group]
	prios   [numClasses][numLevels]atomic.Pointer[group]
	tenants tenantTable

	// kinds are filled from the first on, and stay.
	kinds [maxKinds]atomic.Pointer[kind]
	last  lastKind // the lane's own
}

// places are the counters that a request counts for.
type places struct {
	answers [numAttrs]*counter
	groups  [3]*group
	nAnswer int
	nGroup  int
}

// kind counts the requests of which the same is said and answered, once for all of their places: who reads the
// statistics adds it to each of them.
type kind struct {
	group
	places
}

// lastKind is the kind of the last request that has one, by the stamps of its set and of its answers; nil: there is
// none.
type lastKind struct {
	set, res uint64
	kind     *kind
}

// answers counts by status, and by the source whose value counted.
type answers [numStatuses][numSources]counter

// group counts the requests that have something in common.
type group struct {
	errors, bytes         counter
	hitBlocks, missBlocks counter   // of reads
	latency               histogram // of those that succeeded
}

// groupOf is the group of a place, which is made if there is none.
func groupOf(at *atomic.Pointer[group]) *group {
	g := at.Load()
	if g == nil {
		g = &group{}
		at.Store(g)
	}
	return g
}

// known says whether a request is of the same kind as the last one that has a kind.
func (a *attrCounters) known(r *Request) bool {
	m := &a.last
	return m.kind != nil && m.res == r.res.Stamp() && m.set == r.Attrs.Stamp()
}

// count counts a request that took so many nanoseconds.
func (a *attrCounters) count(r *Request, took int64) {
	if a.known(r) {
		a.last.kind.count(r, took)
		return
	}
	p, rare := a.places(r)
	if !rare && r.res.Stamp() != 0 {
		if k := a.kindOf(&p); k != nil {
			a.last = lastKind{set: r.Attrs.Stamp(), res: r.res.Stamp(), kind: k}
			k.count(r, took)
			return
		}
	}
	for _, c := range p.answers[:p.nAnswer] {
		c.Add(1)
	}
	for _, g := range p.groups[:p.nGroup] {
		g.count(r, took)
	}
}

// count counts a request that took so many nanoseconds.
func (g *group) count(r *Request, took int64) {
	if r.Err != nil {
		g.errors.Add(1)
		return
	}
	g.bytes.Add(r.Len)
	if r.Op == ReqRead {
		hits := int64(r.hits)
		g.hitBlocks.Add(hits)
		g.missBlocks.Add(max(int64(r.res.Blocks)-hits, 0))
	}
	g.latency[latencyBucket(took)].Add(1)
}

// kindOf is the kind with those places, which is made if there is none; nil if there are too many.
func (a *attrCounters) kindOf(p *places) *kind {
	for i := range a.kinds {
		k := a.kinds[i].Load()
		if k == nil {
			k = &kind{places: *p}
			a.kinds[i].Store(k)
			return k
		}
		if k.places == *p {
			return k
		}
	}
	return nil
}

// places are where a request is to be counted. What is rare it counts itself.
func (a *attrCounters) places(r *Request) (p places, rare bool) {
	set, res := r.Attrs, r.res
	for left := set.Came(); left != 0; left &= left - 1 {
		id := bits.TrailingZeros16(left)
		ans := res.For(attrs.ID(id))
		p.answers[p.nAnswer] = &a.answer[id][ans.Status][ans.Source]
		p.nAnswer++
	}
	put := func(g *group) {
		p.groups[p.nGroup] = g
		p.nGroup++
	}
	if set.Has(attrs.IDHint) {
		put(groupOf(&a.hints[set.Hint()]))
	}
	if set.Has(attrs.IDPriority) {
		p := set.Priority()
		put(groupOf(&a.prios[p.Class-1][p.Level]))
	}
	if set.Has(attrs.IDTenant) {
		put(a.tenants.group(set.Tenant()))
	}
	if res.Frame() == attrs.ReasonNone && set.NumUnknown() == 0 {
		return p, false
	}
	if res.Frame() != attrs.ReasonNone {
		a.unreadable.Add(1)
	}
	for i := range set.NumUnknown() {
		a.unknown[res.For(set.UnknownID(i)).Status][attrs.SourceNone].Add(1)
	}
	return p, true
}

// tenantTable finds a tenant's counters. It is half empty at most, so that a search ends soon.
type tenantTable struct {
	slots [2 * maxTenants]atomic.Pointer[tenantGroup]
	used  int // the lane's own
	other atomic.Pointer[group]
}

type tenantGroup struct {
	tenant attrs.Tenant
	group
}

func (t *tenantTable) group(who attrs.Tenant) *group {
	h := mix(who.ID)
	if who.Cgroup {
		h++
	}
	for ; ; h++ {
		at := &t.slots[h%uint64(len(t.slots))]
		g := at.Load()
		switch {
		case g != nil && g.tenant == who:
			return &g.group
		case g != nil:
		case t.used == maxTenants:
			return groupOf(&t.other)
		default:
			t.used++
			g = &tenantGroup{tenant: who}
			at.Store(g)
			return &g.group
		}
	}
}

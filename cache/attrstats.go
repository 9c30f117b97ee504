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

	last lastCounted // the lane's own
}

// lastCounted is where a request was counted, for the next one of which the same was said and answered.
type lastCounted struct {
	set     uint64 // its stamp
	res     uint64 // that of the answers; 0: none
	answers [numAttrs]*counter
	groups  [3]*group
	nAnswer int
	nGroup  int
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

// count counts a request that took so many nanoseconds.
func (a *attrCounters) count(r *Request, took int64) {
	m, bucket := &a.last, latencyBucket(took)
	if m.res == 0 || r.res.Stamp() != m.res || r.Attrs.Stamp() != m.set {
		a.find(r)
	}
	for _, c := range m.answers[:m.nAnswer] {
		c.Add(1)
	}
	if r.Err != nil {
		for _, g := range m.groups[:m.nGroup] {
			g.errors.Add(1)
		}
		return
	}
	hits, misses := int64(0), int64(0)
	if r.Op == ReqRead {
		hits = int64(r.hits)
		misses = max(int64(r.res.Blocks)-hits, 0)
	}
	for _, g := range m.groups[:m.nGroup] {
		g.bytes.Add(r.Len)
		g.hitBlocks.Add(hits)
		g.missBlocks.Add(misses)
		g.latency[bucket].Add(1)
	}
}

// find notes in a.last where a request is to be counted, and counts what is rare.
func (a *attrCounters) find(r *Request) {
	set, res, m := r.Attrs, r.res, &a.last
	m.res, m.nAnswer, m.nGroup = 0, 0, 0
	for left := set.Came(); left != 0; left &= left - 1 {
		id := bits.TrailingZeros16(left)
		ans := res.For(attrs.ID(id))
		m.answers[m.nAnswer] = &a.answer[id][ans.Status][ans.Source]
		m.nAnswer++
	}
	put := func(g *group) {
		m.groups[m.nGroup] = g
		m.nGroup++
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
		m.set, m.res = set.Stamp(), res.Stamp()
		return
	}
	if res.Frame() != attrs.ReasonNone {
		a.unreadable.Add(1)
	}
	for i := range set.NumUnknown() {
		a.unknown[res.For(set.UnknownID(i)).Status][attrs.SourceNone].Add(1)
	}
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

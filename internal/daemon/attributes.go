package daemon

import (
	"sync/atomic"

	"ubcache/attrs"
	"ubcache/attrs/rules"
	"ubcache/cache"
	"ubcache/internal/blkbpf"
	"ubcache/ublk"
)

// kernelSource is where the queues of a device find what the kernel knows of its requests. Load
// returns nil without BPF.
type kernelSource = atomic.Pointer[blkbpf.Device]

// attributes collects what a queue knows of its requests besides their data, whatever the source:
// one attrs.Set for the engine. All of it belongs to the queue's thread.
type attributes struct {
	kernel  *kernelSource
	rules   *ruleTable
	sets    []attrs.Set // by tag
	results []attrs.Results
}

func (a *attributes) init(depth int) {
	a.sets = make([]attrs.Set, depth)
	a.results = make([]attrs.Results, depth)
}

// request is what the sources are asked about.
type request struct {
	*ublk.Request
	event blkbpf.Event
	known bool // event is there; with rules, without them only if something follows from it
	table *rules.Table
}

// any is look at a glance: false says that it would find nothing, as for most requests.
func (a *attributes) any(queue int, r *ublk.Request) bool {
	return a.rules.Load() != nil || a.kernel.Load().Any(queue, int(r.Tag))
}

// look finds out what there is to know of a request, once for each.
func (a *attributes) look(queue int, r *ublk.Request) (q request) {
	q.Request, q.table = r, a.rules.Load()
	q.event, q.known = a.kernel.Load().Lookup(queue, int(r.Tag), r.Sector, r.Sectors)
	return q
}

// silent says that only the client itself can have said anything.
func (q *request) silent() bool { return q.table == nil && (!q.known || q.event.Silent()) }

// addTo adds what the sources say about n bytes of the device at off, which are the request or a part
// of it. What the client said is in the set already, and stays.
func (q *request) addTo(set *attrs.Set, off, n int64) {
	if q.known {
		q.event.AddTo(set)
	}
	if q.table != nil {
		q.table.Apply(q.query(off, n), set)
	}
}

// query is the request as rules look at it.
func (q *request) query(off, n int64) rules.Query {
	r := rules.Query{Off: off, Len: n, Direction: attrs.Write}
	if q.Op == ublk.OpRead {
		r.Direction = attrs.Read
	}
	e := &q.event
	for _, k := range [...]struct {
		is   bool
		kind rules.Kind
	}{
		{q.Readahead() || e.Readahead, rules.Readahead},
		{q.Flags&ublk.Meta != 0 || e.Meta, rules.Meta},
		{q.Flags&ublk.Swap != 0, rules.Swap},
		{e.Sync, rules.Sync},
		{e.Background, rules.Background},
	} {
		if k.is {
			r.Kinds |= k.kind
		}
	}
	if q.known {
		r.Cgroup, r.Known = e.Cgroup, rules.KnowCgroup|rules.KnowKinds
		// What a kernel thread issues, it issues for somebody else.
		if !e.Kernel {
			r.UID, r.Known = e.UID, r.Known|rules.KnowUID
		}
	}
	return r
}

// attach gives the engine's request the attributes of the driver's. opaque are the bytes beside a
// write's tuple, if it has any.
func (h *queue) attach(r *ublk.Request, c *cache.Request, opaque []byte) {
	c.Attrs, c.Results = nil, nil
	if r.Op == ublk.OpFlush || h.pi == nil && !h.attrs.any(h.q.ID(), r) {
		return
	}
	q := h.attrs.look(h.q.ID(), r)
	if q.silent() && h.pi == nil {
		return
	}
	set := &h.attrs.sets[r.Tag]
	set.Clear()
	if opaque != nil {
		_ = set.DecodeCompact(opaque) // the set knows what is wrong, and answers so
	}
	q.addTo(set, c.Off, c.Len)
	// Results of a read always go beside its tuples.
	if !set.Empty() || h.pi != nil {
		c.Attrs, c.Results = set, &h.attrs.results[r.Tag]
	}
}

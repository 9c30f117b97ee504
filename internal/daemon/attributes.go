package daemon

import (
	"ubcache/attrs"
	"ubcache/cache"
	"ubcache/ublk"
)

// attributes collects what a queue knows of its requests besides their data, whatever the source:
// one attrs.Set for the engine. All of it belongs to the queue's thread.
type attributes struct {
	sets    []attrs.Set // by tag
	results []attrs.Results
}

func (a *attributes) init(depth int) {
	a.sets = make([]attrs.Set, depth)
	a.results = make([]attrs.Results, depth)
}

// begin gives a request of that tag an empty set and a place for results.
func (a *attributes) begin(c *cache.Request, tag uint16) *attrs.Set {
	set := &a.sets[tag]
	*set = attrs.Set{}
	c.Attrs, c.Results = set, &a.results[tag]
	return set
}

// attach gives the engine's request the attributes of the driver's. opaque are the bytes beside a
// write's tuple, if it has any.
func (h *queue) attach(r *ublk.Request, c *cache.Request, opaque []byte) {
	c.Attrs, c.Results = nil, nil
	if !r.HasData() {
		return
	}
	if h.pi != nil { // results always go beside the tuples
		set := h.attrs.begin(c, r.Tag)
		_ = set.DecodeCompact(opaque) // the set knows what is wrong, and answers so
	}
}

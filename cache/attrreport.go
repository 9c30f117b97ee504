package cache

import (
	"maps"
	"slices"

	"ubcache/attrs"
)

// AttributesStats say what became of the attributes of requests, and how the requests fared that
// had them.
type AttributesStats struct {
	// Unreadable counts sets that could not be read as a whole.
	Unreadable int64 `json:"unreadable"`
	// ByAttribute is by the attribute's name; "unknown" stands for all ids that are not known.
	ByAttribute map[string]AttributeStats `json:"by_attribute,omitempty"`
	// ByHint is by the hint's name, ByPriority by class and level ("rt/0"), ByTenant by id
	// ("7", or "cgroup:7"). A queue tells 64 tenants apart; the rest is under "other".
	ByHint     map[string]GroupStats `json:"by_hint,omitempty"`
	ByPriority map[string]GroupStats `json:"by_priority,omitempty"`
	ByTenant   map[string]GroupStats `json:"by_tenant,omitempty"`
}

// AttributeStats count the requests that had an attribute by their answers. Those seen that are none
// of the others were not answered at all.
type AttributeStats struct {
	Seen        int64 `json:"seen"`
	Handled     int64 `json:"handled"`
	Ignored     int64 `json:"ignored"`
	Unsupported int64 `json:"unsupported"`
	Invalid     int64 `json:"invalid"`
	// Sources is by the name of the source whose value counted; "none" if it was invalid or the id is not
	// known.
	Sources map[string]int64 `json:"sources,omitempty"`
}

// GroupStats are the counters of requests that have an attribute's value in common.
type GroupStats struct {
	Requests   int64 `json:"requests"`
	Errors     int64 `json:"errors"` // the rest counts only those that succeeded
	Bytes      int64 `json:"bytes"`
	ReadBlocks int64 `json:"read_blocks"`
	HitBlocks  int64 `json:"hit_blocks"` // of them
	// HitRatio is the share of them, from 0 to 1; 0 if none was read.
	HitRatio float64 `json:"hit_ratio"`
	// P50Ns and P99Ns are how long requests took, in nanoseconds, as Latency has it.
	P50Ns   int64     `json:"p50_ns"`
	P99Ns   int64     `json:"p99_ns"`
	Latency Histogram `json:"-"`
}

func (s *GroupStats) addGroup(g *group) {
	errors, hits := g.errors.Load(), g.hitBlocks.Load()
	s.Requests += errors + s.Latency.addCounts(&g.latency)
	s.Errors += errors
	s.Bytes += g.bytes.Load()
	s.ReadBlocks += hits + g.missBlocks.Load()
	s.HitBlocks += hits
}

func (s *GroupStats) add(o *GroupStats) {
	s.Requests += o.Requests
	s.Errors += o.Errors
	s.Bytes += o.Bytes
	s.ReadBlocks += o.ReadBlocks
	s.HitBlocks += o.HitBlocks
	s.Latency.add(&o.Latency)
}

const (
	otherTenants = "other"
	// maxTenantNames bounds the tenants of closed lanes that are remembered.
	maxTenantNames = 1024
)

// addGroup adds a group's counters under a name.
func addGroup(m *map[string]GroupStats, name string, g *group, kinds []countedKind) {
	if g == nil {
		return
	}
	if *m == nil {
		*m = map[string]GroupStats{}
	}
	s, ok := (*m)[name]
	if !ok && len(*m) >= maxTenantNames {
		name = otherTenants
		s = (*m)[name]
	}
	s.addGroup(g)
	for _, k := range kinds {
		if slices.Contains(k.groups[:k.nGroup], g) {
			s.addGroup(&k.group)
		}
	}
	(*m)[name] = s
}

// countedKind is a kind with its number of requests.
type countedKind struct {
	*kind
	n int64
}

// counted are the kinds that there are.
func (a *attrCounters) counted() (list []countedKind) {
	for i := range a.kinds {
		k := a.kinds[i].Load()
		if k == nil {
			break
		}
		n := k.errors.Load()
		for i := range k.latency {
			n += k.latency[i].Load()
		}
		list = append(list, countedKind{k, n})
	}
	return list
}

// addCounters adds those of a lane.
func (s *AttributesStats) addCounters(a *attrCounters) {
	kinds := a.counted()
	s.Unreadable += a.unreadable.Load()
	for id := 1; id < numAttrs; id++ {
		s.addAttribute(attrs.ID(id).String(), &a.answer[id], kinds)
	}
	s.addAttribute("unknown", &a.unknown, nil)
	for h := range a.hints {
		addGroup(&s.ByHint, attrs.Hint(h).String(), a.hints[h].Load(), kinds)
	}
	for class := range a.prios {
		for level := range a.prios[class] {
			p := attrs.Priority{Class: attrs.Class(class + 1), Level: uint8(level)}
			addGroup(&s.ByPriority, p.String(), a.prios[class][level].Load(), kinds)
		}
	}
	for i := range a.tenants.slots {
		if g := a.tenants.slots[i].Load(); g != nil {
			addGroup(&s.ByTenant, g.tenant.String(), &g.group, kinds)
		}
	}
	addGroup(&s.ByTenant, otherTenants, a.tenants.other.Load(), kinds)
}

func (s *AttributesStats) addAttribute(name string, a *answers, kinds []countedKind) {
	t := s.ByAttribute[name]
	seen := t.Seen
	by := [numStatuses]*int64{
		attrs.Handled: &t.Handled, attrs.Ignored: &t.Ignored,
		attrs.Unsupported: &t.Unsupported, attrs.Invalid: &t.Invalid,
	}
	for status := range a {
		for source := range a[status] {
			c := &a[status][source]
			n := c.Load()
			for _, k := range kinds {
				if slices.Contains(k.answers[:k.nAnswer], c) {
					n += k.n
				}
			}
			if n == 0 {
				continue
			}
			t.Seen += n
			if by[status] != nil {
				*by[status] += n
			}
			if t.Sources == nil {
				t.Sources = map[string]int64{}
			}
			t.Sources[attrs.Source(source).String()] += n
		}
	}
	if t.Seen == seen {
		return
	}
	if s.ByAttribute == nil {
		s.ByAttribute = map[string]AttributeStats{}
	}
	s.ByAttribute[name] = t
}

// clone is a copy that shares nothing.
func (s *AttributesStats) clone() AttributesStats {
	c := *s
	c.ByAttribute = maps.Clone(s.ByAttribute)
	for name, t := range c.ByAttribute {
		t.Sources = maps.Clone(t.Sources)
		c.ByAttribute[name] = t
	}
	for _, m := range []*map[string]GroupStats{&c.ByHint, &c.ByPriority, &c.ByTenant} {
		*m = maps.Clone(*m)
		for name, g := range *m {
			var copied GroupStats
			copied.add(&g)
			(*m)[name] = copied
		}
	}
	return c
}

// finish computes what is computed of the counters.
func (s *AttributesStats) finish() {
	for _, m := range []map[string]GroupStats{s.ByHint, s.ByPriority, s.ByTenant} {
		for name, g := range m {
			g.P50Ns, g.P99Ns = int64(g.Latency.Quantile(0.5)), int64(g.Latency.Quantile(0.99))
			if g.ReadBlocks > 0 {
				g.HitRatio = float64(g.HitBlocks) / float64(g.ReadBlocks)
			}
			m[name] = g
		}
	}
}

package rules

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"ubcache/attrs"
)

// Limits. A device with more rules or ranges is refused.
const (
	// MaxRules is the number of rules of a device.
	MaxRules = 64
	// MaxRanges is the number of ranges that all rules of a device have together, counted after those
	// of one rule that touch were joined. A table takes at most 32 bytes for each.
	MaxRanges = 1 << 20
)

// Rule gives attributes to the requests that meet all of its conditions.
type Rule struct {
	// Ranged rules match requests that lie wholly in Ranges, in any order and overlapping as they
	// may be; without any range they match nothing. Others do not look at Ranges.
	Ranged bool
	Ranges []Range
	// InCgroups rules match requests on account of one of the Cgroups; without any they match nothing.
	InCgroups bool
	Cgroups   []uint64
	// OfUID rules match requests issued by that user.
	OfUID bool
	UID   uint32
	// MinBytes and MaxBytes bound the size of a request, both included; 0 is no bound.
	MinBytes, MaxBytes int64
	// Direction is that of the requests; 0 stands for both.
	Direction attrs.Direction
	// Kinds are those of which a request must have at least one; 0 stands for any request.
	Kinds Kind

	// Set is what the rule gives; see [CheckSet].
	Set attrs.Set
	// Count is where matches are counted; nil if nowhere.
	Count *Count
}

// Needs says which properties the rule can only judge where the kernel tells them. A rule that names
// other kinds too still matches requests of those.
func (r *Rule) Needs() Known {
	var k Known
	if r.InCgroups {
		k |= KnowCgroup
	}
	if r.OfUID {
		k |= KnowUID
	}
	if r.Kinds&(Sync|Background) != 0 {
		k |= KnowKinds
	}
	return k
}

// Range is a run of bytes of a device: from Off up to End, which is not part of it.
type Range struct{ Off, End int64 }

// Count counts what a rule has matched. It has a cache line of its own.
type Count struct {
	requests, bytes atomic.Uint64
	_               [48]byte
}

// Requests is the number of requests that have matched.
func (c *Count) Requests() uint64 { return c.requests.Load() }

// Bytes is the sum of their sizes.
func (c *Count) Bytes() uint64 { return c.bytes.Load() }

func (c *Count) add(n int64) {
	if c != nil {
		c.requests.Add(1)
		c.bytes.Add(uint64(n))
	}
}

// The attributes that a rule cannot give, and why.
var (
	errNothing  = errors.New("gives no attribute")
	errChecksum = errors.New("checksums go with the data of one request, a rule cannot give them")
	errRequired = errors.New("a rule cannot make an attribute required: programs that said nothing would fail")
	errUnknown  = errors.New("a rule can only give attributes that have a name")
)

// CheckSet says why a set cannot be given by a rule; nil if it can.
func CheckSet(s *attrs.Set) error {
	if s.Empty() {
		return errNothing
	}
	known := 0
	for _, a := range attrs.Attributes() {
		switch {
		case s.Invalid(a.ID) != attrs.ReasonNone:
			return fmt.Errorf("%s: %v", a.Name, s.Invalid(a.ID))
		case s.Required(a.ID):
			return errRequired
		case s.Has(a.ID) && a.ID == attrs.IDChecksum:
			return errChecksum
		case s.Has(a.ID):
			known++
		}
	}
	if known == 0 || len(s.Unknown()) != 0 {
		return errUnknown
	}
	return nil
}

// ParseSet reads the attributes that a rule gives, as [attrs.ParseSet] does, with the rule as their
// source.
func ParseSet(text string) (attrs.Set, error) {
	s, err := attrs.ParseSet(text)
	if err == nil {
		err = CheckSet(&s)
	}
	s.Mark(attrs.SourceRule)
	return s, err
}

// Join sorts ranges in place and joins those that touch or overlap. It drops empty ones.
func Join(list []Range) []Range {
	list = slices.DeleteFunc(list, func(r Range) bool { return r.End <= r.Off })
	slices.SortFunc(list, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && r.Off <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}

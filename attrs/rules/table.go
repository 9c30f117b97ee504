package rules

import (
	"fmt"
	"math"
	"math/bits"
	"slices"

	"ubcache/attrs"
)

// Query is what a rule can look at of a request.
type Query struct {
	// Off and Len are the bytes of the device that it is for.
	Off, Len int64
	// Direction is Read or Write; a discard counts as a write.
	Direction attrs.Direction
	Kinds     Kind
	// Known says which of what follows, and which kinds, could be found out.
	Known  Known
	UID    uint32
	Cgroup uint64
}

// Table is the compiled rules of a device. The nil table has none. It does not change.
type Table struct {
	rules  []compiled
	ranged uint64 // a bit for each rule that has ranges
	// direction and kind have the rules that take a request of that direction and of that kind,
	// anyKind those that take all.
	direction [4]uint64
	kind      [kindCount]uint64
	anyKind   uint64
	// starts are the places where the set of rules changes that have the bytes from there on, and
	// masks those rules. The last mask is 0.
	starts []int64
	masks  []uint64
}

// compiled is what is left to look at when the bits have been.
type compiled struct {
	min, max   int64
	inCgroups  bool
	ofUID      bool
	uid        uint32
	cgroups    []uint64 // sorted
	attributes attrs.Set
	count      *Count
}

// Compile makes the table of a list of rules, which may be changed afterwards. No rules make the nil
// table. An error names the rule by its number, from 1 on.
func Compile(list []Rule) (*Table, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if len(list) > MaxRules {
		return nil, fmt.Errorf("%d rules; a device can have %d", len(list), MaxRules)
	}
	t := &Table{rules: make([]compiled, len(list))}
	ranges := make([][]Range, len(list))
	total := 0
	for i := range list {
		r := &list[i]
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		t.put(i, r)
		if r.Ranged {
			ranges[i] = Join(slices.Clone(r.Ranges))
			total += len(ranges[i])
		}
	}
	if total > MaxRanges {
		return nil, fmt.Errorf("%d ranges; the rules of a device can have %d together", total, MaxRanges)
	}
	t.sweep(ranges, total)
	return t, nil
}

func (r *Rule) check() error {
	for _, a := range r.Ranges {
		if a.Off < 0 {
			return fmt.Errorf("a range begins at %d", a.Off)
		}
	}
	switch {
	case r.Direction > attrs.Both:
		return fmt.Errorf("no such direction: %v", r.Direction)
	case r.Kinds&^allKinds != 0:
		return fmt.Errorf("no such kind: %#x", uint8(r.Kinds))
	case r.MinBytes < 0 || r.MaxBytes < 0 || r.MaxBytes != 0 && r.MinBytes > r.MaxBytes:
		return fmt.Errorf("no request has a size of %d to %d bytes", r.MinBytes, r.MaxBytes)
	}
	return CheckSet(&r.Set)
}

// put enters all of rule number i but its ranges.
func (t *Table) put(i int, r *Rule) {
	c := compiled{
		min: r.MinBytes, max: r.MaxBytes, inCgroups: r.InCgroups, ofUID: r.OfUID, uid: r.UID,
		cgroups: slices.Sorted(slices.Values(r.Cgroups)), attributes: r.Set, count: r.Count,
	}
	if c.max == 0 {
		c.max = math.MaxInt64
	}
	c.attributes.Mark(attrs.SourceRule)
	t.rules[i] = c
	bit := uint64(1) << i
	if r.Ranged {
		t.ranged |= bit
	}
	for _, d := range []attrs.Direction{attrs.Read, attrs.Write} {
		if r.Direction == 0 || r.Direction&d != 0 {
			t.direction[d] |= bit
		}
	}
	if r.Kinds == 0 {
		t.anyKind |= bit
	}
	for k := range kindCount {
		if r.Kinds>>k&1 != 0 {
			t.kind[k] |= bit
		}
	}
}

// sweep goes over the ranges of all rules from the first place to the last and notes each change.
func (t *Table) sweep(ranges [][]Range, total int) {
	t.starts = make([]int64, 0, 2*total)
	t.masks = make([]uint64, 0, 2*total)
	mask := uint64(0)
	for {
		at := int64(-1)
		for i, list := range ranges {
			if len(list) == 0 {
				continue
			}
			if next := boundary(list[0], mask>>i&1 != 0); at < 0 || next < at {
				at = next
			}
		}
		if at < 0 {
			return
		}
		for i, list := range ranges {
			inside := mask>>i&1 != 0
			if len(list) == 0 || boundary(list[0], inside) != at {
				continue
			}
			mask ^= 1 << i
			if inside {
				ranges[i] = list[1:]
			}
		}
		t.starts, t.masks = append(t.starts, at), append(t.masks, mask)
	}
}

// boundary is where the next change of a rule is, whose current range is r.
func boundary(r Range, inside bool) int64 {
	if inside {
		return r.End
	}
	return r.Off
}

// Apply merges into the set what the rules give that match the request, and says whether any did.
// It does not allocate, and any number of threads may call it. A request without data matches nothing.
func (t *Table) Apply(q Query, set *attrs.Set) bool {
	if t == nil || q.Len <= 0 {
		return false
	}
	m := t.direction[q.Direction&attrs.Both] & t.ofKind(&q)
	if m&t.ranged != 0 {
		m &= t.cover(q.Off, q.Len) | ^t.ranged
	}
	matched := false
	for ; m != 0; m &= m - 1 {
		r := &t.rules[bits.TrailingZeros64(m)]
		if r.fits(&q) {
			set.Merge(&r.attributes)
			r.count.add(q.Len)
			matched = true
		}
	}
	return matched
}

// ofKind is the rules that take a request of these kinds.
func (t *Table) ofKind(q *Query) uint64 {
	m := t.anyKind
	k := q.Kinds & allKinds
	if q.Known&KnowKinds == 0 {
		k &^= Sync | Background
	}
	for ; k != 0; k &= k - 1 {
		m |= t.kind[bits.TrailingZeros8(uint8(k))]
	}
	return m
}

// cover is the rules that have all bytes of a request in their ranges.
func (t *Table) cover(off, n int64) uint64 {
	lo, hi := 0, len(t.starts) // the first start behind off is in lo … hi
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if t.starts[mid] <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return 0
	}
	m := t.masks[lo-1]
	for ; m != 0 && lo < len(t.starts) && t.starts[lo]-off < n; lo++ {
		m &= t.masks[lo]
	}
	return m
}

// fits looks at the conditions that have no bits.
func (r *compiled) fits(q *Query) bool {
	if q.Len < r.min || q.Len > r.max {
		return false
	}
	if r.ofUID && (q.Known&KnowUID == 0 || q.UID != r.uid) {
		return false
	}
	if !r.inCgroups {
		return true
	}
	if q.Known&KnowCgroup == 0 {
		return false
	}
	_, found := slices.BinarySearch(r.cgroups, q.Cgroup)
	return found
}

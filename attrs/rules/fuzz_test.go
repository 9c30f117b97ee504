package rules

import (
	"math/rand/v2"
	"testing"

	"ubcache/attrs"
)

// naive says whether a rule matches, sector by sector and condition by condition.
func naive(r *Rule, q *Query) bool {
	if q.Len <= 0 || q.Len < r.MinBytes || r.MaxBytes != 0 && q.Len > r.MaxBytes {
		return false
	}
	if r.Direction != 0 && r.Direction&q.Direction == 0 {
		return false
	}
	if r.OfUID && !(q.Known&KnowUID != 0 && q.UID == r.UID) {
		return false
	}
	if r.InCgroups {
		in := false
		for _, id := range r.Cgroups {
			in = in || id == q.Cgroup
		}
		if !in || q.Known&KnowCgroup == 0 {
			return false
		}
	}
	if r.Kinds != 0 {
		any := false
		for k := Kind(1); k < allKinds; k <<= 1 {
			known := k != Sync && k != Background || q.Known&KnowKinds != 0
			any = any || known && r.Kinds&k != 0 && q.Kinds&k != 0
		}
		if !any {
			return false
		}
	}
	if !r.Ranged {
		return true
	}
	for at := q.Off; at < q.Off+q.Len; at++ {
		in := false
		for _, a := range r.Ranges {
			in = in || a.Off <= at && at < a.End
		}
		if !in {
			return false
		}
	}
	return true
}

// checkSeed compares tables with the naive model on rules and requests made from a seed.
func checkSeed(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	some := func() bool { return rnd.IntN(3) == 0 }
	const end = 96
	list := make([]Rule, 1+rnd.IntN(8))
	if rnd.IntN(8) == 0 {
		list = make([]Rule, MaxRules)
	}
	for i := range list {
		r := &list[i]
		r.Set.SetTrace(uint64(i + 1))
		r.Set.Mark(attrs.SourceRule)
		r.Count = &Count{}
		r.Ranged, r.OfUID, r.InCgroups = !some(), some(), some()
		for range rnd.IntN(8) {
			at := rnd.Int64N(end)
			r.Ranges = append(r.Ranges, Range{at, at + rnd.Int64N(24)})
		}
		for range rnd.IntN(3) {
			r.Cgroups = append(r.Cgroups, rnd.Uint64N(3))
		}
		r.UID = rnd.Uint32N(2)
		r.Direction = attrs.Direction(rnd.IntN(4))
		if some() {
			r.Kinds = Kind(rnd.IntN(allKinds + 1))
		}
		if some() {
			r.MinBytes = rnd.Int64N(8)
		}
		if some() {
			r.MaxBytes = r.MinBytes + rnd.Int64N(8)
		}
	}
	table, err := Compile(list)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	counts := make([]uint64, len(list))
	for range 50 {
		q := Query{
			Off: rnd.Int64N(end), Len: rnd.Int64N(12), Direction: attrs.Read + attrs.Direction(rnd.IntN(2)),
			Kinds: Kind(rnd.IntN(allKinds + 1)), Known: Known(rnd.IntN(8)),
			UID: rnd.Uint32N(2), Cgroup: rnd.Uint64N(3),
		}
		first := 0
		for i := range list {
			if naive(&list[i], &q) {
				counts[i]++
				if first == 0 {
					first = i + 1
				}
			}
		}
		var s attrs.Set
		matched := table.Apply(q, &s)
		if matched != (first != 0) || s.Trace() != uint64(first) {
			t.Fatalf("seed %d: %+v matches: %t, first rule %d, want %d", seed, q, matched, s.Trace(), first)
		}
	}
	for i := range list {
		if got := list[i].Count.Requests(); got != counts[i] {
			t.Fatalf("seed %d: rule %d counted %d requests, want %d", seed, i+1, got, counts[i])
		}
	}
}

func FuzzApply(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(checkSeed)
}

func BenchmarkApply(b *testing.B) {
	extents := make([]Range, 100_000)
	for i := range extents {
		extents[i] = Range{int64(i) << 20, int64(i)<<20 + 1<<19}
	}
	bypass := set(b, "hint=bypass")
	files := Rule{Set: bypass, Ranged: true, Ranges: extents, Count: &Count{}}
	for _, c := range []struct {
		name  string
		table *Table
	}{
		{"none", nil},
		{"size-no-match", compile(b, Rule{Set: bypass, MinBytes: 1 << 20})},
		{"extents-100k", compile(b, files)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			q := read(0, 4096)
			n := int64(0)
			for b.Loop() {
				var s attrs.Set
				q.Off = n * 7919 % 100_000 << 20
				n++
				c.table.Apply(q, &s)
			}
		})
	}
}

package rules

import (
	"slices"
	"strings"
	"testing"

	"ubcache/attrs"
)

// set reads attributes as a rule gives them.
func set(t testing.TB, text string) attrs.Set {
	t.Helper()
	s, err := ParseSet(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func compile(t testing.TB, list ...Rule) *Table {
	t.Helper()
	table, err := Compile(list)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// read is a request of which all is known.
func read(off, n int64) Query {
	return Query{
		Off: off, Len: n, Direction: attrs.Read, Known: KnowCgroup | KnowUID | KnowKinds,
		UID: 1000, Cgroup: 42,
	}
}

// with changes a query.
func with(q Query, change func(q *Query)) Query {
	change(&q)
	return q
}

func TestConditions(t *testing.T) {
	write := func(q *Query) { q.Direction = attrs.Write }
	kinds := func(k Kind) func(*Query) { return func(q *Query) { q.Kinds = k } }
	ranged := Rule{Ranged: true, Ranges: []Range{{8192, 12288}, {4096, 8192}, {20480, 24576}}}
	for _, c := range []struct {
		name string
		rule Rule
		q    Query
		want bool
	}{
		{"no condition", Rule{}, read(0, 512), true},
		{"no data", Rule{}, read(0, 0), false},
		{"the ranges joined", ranged, read(4096, 8192), true},
		{"in the last range", ranged, read(24064, 512), true},
		{"a sector too early", ranged, read(3584, 1024), false},
		{"a sector too far", ranged, read(11776, 1024), false},
		{"over a gap", ranged, read(4096, 20480), false},
		{"in the gap", ranged, read(12288, 512), false},
		{"before all", ranged, read(0, 4096), false},
		{"behind all", ranged, read(24576, 512), false},
		{"as far as numbers go", ranged, read(4096, 1<<63-1), false},
		{"ranges, but none", Rule{Ranged: true}, read(0, 512), false},
		{"ranges that do not count", Rule{Ranges: []Range{{0, 512}}}, read(4096, 512), true},
		{"min", Rule{MinBytes: 4096}, read(0, 4096), true},
		{"below min", Rule{MinBytes: 4096}, read(0, 3584), false},
		{"max", Rule{MaxBytes: 4096}, read(0, 4096), true},
		{"above max", Rule{MaxBytes: 4096}, read(0, 4608), false},
		{"read", Rule{Direction: attrs.Read}, read(0, 512), true},
		{"not read", Rule{Direction: attrs.Read}, with(read(0, 512), write), false},
		{"write", Rule{Direction: attrs.Write}, with(read(0, 512), write), true},
		{"not write", Rule{Direction: attrs.Write}, read(0, 512), false},
		{"both", Rule{Direction: attrs.Both}, with(read(0, 512), write), true},
		{"kind", Rule{Kinds: Meta}, with(read(0, 512), kinds(Meta|Sync)), true},
		{"one of the kinds", Rule{Kinds: Meta | Swap}, with(read(0, 512), kinds(Swap)), true},
		{"another kind", Rule{Kinds: Meta}, with(read(0, 512), kinds(Readahead)), false},
		{"no kind", Rule{Kinds: Meta}, read(0, 512), false},
		{"sync", Rule{Kinds: Sync}, with(read(0, 512), kinds(Sync)), true},
		{"sync not known", Rule{Kinds: Sync}, with(read(0, 512), func(q *Query) {
			q.Kinds, q.Known = Sync, KnowCgroup|KnowUID
		}), false},
		{"meta is always known", Rule{Kinds: Sync | Meta}, with(read(0, 512), func(q *Query) {
			q.Kinds, q.Known = Meta, 0
		}), true},
		{"uid", Rule{OfUID: true, UID: 1000}, read(0, 512), true},
		{"root", Rule{OfUID: true}, read(0, 512), false},
		{"uid not known", Rule{OfUID: true}, Query{Len: 512, Direction: attrs.Read}, false},
		{"cgroup", Rule{InCgroups: true, Cgroups: []uint64{99, 42, 7}}, read(0, 512), true},
		{"other cgroups", Rule{InCgroups: true, Cgroups: []uint64{99, 7}}, read(0, 512), false},
		{"no cgroup", Rule{InCgroups: true}, read(0, 512), false},
		{
			"cgroup not known",
			Rule{InCgroups: true, Cgroups: []uint64{0}},
			Query{Len: 512, Direction: attrs.Read},
			false,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.rule.Set = set(t, "hint=bypass")
			c.rule.Count = &Count{}
			table := compile(t, c.rule)
			var s attrs.Set
			if got := table.Apply(c.q, &s); got != c.want || s.Has(attrs.IDHint) != c.want {
				t.Errorf("matches: %t, with hint: %t, want %t", got, s.Has(attrs.IDHint), c.want)
			}
			n, bytes := uint64(0), uint64(0)
			if c.want {
				n, bytes = 1, uint64(c.q.Len)
			}
			if c.rule.Count.Requests() != n || c.rule.Count.Bytes() != bytes {
				t.Errorf("counted %d requests, %d bytes", c.rule.Count.Requests(), c.rule.Count.Bytes())
			}
		})
	}
}

func TestPrecedence(t *testing.T) {
	table := compile(t,
		Rule{Set: set(t, "hint=bypass"), MinBytes: 4096},
		Rule{Set: set(t, "hint=pin,prio=idle,lifetime=long")},
		Rule{Set: set(t, "prio=rt/1,trace=7")},
	)
	apply := func(n int64, text string) string {
		s, err := attrs.ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		table.Apply(read(0, n), &s)
		return s.String()
	}
	for _, c := range []struct {
		n          int64
		text, want string
	}{
		{4096, "", "hint=bypass,prio=idle/0,lifetime=long,trace=0x7"},
		{512, "", "hint=pin,prio=idle/0,lifetime=long,trace=0x7"},
		{4096, "hint=default,prio=be/2", "hint=default,prio=be/2,lifetime=long,trace=0x7"},
	} {
		if got := apply(c.n, c.text); got != c.want {
			t.Errorf("%d bytes with %q: %s, want %s", c.n, c.text, got, c.want)
		}
	}
	var s attrs.Set
	s.SetHint(attrs.HintOnce)
	s.Mark(attrs.SourceDefault)
	table.Apply(read(0, 512), &s)
	if s.Hint() != attrs.HintPin || s.Source(attrs.IDHint) != attrs.SourceRule ||
		!s.Offered(attrs.IDHint).Has(attrs.SourceDefault) {
		t.Errorf("over a default: %s", s.Explain())
	}
}

// TestSourceIsRule gives a rule a set that was parsed as an explicit one.
func TestSourceIsRule(t *testing.T) {
	given, err := attrs.ParseSet("hint=pin")
	if err != nil {
		t.Fatal(err)
	}
	var s attrs.Set
	compile(t, Rule{Set: given}).Apply(read(0, 512), &s)
	if s.Source(attrs.IDHint) != attrs.SourceRule || s.Offered(attrs.IDHint) != 1<<attrs.SourceRule {
		t.Errorf("given by a rule:\n%s", s.Explain())
	}
}

func TestCompileErrors(t *testing.T) {
	ok := set(t, "hint=pin")
	var invalid attrs.Set
	invalid.SetHint(99)
	many := make([]Range, MaxRanges+1)
	for i := range many {
		many[i] = Range{int64(i) * 1024, int64(i)*1024 + 512}
	}
	for _, c := range []struct {
		rule Rule
		want string
	}{
		{Rule{}, "rule 1: gives no attribute"},
		{Rule{Set: invalid}, "rule 1: hint: value out of range"},
		{Rule{Set: ok, Ranges: []Range{{-1, 5}}}, "rule 1: a range begins at -1"},
		{Rule{Set: ok, Direction: 4}, "no such direction"},
		{Rule{Set: ok, Kinds: 1 << kindCount}, "no such kind"},
		{Rule{Set: ok, MinBytes: 8192, MaxBytes: 4096}, "no request has a size of 8192 to 4096"},
		{Rule{Set: ok, Ranged: true, Ranges: many}, "1048577 ranges"},
	} {
		if _, err := Compile([]Rule{c.rule}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	compile(t, Rule{Set: ok, Ranged: true, Ranges: many[1:]})
	list := slices.Repeat([]Rule{{Set: ok}}, MaxRules)
	compile(t, list...)
	if _, err := Compile(append(list, list[0])); err == nil {
		t.Error("too many rules accepted")
	}
	if table, err := Compile(nil); table != nil || err != nil {
		t.Errorf("no rules make %v, %v", table, err)
	}
}

func TestParseSet(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "gives no attribute",
		"hint=x":                 "no such value",
		"checksum=crc32c":        "checksums go with the data",
		"required:hint,hint=pin": "cannot make an attribute required",
		"0xf001=00,hint=pin":     "that have a name",
	} {
		if _, err := ParseSet(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	s := set(t, "tenant=cgroup:9,timing")
	if s.Source(attrs.IDTenant) != attrs.SourceRule || s.Source(attrs.IDTiming) != attrs.SourceRule {
		t.Errorf("sources: %s", s.Explain())
	}
}

func TestKinds(t *testing.T) {
	for k := Kind(1); k <= allKinds; k++ {
		if back, err := ParseKinds(k.String()); err != nil || back != k {
			t.Errorf("%#x is written %q and read %#x (%v)", uint8(k), k, uint8(back), err)
		}
	}
	if _, err := ParseKinds("meta,x"); err == nil || !strings.Contains(err.Error(), "readahead, meta") {
		t.Errorf("got %v", err)
	}
}

func TestNeeds(t *testing.T) {
	for want, r := range map[Known]Rule{
		0:                    {Kinds: Meta | Swap | Readahead, MinBytes: 1, Ranged: true},
		KnowCgroup:           {InCgroups: true},
		KnowUID:              {OfUID: true},
		KnowKinds:            {Kinds: Meta | Sync},
		KnowCgroup | KnowUID: {InCgroups: true, OfUID: true},
	} {
		if got := r.Needs(); got != want {
			t.Errorf("needs %v, want %v", got, want)
		}
	}
	if r := (Rule{Kinds: Background}); r.Needs() != KnowKinds {
		t.Errorf("kind background needs %v", r.Needs())
	}
	if s := (KnowCgroup | KnowKinds).String(); s != "cgroup, kind sync or background" {
		t.Errorf("named %q", s)
	}
}

func TestJoin(t *testing.T) {
	list := Join([]Range{{30, 40}, {10, 20}, {15, 25}, {25, 26}, {5, 5}})
	if want := []Range{{10, 26}, {30, 40}}; !slices.Equal(list, want) {
		t.Fatalf("joined: %v, want %v", list, want)
	}
}

func TestNoAllocation(t *testing.T) {
	table := compile(t,
		Rule{Set: set(t, "hint=bypass,tenant=5"), Ranged: true, Ranges: []Range{{0, 1 << 30}}},
		Rule{Set: set(t, "prio=idle"), InCgroups: true, Cgroups: []uint64{42}, Count: &Count{}},
	)
	q := read(4096, 8192)
	if n := testing.AllocsPerRun(100, func() {
		var s attrs.Set
		if !table.Apply(q, &s) {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a request", n)
	}
}

package cache

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"ubcache/attrs"
)

func TestAttributeStats(t *testing.T) {
	h := small(t)
	h.lapse = int64(time.Millisecond)
	play := func(op ReqOp, change func(*attrs.Set), text string) error {
		t.Helper()
		set, err := attrs.ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(&set)
		}
		return h.do(&Request{Op: op, Len: 4 * BlockSize, Data: fill(1, 4), Attrs: &set})
	}
	for range 3 {
		if err := play(ReqWrite, nil, "hint=cache,mode=writeback,prio=rt/2,tenant=7"); err != nil {
			t.Fatal(err)
		}
	}
	rule := func(s *attrs.Set) { s.Mark(attrs.SourceRule) }
	for _, change := range []func(*attrs.Set){rule, nil} {
		if err := play(ReqRead, change, "hint=cache,mode=writearound,tenant=cgroup:7"); err != nil {
			t.Fatal(err)
		}
	}
	if play(ReqRead, nil, "0xf001=00,required:0xf001,hint=once") == nil {
		t.Fatal("not refused")
	}
	invalid := func(s *attrs.Set) { s.SetPriority(attrs.Priority{Class: 9}) }
	if err := play(ReqRead, invalid, ""); err != nil {
		t.Fatal(err)
	}
	var broken attrs.Set
	if broken.Decode([]byte("UBAS\x63\x00")) == nil {
		t.Fatal("decoded")
	}
	if err := h.do(&Request{Op: ReqFlush, Attrs: &broken}); err != nil {
		t.Fatal(err)
	}
	h.wantRead(0, fill(1, 4)) // has no attributes

	check := func(s *AttributesStats) {
		t.Helper()
		if s.Unreadable != 1 {
			t.Errorf("%d unreadable", s.Unreadable)
		}
		for name, want := range map[string]AttributeStats{
			"hint":    {Seen: 6, Handled: 6},
			"mode":    {Seen: 5, Handled: 3, Ignored: 2},
			"prio":    {Seen: 4, Invalid: 1},
			"unknown": {Seen: 1, Unsupported: 1},
		} {
			got := s.ByAttribute[name]
			got.Sources = nil
			if name == "prio" {
				got.Handled, got.Ignored = 0, 0 // not of concern here
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %+v, want %+v", name, got, want)
			}
		}
		if got := fmt.Sprint(s.ByAttribute["hint"].Sources); got != "map[explicit:5 rule:1]" {
			t.Errorf("sources of hint: %s", got)
		}
		for _, g := range []struct {
			name                           string
			of                             map[string]GroupStats
			n, errors, bytes, blocks, hits int64
		}{
			{"cache", s.ByHint, 5, 0, 5 * 4 * BlockSize, 8, 8},
			{"once", s.ByHint, 1, 1, 0, 0, 0},
			{"rt/2", s.ByPriority, 3, 0, 3 * 4 * BlockSize, 0, 0},
			{"7", s.ByTenant, 3, 0, 3 * 4 * BlockSize, 0, 0},
			{"cgroup:7", s.ByTenant, 2, 0, 2 * 4 * BlockSize, 8, 8},
		} {
			got := g.of[g.name]
			if got.Requests != g.n || got.Errors != g.errors || got.Bytes != g.bytes ||
				got.ReadBlocks != g.blocks || got.HitBlocks != g.hits {
				t.Errorf("%s: %+v", g.name, got)
			}
			if g.n == g.errors {
				continue
			}
			if p50 := time.Duration(got.P50Ns); p50 < 850*time.Microsecond || p50 > 1150*time.Microsecond {
				t.Errorf("%s: median %v", g.name, p50)
			}
		}
		if n := len(s.ByHint) + len(s.ByPriority) + len(s.ByTenant); n != 5 {
			t.Errorf("%d groups", n)
		}
	}
	s := h.c.Stats().Attributes
	check(&s)
	text, err := json.Marshal(h.c.Stats())
	if err != nil || !strings.Contains(string(text), `"by_priority":{"rt/2":{"requests":3,"errors":0,"bytes":49152,`) {
		t.Errorf("%s, %v", text, err)
	}
	// What a lane counted stays when it ends, and is not what others were given.
	h.settle()
	h.l.Close()
	for range 2 {
		s = h.c.Stats().Attributes
		check(&s)
	}
	h.l = h.c.NewLane(h)
	h.c.StartBackground(h.l)
	if err := play(ReqRead, nil, "hint=cache"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got := h.c.Stats().Attributes.ByHint["cache"]
		n := int64(0)
		for _, count := range got.Latency.counts {
			n += count
		}
		if got.Requests != 6 || n != 6 {
			t.Errorf("two lanes: %d requests, %d latencies", got.Requests, n)
		}
	}
	check(&s)
}

// More tenants than the table has places for are counted together.
func TestManyTenants(t *testing.T) {
	h := small(t)
	var set attrs.Set
	for i := range 3 * maxTenants {
		set.SetTenant(attrs.Tenant{ID: uint64(i % (3 * maxTenants / 2)), Cgroup: i%2 == 0})
		if err := h.do(&Request{Op: ReqRead, Len: BlockSize, Data: fill(0, 1), Attrs: &set}); err != nil {
			t.Fatal(err)
		}
	}
	s := h.c.Stats().Attributes.ByTenant
	if len(s) != maxTenants+1 {
		t.Errorf("%d tenants", len(s))
	}
	n := int64(0)
	for name, g := range s {
		n += g.Requests
		if name != otherTenants && g.Requests != 2 {
			t.Errorf("%s: %d requests", name, g.Requests)
		}
	}
	if n != 3*maxTenants || s[otherTenants].Requests != maxTenants {
		t.Errorf("%d requests, %d of others", n, s[otherTenants].Requests)
	}
}

// The registry and the tables of the statistics have the same attributes, hints and so on.
func TestStatsKnowAll(t *testing.T) {
	if n := len(attrs.Attributes()); n+1 != numAttrs {
		t.Errorf("%d attributes, not %d", numAttrs-1, n)
	}
	hint, _ := attrs.Lookup("hint")
	if len(hint.Values) != numHints {
		t.Errorf("%d hints, not %d", numHints, len(hint.Values))
	}
}

func TestHistogram(t *testing.T) {
	for i := range histBuckets {
		lo, hi := bucketStart(i), bucketStart(i+1)
		if lo >= hi || latencyBucket(lo) != i || latencyBucket(hi-1) != i {
			t.Fatalf("bucket %d: %d to %d are of %d and %d", i, lo, hi-1, latencyBucket(lo), latencyBucket(hi-1))
		}
		if i >= 2*histSub && float64(hi-lo) > 0.126*float64(lo) {
			t.Errorf("bucket %d: %d to %d", i, lo, hi)
		}
	}
	for _, ns := range []int64{-5, 0, 1 << 62} {
		if b := latencyBucket(ns); b != 0 && b != histBuckets-1 {
			t.Errorf("%d: bucket %d", ns, b)
		}
	}
	rng := rand.New(rand.NewPCG(4, 2))
	var all []int64
	var h histogram
	for range 10000 {
		ns := int64(20000 * (1 + 50*rng.ExpFloat64()))
		all = append(all, ns)
		h[latencyBucket(ns)].Add(1)
	}
	slices.Sort(all)
	var sum, empty Histogram
	sum.addCounts(&h)
	sum.add(&sum)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999} {
		want := float64(all[int(q*float64(len(all)))])
		if got := float64(sum.Quantile(q)); got < 0.87*want || got > 1.13*want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if empty.Quantile(0.5) != 0 {
		t.Error("something of nothing")
	}
	if got := fmt.Sprintf("%+v", map[string]GroupStats{"x": {}}["x"].Latency); got != "0, p50 0s, p99 0s" {
		t.Errorf("printed as %s", got)
	}
}

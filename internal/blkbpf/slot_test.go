package blkbpf

import (
	"encoding/binary"
	"testing"

	"ubcache/attrs"
)

var testBits = flagBits{
	readahead: 1 << 19, meta: 1 << 12, prio: 1 << 13, background: 1 << 20, sync: 1 << 11,
}

// fill writes a slot as the program does.
func fill(slot []byte, sector uint64, sectors uint32, flags, task uint32) {
	ne := binary.NativeEndian
	slot[slotFilled] = 1
	ne.PutUint32(slot[slotBlkLen:], sectors<<9)
	ne.PutUint64(slot[slotSector:], sector)
	ne.PutUint64(slot[slotCgroup:], 1<<40|7)
	ne.PutUint32(slot[slotFlags:], flags)
	ne.PutUint32(slot[slotPID:], 1234)
	ne.PutUint32(slot[slotUID:], 1000)
	ne.PutUint32(slot[slotTask:], task)
	ne.PutUint32(slot[slotSaid:], 2<<16|0x2963)
}

func TestTake(t *testing.T) {
	base := Event{IOPrio: 0x2963, WriteHint: 2, PID: 1234, UID: 1000, Cgroup: 1<<40 | 7}
	for _, c := range []struct {
		name        string
		flags, task uint32
		change      func(*Event)
	}{
		{"nothing", 0, 0, func(*Event) {}},
		{"write", 1, 0, func(e *Event) { e.Write = true }},
		{"write zeroes", 9, 0, func(e *Event) { e.Write = true }},
		{"flush", 2, 0, func(*Event) {}},
		{"readahead", 1 << 19, 0, func(e *Event) { e.Readahead = true }},
		{"meta", 1 << 12, 0, func(e *Event) { e.Meta = true }},
		{"prio", 1 << 13, 0, func(e *Event) { e.Prio = true }},
		{"background", 1 << 20, 0, func(e *Event) { e.Background = true }},
		{"sync", 1 << 11, 0, func(e *Event) { e.Sync = true }},
		{"others", ^uint32(1 | 1<<19 | 1<<12 | 1<<13 | 1<<20 | 1<<11), ^uint32(1 << 21), func(*Event) {}},
		{"kernel thread", 0, 1 << 21, func(e *Event) { e.Kernel = true }},
	} {
		slot := make([]byte, slotBytes)
		fill(slot, 1<<33|8, 8, c.flags, c.task)
		want := base
		c.change(&want)
		if got, ok := take(slot, 1<<33|8, 8, &testBits); !ok || got != want {
			t.Errorf("%s: %+v, %t; want %+v", c.name, got, ok, want)
		}
	}
}

// TestStale: what another request left is not taken, and not later either.
func TestStale(t *testing.T) {
	slot := make([]byte, slotBytes)
	d := &Device{bits: testBits, slots: [][]byte{slot}}
	look := func(what string, sector uint64, sectors uint32, want bool) {
		t.Helper()
		e, ok := d.Lookup(0, 0, sector, sectors)
		if ok != want {
			t.Errorf("%s: %+v, %t", what, e, ok)
		}
		if d.Any(0, 0) {
			t.Errorf("%s: there still", what)
		}
		if !ok && e != (Event{}) {
			t.Errorf("%s: not found, but %+v", what, e)
		}
	}
	look("never filled", 0, 0, false)
	fill(slot, 8, 8, 0, 0)
	look("filled", 8, 8, true)
	look("taken already", 8, 8, false)
	fill(slot, 8, 8, 0, 0)
	look("another position", 16, 8, false)
	look("dropped by that", 8, 8, false)
	fill(slot, 8, 8, 0, 0)
	look("another length", 8, 16, false)
	fill(slot, 0, 1<<22, 0, 0) // 2 GiB: a discard, whose length in bytes fits 32 bits just so
	look("long", 0, 1<<22, true)
}

func TestAddTo(t *testing.T) {
	for _, c := range []struct {
		name string
		e    Event
		want string
	}{
		{"nothing", Event{}, ""},
		{"ordinary", Event{IOPrio: 2<<13 | 4, Cgroup: RootCgroup, Readahead: true, PID: 7}, ""},
		{"flush in the root", Event{Cgroup: RootCgroup}, ""},
		{"hint", Event{IOPrio: 2<<13 | 770<<3 | 4}, "hint=bypass"},
		{"priority", Event{IOPrio: 3 << 13}, "prio=idle/0"},
		{"both", Event{IOPrio: 1<<13 | 769<<3 | 2}, "hint=cache,prio=rt/2"},
		{"lifetime", Event{WriteHint: 5, Write: true}, "lifetime=extreme"},
		{"lifetime of a read", Event{WriteHint: 5}, ""},
		{"tenant", Event{Cgroup: 4242}, "tenant=cgroup:4242"},
	} {
		var s attrs.Set
		c.e.AddTo(&s)
		if got := s.String(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if c.want == "" && !s.Empty() {
			t.Errorf("%s: not empty", c.name)
		}
		if c.e.Silent() != s.Empty() {
			t.Errorf("%s: silent %t", c.name, c.e.Silent())
		}
	}
	e := Event{IOPrio: 2<<13 | 770<<3 | 4, WriteHint: 2, Write: true, Cgroup: 9}
	var s attrs.Set
	e.AddTo(&s)
	for id, want := range map[attrs.ID]attrs.Source{
		attrs.IDHint: attrs.SourceIOPrio, attrs.IDLifetime: attrs.SourceKernel,
		attrs.IDTenant: attrs.SourceKernel,
	} {
		if got := s.Source(id); got != want {
			t.Errorf("source of %v: %v, want %v", id, got, want)
		}
	}
}

func TestLookup(t *testing.T) {
	if e, ok := (*Device)(nil).Lookup(3, 4, 80, 8); ok || e != (Event{}) {
		t.Errorf("without a program: %+v, %t", e, ok)
	}
	if (*Device)(nil).Any(3, 4) {
		t.Error("without a program: any")
	}
	d := &Device{bits: testBits}
	for range 3 {
		d.slots = append(d.slots, make([]byte, 16*slotBytes))
	}
	fill(d.slots[2][5*slotBytes:], 80, 8, 0, 0)
	for q := range 3 {
		for tag := range 16 {
			if d.Any(q, tag) != (q == 2 && tag == 5) {
				t.Errorf("queue %d, tag %d: any %t", q, tag, d.Any(q, tag))
			}
			if _, ok := d.Lookup(q, tag, 80, 8); ok != (q == 2 && tag == 5) {
				t.Errorf("queue %d, tag %d: %t", q, tag, ok)
			}
		}
	}
	n := testing.AllocsPerRun(100, func() {
		fill(d.slots[1][15*slotBytes:], 80, 8, 0, 0)
		var s attrs.Set
		if e, ok := d.Lookup(1, 15, 80, 8); ok {
			e.AddTo(&s)
		}
		if !s.Has(attrs.IDTenant) {
			t.Error("not found")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAddTo(b *testing.B) {
	for _, c := range []struct {
		name string
		e    Event
	}{
		{"plain", Event{IOPrio: plainIOPrio}},
		{"cgroup", Event{IOPrio: plainIOPrio, Cgroup: 42}},
		{"all", Event{IOPrio: 3<<13 | 770<<3, Cgroup: 42, WriteHint: 2, Write: true}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var s attrs.Set
			for b.Loop() {
				if c.e.Silent() {
					continue
				}
				s = attrs.Set{}
				c.e.AddTo(&s)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	d := &Device{bits: testBits, slots: [][]byte{make([]byte, 128*slotBytes)}}
	var n int
	for b.Loop() {
		slot := d.slots[0][n*slotBytes:]
		slot[slotFilled] = 1
		if _, ok := d.Lookup(0, n, 0, 0); !ok {
			b.Fatal("not found")
		}
		n = (n + 1) % 128
	}
}

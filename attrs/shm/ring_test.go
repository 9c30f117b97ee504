package shm

import (
	"errors"
	"testing"
)

func TestRing(t *testing.T) {
	const entries = 8
	r, v := pair(t, Options{Bytes: 1 << 16, Entries: entries})
	g := r.Ring()
	s, ok := v.Server()
	if !ok {
		t.Fatal("no ring")
	}
	if ok, err := s.Sleep(); !ok || err != nil {
		t.Fatal("the server cannot sleep on an empty ring: ", err)
	}
	n := uint64(0)
	for round := range 5 {
		for i := range entries {
			e := Entry{
				Op: OpWrite, Flags: FUA, Device: uint16(i), Bytes: 4096, Off: 1 << 40, Data: 8192,
				UserData: n + uint64(i),
			}
			ok, wake := g.Submit(&e)
			if !ok || wake != (i == 0) {
				t.Fatalf("round %d entry %d: taken %t, wake %t", round, i, ok, wake)
			}
		}
		if ok, _ := g.Submit(&Entry{}); ok {
			t.Fatal("an entry more than the ring has was taken")
		}
		if ok, _ := s.Sleep(); ok {
			t.Fatal("the server sleeps with entries in the ring")
		}
		if !g.Sleep() {
			t.Fatal("the client cannot sleep")
		}
		for i := range entries {
			var e Entry
			some, valid, err := s.Next(&e)
			want := Entry{OpWrite, FUA, uint16(i), 4096, 1 << 40, 8192, n + uint64(i)}
			if !some || !valid || err != nil || e != want {
				t.Fatalf("entry %+v (%t %t %v), want %+v", e, some, valid, err, want)
			}
			wake, err := s.Complete(Completion{e.UserData, int64(-i)})
			if err != nil || wake != (i == 0) {
				t.Fatalf("completion %d: wake %t, %v", i, wake, err)
			}
		}
		if some, _, err := s.Next(new(Entry)); some || err != nil {
			t.Fatal("an entry that nobody submitted: ", err)
		}
		if _, err := s.Complete(Completion{}); !errors.Is(err, ErrBroken) {
			t.Fatalf("a completion more than the ring has: %v", err)
		}
		if g.Sleep() {
			t.Fatal("the client sleeps with completions in the ring")
		}
		for i := range entries {
			var c Completion
			if !g.Next(&c) || c.UserData != n+uint64(i) || c.Result != int64(-i) {
				t.Fatalf("completion %d: %+v", i, c)
			}
		}
		if g.Next(new(Completion)) {
			t.Fatal("a completion that nobody wrote")
		}
		if ok, err := s.Sleep(); !ok || err != nil {
			t.Fatal("the server cannot sleep: ", err)
		}
		n += entries
	}
}

func TestRingHostile(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 16, Entries: 8})
	s, _ := v.Server()
	r.store(r.ring+ringSubmitTail, 9)
	if _, _, err := s.Next(new(Entry)); !errors.Is(err, ErrBroken) {
		t.Errorf("nine entries in a ring of eight: %v", err)
	}
	r.store(r.ring+ringSubmitTail, 0)
	for i, c := range []struct {
		name string
		at   int
		v    byte
	}{
		{"operation", 0, 6}, {"flags", 1, 8}, {"reserved", 63, 1},
	} {
		e := Entry{UserData: 77}
		if ok, _ := r.Ring().Submit(&e); !ok {
			t.Fatal("not taken")
		}
		r.mem[int(r.entry(uint32(i)))+c.at] = c.v
		var got Entry
		some, valid, err := s.Next(&got)
		if !some || valid || err != nil || got.UserData != 77 {
			t.Errorf("%s: %t %t %v %+v", c.name, some, valid, err, got)
		}
	}
	r.store(r.ring+ringCompleteHead, 5)
	if _, err := s.Complete(Completion{}); !errors.Is(err, ErrBroken) {
		t.Errorf("a client that has taken what was not there: %v", err)
	}
	_, w := pair(t, Options{Bytes: 1 << 16})
	if _, ok := w.Server(); ok {
		t.Error("a region without a ring has one")
	}
}

// TestAllocations: neither side allocates for a request.
func TestAllocations(t *testing.T) {
	r, v := pair(t, Options{Bytes: 1 << 20, Entries: 8})
	set := hint(1)
	var c Collector
	var q Request
	s, _ := v.Server()
	g := r.Ring()
	n := testing.AllocsPerRun(100, func() {
		k, _ := r.Issue(0, 4*PageBytes, set)
		g.Submit(&Entry{Flags: WithAttributes})
		var e Entry
		if some, _, _ := s.Next(&e); !some {
			t.Error("no entry")
		}
		if _, err := v.Read(&q, 0, 4*PageBytes); err != nil {
			t.Error(err)
		}
		handle(&q, 4*PageBytes, dev1)
		if err := v.Answer(&q, dev1); err != nil {
			t.Error(err)
		}
		_, _ = s.Complete(Completion{})
		g.Next(new(Completion))
		r.Collect(k, &c)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	r, v := pair(b, Options{Bytes: 1 << 20})
	set := hint(1)
	var c Collector
	var q Request
	for b.Loop() {
		k, _ := r.Issue(0, PageBytes, set)
		_, _ = v.Read(&q, 0, PageBytes)
		handle(&q, PageBytes, dev1)
		_ = v.Answer(&q, dev1)
		r.Collect(k, &c)
	}
}

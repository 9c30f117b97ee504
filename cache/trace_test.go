package cache

import (
	"errors"
	"testing"
	"time"

	"ubcache/attrs"
)

func TestTraces(t *testing.T) {
	h := small(t)
	play := func(id uint64, r *Request) error {
		var set attrs.Set
		set.SetTrace(id)
		r.Attrs = &set
		return h.do(r)
	}
	if h.c.Traces() != nil {
		t.Error("traces of nothing")
	}
	h.write(0, fill(1, 2))
	start := time.Now()
	h.lapse = int64(time.Millisecond)
	if err := play(0, &Request{Op: ReqRead, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize)}); err != nil {
		t.Fatal(err)
	}
	h.fail = func(op *Op) error { return errMedium }
	if err := play(0xabc, &Request{Op: ReqRead, Off: 1 << 20, Len: 512, Data: make([]byte, 512)}); !errors.Is(err, errMedium) {
		t.Fatal(err)
	}
	h.fail = nil
	all := h.c.Traces()
	if len(all) != 2 || all[0].Done.Before(start) || all[1].Done.Before(all[0].Done) {
		t.Fatalf("%+v", all)
	}
	failed := all[1].Err
	for i := range all {
		all[i].Done, all[i].Err = time.Time{}, ""
	}
	const ms = int64(time.Millisecond)
	want := Trace{
		Backing: "disk", Op: "read", Len: 4 * BlockSize, Origin: "mixed",
		SSDNs: 3 * ms, BackingNs: 2 * ms, TotalNs: 3 * ms,
	}
	if all[0].QueuedNs != 0 || all[0].TotalNs < all[0].SSDNs || all[0].SSDNs == 0 || all[0].BackingNs == 0 {
		t.Errorf("times of %+v", all[0])
	}
	all[0].SSDNs, all[0].BackingNs, all[0].TotalNs = want.SSDNs, want.BackingNs, want.TotalNs
	if all[0] != want {
		t.Errorf("%+v, want %+v", all[0], want)
	}
	want = Trace{
		ID: 0xabc, Backing: "disk", Op: "read", Off: 1 << 20, Len: 512, Origin: "backing",
		BackingNs: ms, TotalNs: ms,
	}
	if all[1] != want || failed == "" {
		t.Errorf("%+v, want %+v; %q", all[1], want, failed)
	}
}

// A lane remembers the newest.
func TestManyTraces(t *testing.T) {
	h := small(t)
	var set attrs.Set
	for i := range uint64(2*tracesPerLane + 9) {
		set.SetTrace(i)
		if err := h.do(&Request{Op: ReqRead, Len: 512, Data: make([]byte, 512), Attrs: &set}); err != nil {
			t.Fatal(err)
		}
	}
	all := h.c.Traces()
	if len(all) != tracesPerLane {
		t.Fatalf("%d traces", len(all))
	}
	for i := range all {
		if want := uint64(i + tracesPerLane + 9); all[i].ID != want {
			t.Fatalf("trace %d is %d, want %d", i, all[i].ID, want)
		}
	}
}

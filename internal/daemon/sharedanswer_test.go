package daemon

import (
	"testing"

	"ubcache/attrs"
	"ubcache/attrs/shm"
	"ubcache/cache"
)

// TestAnsweredInTime: an answer that is the same for many requests may wait for the end of the round; one that may refer
// to what is only the request's is given while the engine waits for it.
func TestAnsweredInTime(t *testing.T) {
	region, err := shm.Create(shm.Options{Bytes: 1 << 20})
	must(t, err)
	defer region.Close()
	view, err := shm.Open(region.FD(), 1<<20)
	must(t, err)
	defer view.Close()
	set, err := attrs.ParseSet("hint=cache")
	must(t, err)
	h := &queue{number: 7}
	h.parts.init(1)
	h.parts.left[0] = 100 // the driver's request is not over here
	var c shm.Collector
	for round, repeatable := range []bool{true, false, true} {
		ticket, err := region.Issue(0, shm.PageBytes, &set)
		must(t, err)
		p := h.parts.take()
		p.view = view
		_, err = view.Read(&p.said, 0, shm.PageBytes)
		must(t, err)
		res := &p.said.Results
		res.Begin(&p.said.Set, attrs.Request{Direction: attrs.Read, Bytes: shm.PageBytes}, attrs.Device(7))
		res.Handle(attrs.IDHint)
		if repeatable && !res.Repeatable() {
			t.Fatal("not repeatable")
		}
		p.req.Op, p.req.Placed, p.req.Attrs, p.req.Results = cache.ReqRead, true, &p.said.Set, res
		h.finishPart(&p.req)
		if n := len(h.parts.over); n != 0 != repeatable {
			t.Errorf("round %d: %d answers wait", round, n)
		}
		if repeatable {
			h.answerParts()
		}
		if got := region.Collect(ticket, &c).For(attrs.IDHint).Status; got != attrs.Handled || len(h.parts.over) != 0 {
			t.Errorf("round %d: %v, and %d wait", round, got, len(h.parts.over))
		}
	}
	if n := h.parts.left[0]; n != 97 {
		t.Errorf("%d parts have ended", 100-n)
	}
}

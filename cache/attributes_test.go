package cache

import (
	"errors"
	"testing"

	"ubcache/attrs"
)

// ask plays a request of blocks 0 to 3 with attributes and returns the answers.
func (h *harness) ask(op ReqOp, text string) (*attrs.Results, error) {
	h.t.Helper()
	r := request(h.t, op, 0, 4, text)
	err := h.do(r)
	return r.Results, err
}

// request makes a request of blocks with attributes; what it writes is fill(7).
func request(t *testing.T, op ReqOp, first Block, n int, text string) *Request {
	t.Helper()
	set, err := attrs.ParseSet(text)
	if err != nil {
		t.Fatal(err)
	}
	return &Request{
		Op: op, Off: int64(first) * BlockSize, Len: int64(n) * BlockSize, Data: fill(7, n),
		Attrs: &set, Results: &attrs.Results{},
	}
}

// hint plays a request of blocks with attributes and returns the answer for its hint.
func (h *harness) hint(op ReqOp, first Block, n int, text string) attrs.Answer {
	h.t.Helper()
	r := request(h.t, op, first, n, text)
	if err := h.do(r); err != nil {
		h.t.Fatal(err)
	}
	return r.Results.For(attrs.IDHint)
}

// want fails unless an answer is as it should be.
func want(t *testing.T, what string, a attrs.Answer, st attrs.Status, why attrs.Reason) {
	t.Helper()
	if a.Status != st || a.Reason != why {
		t.Errorf("%s: %v (%v), want %v (%v)", what, a.Status, a.Reason, st, why)
	}
}

// resident is what is cached of blocks.
func (h *harness) resident(first Block, n int) Residency {
	h.t.Helper()
	r, err := h.c.Residency(h.b.ID(), int64(first)*BlockSize, int64(n)*BlockSize)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// cachedDirty is what the index says of block 0.
func (h *harness) cachedDirty() (cached, dirty bool) {
	e, ok := h.c.index.find(makeKey(h.b.ID(), 0))
	return ok, ok && e.st&(stDirty|stPending) == stDirty
}

func TestAttributesDecideTheWay(t *testing.T) {
	const (
		handled     = attrs.Handled
		ignored     = attrs.Ignored
		silence     = attrs.NotHandled
		cached      = true
		dirty       = true
		sequentials = 4096 // a cutoff that every request is past
	)
	for _, c := range []struct {
		mode   Mode
		cutoff int64
		op     ReqOp
		attrs  string

		hint, write   attrs.Status
		cached, dirty bool
		origin        attrs.Origin
	}{
		{Writeback, 0, ReqRead, "hint=default", handled, silence, cached, false, attrs.OriginBacking},
		{Writeback, 0, ReqRead, "hint=bypass", handled, silence, false, false, attrs.OriginBacking},
		{Writeback, 0, ReqRead, "hint=once", handled, silence, false, false, attrs.OriginBacking},
		{Writeback, sequentials, ReqRead, "hint=default", handled, silence, false, false, attrs.OriginBacking},
		{Writeback, sequentials, ReqRead, "hint=cache", handled, silence, cached, false, attrs.OriginBacking},
		{Writeonly, 0, ReqRead, "hint=cache", ignored, silence, false, false, attrs.OriginBacking},
		{None, 0, ReqRead, "hint=cache", ignored, silence, false, false, attrs.OriginBacking},
		{Writeback, sequentials, ReqRead, "hint=pin", handled, silence, cached, false, attrs.OriginBacking},
		{Writeback, 0, ReqRead, "hint=unpin", ignored, silence, cached, false, attrs.OriginBacking},
		{Writeback, 0, ReqRead, "hint=evict", handled, silence, false, false, attrs.OriginBacking},
		{Writeback, sequentials, ReqRead, "hint=prefetch", handled, silence, cached, false, attrs.OriginBacking},
		{Writeonly, 0, ReqRead, "hint=prefetch", ignored, silence, false, false, attrs.OriginBacking},
		{None, 0, ReqRead, "hint=pin", ignored, silence, false, false, attrs.OriginBacking},

		{Writeback, 0, ReqWrite, "hint=default", handled, silence, cached, dirty, attrs.OriginSSD},
		{Writeback, 0, ReqWrite, "hint=bypass", handled, silence, false, false, attrs.OriginBacking},
		{Writeback, sequentials, ReqWrite, "hint=cache", handled, silence, cached, dirty, attrs.OriginSSD},
		{Writearound, 0, ReqWrite, "hint=cache", handled, silence, cached, false, attrs.OriginMixed},
		{Writethrough, 0, ReqWrite, "hint=bypass", handled, silence, false, false, attrs.OriginBacking},
		{Writethrough, sequentials, ReqWrite, "hint=cache", handled, silence, cached, false, attrs.OriginMixed},
		{None, 0, ReqWrite, "hint=cache", ignored, silence, false, false, attrs.OriginBacking},
		{Writeback, sequentials, ReqWrite, "hint=pin", handled, silence, cached, dirty, attrs.OriginSSD},
		{Writearound, sequentials, ReqWrite, "hint=pin", handled, silence, cached, false, attrs.OriginMixed},
		{None, 0, ReqWrite, "hint=pin", ignored, silence, false, false, attrs.OriginBacking},
		{Writeback, 0, ReqWrite, "hint=evict", handled, silence, cached, dirty, attrs.OriginSSD},
		{Writethrough, 0, ReqWrite, "hint=evict", handled, silence, false, false, attrs.OriginBacking},
		{Writeback, 0, ReqWrite, "hint=prefetch", ignored, silence, cached, dirty, attrs.OriginSSD},

		{Writeback, 0, ReqWrite, "mode=writethrough", silence, handled, cached, false, attrs.OriginMixed},
		{Writeback, 0, ReqWrite, "mode=writearound", silence, handled, false, false, attrs.OriginBacking},
		{Writeback, sequentials, ReqWrite, "mode=writeback", silence, handled, cached, dirty, attrs.OriginSSD},
		{Writethrough, 0, ReqWrite, "mode=writeback", silence, ignored, cached, false, attrs.OriginMixed},
		{None, 0, ReqWrite, "mode=writethrough", silence, ignored, false, false, attrs.OriginBacking},
		{Writeback, 0, ReqWrite, "mode=writeback,hint=bypass", ignored, handled, cached, dirty, attrs.OriginSSD},
		{Writeback, 0, ReqWrite, "mode=writearound,hint=cache", ignored, handled, false, false, attrs.OriginBacking},
		{Writeback, 0, ReqWrite, "mode=writearound,hint=pin", ignored, handled, false, false, attrs.OriginBacking},
		{Writearound, 0, ReqWrite, "mode=writeback,hint=cache", handled, ignored, cached, false, attrs.OriginMixed},
		{Writeback, 0, ReqRead, "mode=writethrough", silence, ignored, cached, false, attrs.OriginBacking},
	} {
		t.Run(c.mode.String()+"/"+c.op.String()+"/"+c.attrs, func(t *testing.T) {
			h := small(t)
			h.b.mode.Store(uint32(c.mode))
			h.b.cutoff.Store(c.cutoff)
			h.b.SetNumber(5)
			res, err := h.ask(c.op, c.attrs)
			if err != nil {
				t.Fatal(err)
			}
			if got := res.For(attrs.IDHint).Status; got != c.hint {
				t.Errorf("hint: %v, want %v", got, c.hint)
			}
			if got := res.For(attrs.IDMode).Status; got != c.write {
				t.Errorf("mode: %v, want %v", got, c.write)
			}
			if got, d := h.cachedDirty(); got != c.cached || d != c.dirty {
				t.Errorf("cached %v, dirty %v, want %v, %v", got, d, c.cached, c.dirty)
			}
			if res.Origin != c.origin {
				t.Errorf("origin %v, want %v", res.Origin, c.origin)
			}
			if d := res.Devices(); len(d) != 1 || d[0] != 5 {
				t.Errorf("devices %v", d)
			}
			if c.op == ReqWrite {
				h.wantRead(0, fill(7, 4))
			}
		})
	}
}

// Requests without data have an answer for everything, too.
func TestAttributesWithoutData(t *testing.T) {
	for _, op := range []ReqOp{ReqFlush, ReqDiscard, ReqWriteZeroes} {
		h := small(t)
		h.write(0, fill(1, 4))
		r := request(t, op, 0, 4, "hint=pin,mode=writethrough,lifetime=short,tenant=7,prio=rt/1,timing,trace=5,"+
			"deadline=1m,checksum=crc32c")
		r.Data = nil
		if op == ReqFlush {
			r.Len = 0
		}
		if err := h.do(r); err != nil {
			t.Fatal(err)
		}
		for id, st := range map[attrs.ID]attrs.Status{
			attrs.IDHint: attrs.Ignored, attrs.IDMode: attrs.Ignored, attrs.IDLifetime: attrs.Ignored,
			attrs.IDChecksum: attrs.Ignored, attrs.IDTenant: attrs.Handled, attrs.IDPriority: attrs.Handled,
			attrs.IDTiming: attrs.Handled, attrs.IDTrace: attrs.Handled, attrs.IDDeadline: attrs.Handled,
		} {
			if a := r.Results.For(id); a.Status != st || st == attrs.Ignored && a.Reason == attrs.ReasonNone {
				t.Errorf("%v, %v: %v, want %v", op, id, a, st)
			}
		}
		if n := h.b.pinned.Load(); n != 0 {
			t.Errorf("%v: %d blocks pinned", op, n)
		}
		s := h.c.Stats().Attributes
		if s.ByTenant["7"].Requests != 1 || s.ByPriority["rt/1"].Requests != 1 || len(h.c.Traces()) != 1 {
			t.Errorf("%v: %+v, %+v, %d traces", op, s.ByTenant, s.ByPriority, len(h.c.Traces()))
		}
	}
}

// A bypassed write leaves dirty data where it is the newest: the hint is overruled.
func TestBypassOfDirtyData(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	res, err := h.ask(ReqWrite, "hint=bypass")
	if a := res.For(attrs.IDHint); err != nil || a.Status != attrs.Ignored || a.Reason != attrs.ReasonOverruled {
		t.Errorf("%v, %v", a, err)
	}
	h.wantRead(0, fill(7, 4))
}

// Hits by requests that bypass do not keep a block; those of requests that need it once end its
// stay.
func TestHitsThatDoNotCount(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	refs := func() state {
		e, _ := h.c.index.find(makeKey(h.b.ID(), 0))
		return e.st & stRefMax
	}
	h.wantRead(0, fill(1, 4))
	before := refs()
	if before == 0 {
		t.Fatal("a hit does not count")
	}
	if res, _ := h.ask(ReqRead, "hint=bypass"); refs() != before || res.Origin != attrs.OriginSSD {
		t.Errorf("after a bypassing hit %x, before %x; %v", refs(), before, res.Origin)
	}
	if h.ask(ReqRead, "hint=once"); refs() != 0 {
		t.Errorf("after a hit by a request that needs it once: %x", refs())
	}
}

// What is required and not handled fails before it has any effect.
func TestRequiredAttributes(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	for text, want := range map[string]error{
		"hint=unpin,required:hint":        attrs.ErrnoRefused, // nothing is pinned
		"hint=prefetch,required:hint":     attrs.ErrnoRefused,
		"tenant=7,required:tenant":        nil,
		"0xf001=00,required:0xf001":       attrs.ErrnoRefused,
		"hint=default,required:hint":      nil,
		"mode=writethrough,required:mode": nil,
	} {
		set, err := attrs.ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		var ops int
		h.fail = func(*Op) error { ops++; return nil }
		err = h.do(&Request{Op: ReqWrite, Len: 4 * BlockSize, Data: fill(2, 4), Attrs: &set})
		h.fail = nil
		if !errors.Is(err, want) && (want != nil || err != nil) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
		if want != nil {
			if ops != 0 {
				t.Errorf("%s: %d operations", text, ops)
			}
			h.wantRead(0, fill(1, 4))
		} else {
			h.write(0, fill(1, 4))
		}
	}
}

// A driver uses a request again, and nothing of the last time is left in it.
func TestRequestUsedAgain(t *testing.T) {
	h := small(t)
	set, res := everything(fill(1, 1)), &attrs.Results{}
	set.Require(attrs.IDChecksum)
	r := &Request{Op: ReqWrite, Len: BlockSize, Data: fill(1, 1), Attrs: set, Results: res}
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	seen := h.c.Stats().Attributes.ByAttribute["hint"].Seen
	r.Attrs, r.Data = nil, fill(2, 1)
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	h.wantRead(0, fill(2, 1))
	if now := h.c.Stats().Attributes.ByAttribute["hint"].Seen; now != seen || seen == 0 {
		t.Errorf("%d requests with a hint, %d before", now, seen)
	}
	for _, off := range []int64{h.b.Size(), 0} {
		*r = Request{Op: ReqWrite, Off: off, Data: fill(3, 1), Attrs: set, Results: res}
		if off != 0 {
			r.Len = BlockSize
		}
		res.Handle(attrs.IDHint)
		if err := h.do(r); (off != 0) != (err != nil) || res.For(attrs.IDHint).Status != attrs.NotHandled {
			t.Errorf("at %d: %v, answer %v", off, err, res.For(attrs.IDHint))
		}
	}
}

// A write that finds no room on the SSD says so.
func TestPromiseTakenBack(t *testing.T) {
	h := small(t)
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpWrite {
			return errMedium
		}
		return nil
	}
	res, err := h.ask(ReqWrite, "hint=cache,mode=writeback")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []attrs.ID{attrs.IDHint, attrs.IDMode} {
		if a := res.For(id); a.Status != attrs.Ignored {
			t.Errorf("%v: %v", id, a)
		}
	}
	if res.Origin != attrs.OriginBacking {
		t.Errorf("origin %v", res.Origin)
	}
	h.fail = nil
}

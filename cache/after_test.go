package cache

import (
	"bytes"
	"testing"

	"ubcache/attrs"
)

// Clean blocks are gone when the request is answered; dirty ones are written back and then dropped,
// without anybody else's help and though they are below the dirty target.
func TestEvictHint(t *testing.T) {
	h := pressed(t)
	h.flush()
	h.flood(0, 16)
	want(t, "clean", h.hint(ReqRead, 0, 16, "hint=evict"), attrs.Handled, attrs.ReasonNone)
	if r := h.resident(0, 16); r.Cached != 0 {
		t.Errorf("clean blocks: %+v", r)
	}

	h.write(0, fill(1, 8))
	want(t, "write", h.hint(ReqWrite, 8, 8, "hint=evict"), attrs.Handled, attrs.ReasonNone)
	if r := h.resident(0, 16); r.Leaving != 8 || r.Dirty != 16 {
		t.Errorf("after a write: %+v", r)
	}
	h.until("the eviction", func() bool { return h.resident(8, 8).Cached == 0 })
	if !bytes.Equal(h.back[8*BlockSize:16*BlockSize], fill(7, 8)) {
		t.Error("what was evicted is not on the backing device")
	}
	if r := h.resident(0, 8); r.Dirty != 8 || h.b.leaving.Load() != 0 {
		t.Errorf("others, below the target, were written back: %+v, %d leaving", r, h.b.leaving.Load())
	}
	want(t, "read", h.hint(ReqRead, 0, 8, "hint=evict"), attrs.Handled, attrs.ReasonNone)
	h.until("the eviction", func() bool { return h.resident(0, 8).Cached == 0 })
	h.wantRead(0, append(fill(1, 8), fill(7, 8)...))
	if !bytes.Equal(h.back[:8*BlockSize], fill(1, 8)) {
		t.Error("what was evicted is not on the backing device")
	}
}

// The backing device is not changed under a block that left the cache before that is durable: after
// a crash the old copy would be there again. It holds for clean blocks that are dropped and for
// dirty ones that leave later.
func TestEvictionIsDurableBeforeAChange(t *testing.T) {
	for _, dirty := range []bool{false, true} {
		h := pressed(t)
		h.flush()
		if dirty {
			h.hint(ReqWrite, 0, 1, "hint=evict")
			h.until("the eviction", func() bool { return h.resident(0, 1).Cached == 0 })
		} else {
			h.hint(ReqRead, 0, 1, "hint=cache")
			h.flush()
			h.hint(ReqRead, 0, 1, "hint=evict")
		}
		removal := h.c.journal.nextLSN() - 1
		if h.c.journal.isDurable(removal) {
			t.Fatal("the removal is durable already")
		}
		wrote := false
		h.fail = func(op *Op) error {
			if op.Dev != SSD && op.Kind == OpWrite {
				if wrote = true; !h.c.journal.isDurable(removal) {
					t.Errorf("dirty %v: the backing device changes before the removal is durable", dirty)
				}
			}
			return nil
		}
		if _, err := h.ask(ReqWrite, "mode=writearound"); err != nil || !wrote {
			t.Fatal(err, wrote)
		}
	}
}

// What is written or pinned before the block has left stays.
func TestEvictIsOvertaken(t *testing.T) {
	h := pressed(t)
	h.hint(ReqWrite, 0, 8, "hint=evict")
	h.write(0, fill(1, 2))
	want(t, "pin", h.hint(ReqRead, 2, 2, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	h.until("the eviction", func() bool { return h.resident(4, 4).Cached == 0 })
	if r := h.resident(0, 4); r.Cached != 4 || r.Pinned != 2 || r.Leaving != 0 {
		t.Errorf("%+v", r)
	}
	h.drain()
	h.wantRead(0, append(fill(1, 2), fill(7, 6)...))
}

// Blocks that cannot be written back stay, and leave when they can.
func TestEvictBesideABrokenDevice(t *testing.T) {
	h := pressed(t)
	broken := true
	h.fail = func(op *Op) error {
		if broken && op.Dev != SSD && op.Kind == OpWrite {
			return errMedium
		}
		return nil
	}
	h.hint(ReqWrite, 0, 4, "hint=evict")
	for range 100 {
		h.tick()
		h.step()
	}
	if r := h.resident(0, 4); r.Dirty != 4 {
		t.Fatalf("%+v", r)
	}
	h.wantRead(0, fill(7, 4))
	broken = false
	h.until("the eviction", func() bool { return h.resident(0, 4).Cached == 0 })
	h.wantRead(0, fill(7, 4))
}

// A lost block cannot leave, and nothing goes on trying.
func TestEvictOfALostBlock(t *testing.T) {
	h := pressed(t)
	h.write(0, fill(1, 2))
	h.ssd[h.slotOf(0)+7] ^= 0xff
	want(t, "before anybody knows", h.hint(ReqRead, 1, 1, "hint=evict"), attrs.Handled, attrs.ReasonNone)
	r := request(t, ReqWrite, 1, 1, "hint=evict")
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	if _, err := h.read(0, BlockSize); err == nil {
		t.Fatal("the damage goes unnoticed")
	}
	s := h.c.index.stripeOf(h.b.id, 0)
	a := aftermath{r: request(t, ReqRead, 0, 1, "hint=evict"), part: span{0, BlockSize}}
	a.r.b, a.r.res = h.b, a.r.Results
	a.evict(h.l, s)
	want(t, "lost", a.r.Results.For(attrs.IDHint), attrs.Ignored, attrs.ReasonDegraded)
	h.hint(ReqRead, 2, 1, "hint=pin")
	a.r, a.part = request(t, ReqRead, 2, 1, "hint=evict"), span{2 * BlockSize, BlockSize}
	a.r.b, a.r.res = h.b, a.r.Results
	a.evict(h.l, s)
	want(t, "pinned since", a.r.Results.For(attrs.IDHint), attrs.Ignored, attrs.ReasonOverruled)
	if h.resident(2, 1).Pinned != 1 {
		t.Error("it is gone")
	}
	h.until("the eviction of the other", func() bool { return h.resident(1, 1).Cached == 0 })
	if n := h.b.leaving.Load(); n != 0 {
		t.Errorf("%d blocks are leaving", n)
	}
}

// A block that turns out to be lost when it is to be written back no longer counts as leaving.
func TestEvictFindsALostBlock(t *testing.T) {
	h := pressed(t)
	h.hint(ReqWrite, 0, 2, "hint=evict")
	h.ssd[h.slotOf(0)+7] ^= 0xff
	h.until("the eviction of the other", func() bool { return h.resident(0, 2).Cached == 1 })
	if r := h.resident(0, 1); r.bad != 1 || r.Leaving != 0 || h.b.leaving.Load() != 0 {
		t.Errorf("%+v, %d leaving", r, h.b.leaving.Load())
	}
}

// Prefetched data is in the cache though the stream is past the cutoff; where it is not, the
// answer says so.
func TestPrefetch(t *testing.T) {
	h := pressed(t)
	h.b.cutoff.Store(4096)
	want(t, "prefetch", h.hint(ReqRead, 0, 8, "hint=prefetch"), attrs.Handled, attrs.ReasonNone)
	if r := h.resident(0, 8); r.Cached != 8 {
		t.Errorf("%+v", r)
	}
	r := request(t, ReqRead, 8, 2, "hint=prefetch")
	r.Off, r.Len, r.Data = r.Off+512, 4096, r.Data[:4096]
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	want(t, "parts of blocks", r.Results.For(attrs.IDHint), attrs.Ignored, attrs.ReasonNotCached)
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpWrite {
			return errMedium
		}
		return nil
	}
	for _, hint := range []string{"hint=prefetch", "hint=pin"} {
		want(t, hint+" without an SSD", h.hint(ReqRead, 16, 8, hint), attrs.Ignored, attrs.ReasonBusy)
	}
	h.fail = nil
	if r := h.resident(16, 8); r.Pinned != 0 {
		t.Errorf("%+v", r)
	}
}

// A request whose hint has to wait for journal room is answered when there is some.
func TestAfterWaitsForTheJournal(t *testing.T) {
	h := pressed(t)
	h.flood(0, 256)
	j := &h.c.journal
	n := 0
	for ; j.reserve(16); n++ {
		continue
	}
	r := request(t, ReqRead, 0, 256, "hint=pin")
	r.Backing, h.done = h.b.ID(), false
	h.l.Submit(r)
	for range 100 {
		h.step()
	}
	if h.done || h.b.pinned.Load() != 0 {
		t.Fatal("it did not wait")
	}
	j.unreserve(16 * n)
	h.until("the answer", func() bool { return h.done })
	if got := h.b.pinned.Load(); got != 256 {
		t.Errorf("%d blocks are pinned", got)
	}
}

// Attributes with effects after the request allocate nothing in the steady state.
func TestHintsAllocateNothing(t *testing.T) {
	h := small(t)
	h.ops = make([]*Op, 0, 64)
	r := request(t, ReqWrite, 0, 1, "hint=pin,prio=rt/0,tenant=7,lifetime=long")
	r.Backing = h.b.ID()
	again := func() {
		h.done = false
		h.l.Submit(r)
		for len(h.ops) > 0 {
			op := h.ops[0]
			h.ops = h.ops[:0]
			h.l.Complete(op, nil)
		}
		if !h.done || r.Err != nil {
			t.Fatal("the request does not end")
		}
	}
	again()
	if n := testing.AllocsPerRun(100, again); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if h.b.pinned.Load() != 1 {
		t.Error("nothing is pinned")
	}
	set, _ := attrs.ParseSet("hint=evict,prio=idle/7,tenant=7")
	r.Op, r.Attrs = ReqRead, &set
	again()
	if n := testing.AllocsPerRun(100, again); n != 0 {
		t.Errorf("%v allocations of a read", n)
	}
}

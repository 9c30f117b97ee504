package cache

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"ubcache/attrs"
)

// TestOrderedWritesAgainFirst: what an ordered device has lost, and the SSD has, is there again, and flushed,
// before anything that came later; until then it is said to be lacking.
func TestOrderedWritesAgainFirst(t *testing.T) {
	for _, past := range []bool{false, true} {
		h := newOrderHarness(t, nil)
		if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
			t.Fatal(err)
		}
		h.write(5*BlockSize, page(1))
		h.flush()
		h.settle()
		before := bytes.Clone(h.back)
		h.write(5*BlockSize, page(2)) // not flushed
		h.lose(before)
		h.log = nil
		if n := h.status().UnsettledBytes; n != BlockSize {
			t.Errorf("%d bytes are said to be lacking, a block is", n)
		}
		h.flush() // the SSD has it
		if !past {
			if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
				t.Fatal(err)
			}
		}
		h.write(9*BlockSize, page(3))
		h.drain()
		h.wantLog("flush", "write 5+1 2", "flush", "write 9+1 3", "flush")
		if n := h.status().UnsettledBytes; n != 0 {
			t.Errorf("%d bytes are said to be lacking at the end", n)
		}
		h.wantSound()
	}
}

// TestOrderedOverwriteWaitsForTheFlush: what an ordered device has lost, and has again but was not flushed for, is not
// overwritten on the SSD before it was.
func TestOrderedOverwriteWaitsForTheFlush(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.settle()
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(1)) // not flushed
	h.lose(before)
	h.flush() // promises it: the SSD has it
	h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
	h.log = nil
	h.until("the block", func() bool { return slices.Contains(h.log, "write 5+1 1") })
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.done = false
	h.l.Submit(&Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(2), Backing: h.b.ID()})
	h.run(20)
	if h.done {
		t.Error("the SSD's only copy of what a power cut may take from the device is overwritten")
	}
	h.stuck = nil
	h.until("the write", func() bool { return h.done })
	h.drain()
	h.wantLog("write 5+1 1", "flush", "write 5+1 2", "flush")
	h.wantSound()
}

// TestOrderedLocksLetGo: a change that waits for its turn holds no lock that keeps what has to come before it from
// the device: what it has lost meanwhile, or what was dirty when the order began.
func TestOrderedLocksLetGo(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.write(5*BlockSize, page(1))
	h.settle()
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(2)) // not flushed
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.write(9*BlockSize, page(3))
	h.stuck = func(op *Op) bool { return op.Dev != SSD }
	r := &Request{Op: ReqDiscard, Off: 5 * BlockSize, Len: BlockSize, Backing: h.b.ID()}
	h.done = false
	h.l.Submit(r) // waits for block 9
	h.run(20)
	h.lose(before)
	h.stuck, h.log = nil, nil
	h.until("the discard", func() bool { return h.done })
	h.drain()
	if r.Err != nil {
		t.Error(r.Err)
	}
	h.wantRead(5*BlockSize, page(0))
	h.wantSound()

	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("no order", func() bool { return !h.b.order.on.Load() })
	h.write(5*BlockSize, page(4))
	h.stuck = func(op *Op) bool { return op.Dev != SSD }
	h.set(func(t *Tunables) { t.Ordered = true })
	h.until("the queue", func() bool { return h.b.order.on.Load() })
	h.write(9*BlockSize, page(5))
	h.stuck, h.done = nil, false
	h.l.Submit(r)
	h.until("the discard", func() bool { return h.done })
	h.drain()
	h.wantRead(5*BlockSize, page(0))
	h.wantSound()
}

// TestOrderedCopyAfterALoss: what the device has lost before the SSD had its copy is written there again before
// anything that came later; who waits for that fails if it does.
func TestOrderedCopyAfterALoss(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(h.back)
	h.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpWrite }
	r := &Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(1), FUA: true, Backing: h.b.ID()}
	h.done = false
	h.l.Submit(r)
	h.until("the write", func() bool { return slices.Contains(h.log, "write 5+1 1") })
	h.lose(before)
	h.run(20)
	h.stuck = nil
	broken := errors.New("broken")
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			return broken
		}
		return h.note(op)
	}
	h.until("its end", func() bool { return h.done })
	if n := h.status().UnsettledBytes; r.Err != nil || n != BlockSize {
		t.Errorf("the write: %v, %d bytes are said to be lacking, a block is", r.Err, n)
	}
	err := h.do(&Request{Op: ReqWrite, Off: 9 * BlockSize, Len: BlockSize, Data: page(2)})
	if !errors.Is(err, broken) || h.back[9*BlockSize] != 0 {
		t.Errorf("a write out of its turn: %v", err)
	}
	h.fail, h.log = h.note, nil
	h.now += int64(2 * time.Second)
	h.write(9*BlockSize, page(3))
	h.flush()
	h.wantLog("write 5+1 1", "flush", "write 9+1 3", "flush")
	h.wantSound()
}

// run lets all go on that can, with time passing.
func (h *orderHarness) run(n int) {
	for range n {
		h.tick()
		h.l.Run()
		for h.runnable() >= 0 {
			h.step()
		}
	}
}

// TestOrderedPinAfterARetreat: a write over a pinned block that has to let go of its locks, and begins anew, leaves
// it pinned.
func TestOrderedPinAfterARetreat(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	var pin attrs.Set
	pin.SetHint(attrs.HintPin)
	if err := h.do(&Request{Op: ReqRead, Off: 5 * BlockSize, Len: BlockSize, Data: page(1), Attrs: &pin}); err != nil {
		t.Fatal(err)
	}
	h.settle()
	if n := h.b.pinned.Load(); n != 1 {
		t.Fatalf("%d blocks are pinned", n)
	}
	before := bytes.Clone(h.back)
	h.write(7*BlockSize, page(2)) // not flushed
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.write(9*BlockSize, page(3))
	h.stuck = func(op *Op) bool { return op.Dev != SSD }
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	r := &Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(4), Backing: h.b.ID()}
	h.done = false
	h.l.Submit(r) // waits for block 9
	h.run(20)
	h.lose(before)
	h.stuck = nil
	h.until("the write", func() bool { return h.done })
	if n := h.b.pinned.Load(); r.Err != nil || n != 1 {
		t.Errorf("the write: %v, %d blocks are pinned", r.Err, n)
	}
	h.wantRead(5*BlockSize, page(4))
}

// TestOrderedChangeFails: a change over a block that the device was not flushed for fails when a part of it is there. What
// the SSD has of the block is there again before anything that came later; until then it is said to be lacking.
func TestOrderedChangeFails(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.settle()
	h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
	h.write(5*BlockSize, page(1)) // not flushed
	broken := errors.New("broken")
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			copy(h.back[op.Off:], op.Mem[:512])
			return broken
		}
		return h.note(op)
	}
	if err := h.do(&Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(2)}); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	h.fail, h.stuck, h.log = h.note, nil, nil
	if n := h.status().UnsettledBytes; n != BlockSize {
		t.Errorf("%d bytes are said to be lacking, a block is", n)
	}
	h.write(9*BlockSize, page(3))
	h.flush()
	h.wantLog("write 5+1 1", "flush", "write 9+1 3", "flush")
	if n := h.status().UnsettledBytes; n != 0 {
		t.Errorf("%d bytes are said to be lacking at the end", n)
	}
	h.wantSound()
}

// TestOrderedFullJournalAfterALoss: what the device has lost is written there again also if the journal is full until
// that is done, and the removal of a clean copy beside it is not on record yet.
func TestOrderedFullJournalAfterALoss(t *testing.T) {
	h := newOrderHarness(t, func(t *Tunables) { t.OrderedAge = time.Hour })
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	last := int64(maxBatches * regionBlocks)
	for i := range int64(150) { // clean blocks
		h.write((last+1+i)*BlockSize, page(1))
	}
	h.flush()
	h.settle()
	before := bytes.Clone(h.back)
	for i := range int64(maxBatches + 1) {
		h.write(i*regionBlocks*BlockSize, page(2)) // not flushed
	}
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite }
	h.lose(before)
	h.fail = nil
	full := false
	for i := int64(0); !full && i < 150; i++ {
		for _, r := range []*Request{
			{Op: ReqWrite, Off: (last + 1 + i) * BlockSize, Len: BlockSize, Data: page(3), Backing: h.b.ID()},
			{Op: ReqFlush, Backing: h.b.ID()},
		} {
			h.done = false
			h.l.Submit(r)
			h.run(10)
			if full = !h.done; full {
				break
			}
		}
	}
	if !full || !h.c.journal.hasNoRoom() {
		t.Fatal("the journal is not full, so this shows nothing")
	}
	h.stuck = nil
	h.until("the end of the request", func() bool { return h.done })
	h.drain()
	if n := h.status().OrderedBroken; n != 0 {
		t.Errorf("the order was given up %d times", n)
	}
	h.wantSound()
}

// TestOrderedReadsABadBlock: a block that the SSD fails twice for a client, but that the order can read, is on the backing
// device in the end. Its sectors can be read from there then.
func TestOrderedReadsABadBlock(t *testing.T) {
	for _, how := range []string{"bad before the batch", "bad while the batch is written"} {
		h := newOrderHarness(t, nil)
		h.write(5*BlockSize, page(1))
		h.flush()
		bad, failing := h.slotOf(5), false
		h.fail = func(op *Op) error {
			if failing && op.Dev == SSD && op.Kind == OpRead && op.Off == bad {
				return errMedium
			}
			return h.note(op)
		}
		condemn := func() {
			failing = true
			if _, err := h.read(5*BlockSize, BlockSize); !errors.Is(err, ErrDirtyBad) {
				t.Fatalf("%s: %v", how, err)
			}
			failing = false
		}
		if how == "bad before the batch" {
			condemn()
		} else {
			h.stuck = func(op *Op) bool { return op.Dev != SSD }
			h.b.draining.Store(true)
			h.until("the write", func() bool {
				return slices.ContainsFunc(h.ops, func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite })
			})
			condemn()
			h.stuck = nil
		}
		h.b.draining.Store(true)
		h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
		if s := h.status(); s.OrderedLost != 0 || h.back[5*BlockSize] != 1 {
			t.Fatalf("%s: %d versions are lost, the device has %d", how, s.OrderedLost, h.back[5*BlockSize])
		}
		got, err := h.read(5*BlockSize, BlockSize)
		if err != nil || !bytes.Equal(got, page(1)) {
			t.Errorf("%s: the device has the block, and a read fails: %v", how, err)
		}
		if n := h.status().BadBytes; n != 0 {
			t.Errorf("%s: %d bytes are bad", how, n)
		}
		h.until("the end", func() bool { return h.b.Remaining() == 0 && len(h.ops) == 0 })
		h.reopen()
		if got, err = h.read(5*BlockSize, BlockSize); err != nil || !bytes.Equal(got, page(1)) {
			t.Errorf("%s: after a start: %v", how, err)
		}
		h.wantSound()
	}
}

// TestOrderedOneErrorCondemnsNothing: a version that the SSD has failed to read once, while it answered otherwise, is
// not given up, also if that was when another one was given up.
func TestOrderedOneErrorCondemnsNothing(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.write(60*BlockSize, page(2))
	h.flush()
	bad, other, r := h.slotOf(5), h.slotOf(60), h.l.bg.orderOf(h.b)
	once := false
	h.fail = func(op *Op) error {
		if op.Dev != SSD || op.Kind != OpRead {
			return h.note(op)
		}
		switch {
		case op.Off == bad:
			return errMedium
		case op.Off == other && r.busy && r.tries == sickTries-1 && !once:
			once = true
			return errMedium
		}
		return nil
	}
	h.b.draining.Store(true)
	h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
	if !once {
		t.Fatal("the block was not read at the last try")
	}
	if s := h.status(); s.OrderedLost != 1 || s.BadBytes != BlockSize {
		t.Errorf("%d versions are given up, %d bytes are bad: one is", s.OrderedLost, s.BadBytes)
	}
	if h.back[60*BlockSize] != 2 {
		t.Errorf("the device lacks the block that could be read")
	}
	h.wantRead(60*BlockSize, page(2))
	h.wantSound()
}

// TestOrderedLostCountedOnce: a version that the SSD returns wrongly is counted once, however often the device fails meanwhile.
func TestOrderedLostCountedOnce(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.write(60*BlockSize, page(1))
	h.ssd[h.slotOf(5)] ^= 1
	h.flush()
	fails := 3
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite && fails > 0 {
			fails--
			return errMedium
		}
		return nil
	}
	h.b.draining.Store(true)
	h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
	if n := h.status().OrderedLost; n != 1 {
		t.Errorf("%d versions are said to be lost, 1 is", n)
	}
}

// TestOrderedDoubtedWithoutChecksums: without checksums nobody knows whether a slot has what was written there before the SSD
// was lost. Such a block is bad, and not written to the ordered device.
func TestOrderedDoubtedWithoutChecksums(t *testing.T) {
	for _, overwritten := range []bool{false, true} {
		v := newLossy(t, FormatOptions{NoChecksums: true}, Writeback)
		tun := v.c.Super().Backings[0].Tunables
		tun.Ordered = true
		if err := v.c.SetTunables(v.b.id, tun); err != nil {
			t.Fatal(err)
		}
		v.until("the order", func() bool { return v.c.Status().Backings[0].Ordered == "on" })
		v.write(5*BlockSize, page(1))
		v.flush()
		v.drain()
		before := bytes.Clone(v.ssd)
		v.write(5*BlockSize, page(2)) // not flushed
		slot := v.slotOf(5)
		if overwritten {
			v.write(5*BlockSize, page(3))
		}
		v.vanish()
		copy(v.ssd, before)          // with its volatile cache
		copy(v.ssd[slot:], page(99)) // what the slot had before
		v.restart()
		_, err := v.read(5*BlockSize, BlockSize)
		v.wantError(err, ErrDirtyBad, "the block that may be lost")
		_ = v.c.SetDrain(v.b.id, true)
		for range 200 {
			v.tick()
			v.step()
			if n := v.back[5*BlockSize]; n != 1 {
				t.Fatalf("overwritten %v: the ordered device has got %d, which was never written there", overwritten, n)
			}
		}
		if s := v.c.Status().Backings[0]; s.UnsettledBytes != 0 {
			t.Errorf("%d bytes are unsettled", s.UnsettledBytes)
		}
	}
}

// TestOrderedLostAndOverwritten: what is lost is counted once, also if it is overwritten before its turn ends.
func TestOrderedLostAndOverwritten(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.write(60*BlockSize, page(1))
	h.ssd[h.slotOf(5)] ^= 1
	h.flush()
	h.stuck = func(op *Op) bool { return op.Dev != SSD }
	h.b.draining.Store(true)
	h.until("the write", func() bool {
		return slices.ContainsFunc(h.ops, func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite })
	})
	h.write(5*BlockSize, page(9))
	h.stuck = nil
	h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
	if n := h.stats().BadBlocks; n != 1 {
		t.Errorf("%d blocks are said to be bad, 1 was", n)
	}
}

// TestOrderedFillAfterALoss: a read fills the cache with what an ordered device loses meanwhile. From the next
// FLUSH on it is promised, as only the SSD has it; so it is to be on the device again before anything that comes later.
func TestOrderedFillAfterALoss(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.settle()
	if err := h.c.SetMode(h.b.ID(), Writearound); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(1)) // past the cache, not flushed
	h.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpWrite }
	r := &Request{Op: ReqRead, Off: 5 * BlockSize, Len: BlockSize, Data: page(0), Backing: h.b.ID()}
	h.done = false
	h.l.Submit(r)
	h.until("the fill", func() bool { return len(h.ops) == 1 && h.runnable() < 0 })
	h.lose(before)
	h.stuck = nil
	h.until("the read", func() bool { return h.done })
	if r.Err != nil || r.Data[0] != 1 {
		t.Fatalf("the read: %v, %d", r.Err, r.Data[0])
	}
	if err := h.do(&Request{Op: ReqFlush}); !errors.Is(err, ErrLost) {
		t.Errorf("the first FLUSH: %v", err)
	}
	h.wantRead(5*BlockSize, page(1))
	h.flush() // promises the block that was read
	h.log = nil
	h.wantRead(5*BlockSize, page(1))
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.write(9*BlockSize, page(2))
	h.flush()
	h.write(12*BlockSize, page(3))
	h.flush()
	r = &Request{Op: ReqDiscard, Off: 20 * BlockSize, Len: BlockSize}
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	if h.back[9*BlockSize] == 2 && h.back[5*BlockSize] != 1 {
		t.Errorf("the ordered device has what was written after a FLUSH, and lacks what that promised")
	}
}

// TestOrderedOverwriteWhileLost: what was pending on an ordered device becomes dirty again, block by block, since its flush has
// failed on another lane. Nobody overwrites the first of them, which a FLUSH promises meanwhile, before the last one has become dirty.
func TestOrderedOverwriteWhileLost(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.settle()
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(1)) // not flushed
	blk := Block(regionBlocks)
	for h.c.index.stripeOf(h.b.id, blk) == h.c.index.stripeOf(h.b.id, 5) {
		blk += regionBlocks
	}
	h.write(int64(blk)*BlockSize, page(1)) // neither
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	copy(h.back, before) // its volatile cache is gone, which its flush says
	s := h.c.index.stripeOf(h.b.id, blk)
	s.mu.Lock() // as somebody does who looks at a block
	done := make(chan struct{})
	go func() { // another lane, whose flush of the device has failed: Lane.hold
		h.c.lose(h.b, false)
		close(done)
	}()
	for h.b.dirty.Load() == 0 {
		runtime.Gosched()
	}
	h.flush() // promises block 5, which the SSD has
	h.write(9*BlockSize, page(2))
	h.flush()
	h.done = false
	h.l.Submit(&Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(3), Backing: h.b.ID()})
	h.run(20)
	if h.done {
		t.Error("the only copy of what was promised is overwritten")
	}
	s.mu.Unlock()
	<-done
	h.until("the write", func() bool { return h.done })
	h.flush()
	h.b.draining.Store(true)
	h.until("the drain", func() bool {
		if h.back[9*BlockSize] == 2 && h.back[5*BlockSize] == 0 {
			t.Fatal("the ordered device has what was written after a FLUSH, and nothing of what that FLUSH promised")
		}
		return h.b.Remaining() == 0 && len(h.ops) == 0
	})
}

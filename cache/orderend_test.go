package cache

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"
)

// beside is a second lane of the same cache.
func (h *orderHarness) beside() *harness {
	o := &harness{t: h.t, c: h.c, b: h.b, ssd: h.ssd, back: h.back, now: h.now, count: map[OpKind]int{}}
	o.l = h.c.NewLane(o)
	return o
}

// TestOrderedDiscardWhileSettling: a change that comes while a batch is being settled, on another thread, does not wait for
// ever.
func TestOrderedDiscardWhileSettling(t *testing.T) {
	h := newOrderHarness(t, nil)
	other := h.beside()
	h.write(5*BlockSize, page(1))
	h.flush()
	h.b.draining.Store(true)
	r := h.l.bg.orderOf(h.b)
	ready := func() bool {
		i := h.runnable()
		return r.busy && r.step == orderFlush && i >= 0 && h.ops[i].Kind == OpFlush && h.ops[i].Dev != SSD
	}
	for i := 0; !ready(); i++ {
		if i > 1000 {
			t.Fatal("no flush")
		}
		h.tick()
		if !ready() {
			h.step()
		}
	}
	h.b.draining.Store(false)
	blk := Block(regionBlocks)
	for h.c.index.stripeOf(h.b.id, blk) == h.c.index.stripeOf(h.b.id, 5) {
		blk += regionBlocks
	}
	s := h.c.index.stripeOf(h.b.id, 5)
	s.mu.Lock() // as somebody does who looks at a block
	next := h.c.journal.nextLSN()
	done := make(chan struct{})
	go func() {
		h.step() // ends the flush, and settles the batch
		close(done)
	}()
	for h.c.journal.nextLSN() == next {
		runtime.Gosched()
	}
	d := &Request{Op: ReqDiscard, Off: int64(blk) * BlockSize, Len: BlockSize, Backing: h.b.ID()}
	other.l.Submit(d)
	s.mu.Unlock()
	<-done
	for i := 0; i < 5000 && !other.done; i++ { // minutes
		h.tick()
		h.step()
		other.step()
	}
	if !other.done {
		t.Error("the discard does not end, though nothing is to be written back")
	}
}

// TestOrderedRoomAfterTheEnd: a write that comes to wait for room just when the order ends does not wait for ever.
func TestOrderedRoomAfterTheEnd(t *testing.T) {
	h := newOrderHarness(t, func(t *Tunables) { t.OrderedMax = 1 << 20 })
	o := &h.b.order
	limit := int(o.mu.allowed)
	if w := (waiter{lane: h.l, owner: nobody{}}); !o.admit(h.c, limit, h.now, &w) { // by another write, under way
		t.Fatal("no room at all")
	}
	if !o.on.Load() { // this one has looked
		t.Fatal("off")
	}
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("the end of the order", func() bool { return !o.on.Load() })
	late := waiter{lane: h.l, owner: nobody{}}
	if !o.admit(h.c, 1, h.now, &late) && o.mu.room.head == &late {
		t.Error("it waits for an order that is no more")
	}
}

type nobody struct{}

func (nobody) run(*Lane, error) {}

// TestOrderedEndIsOneStep: an order ends for those who write when its end is on record, not before: a start would write what was
// queued over what they have written in between.
func TestOrderedEndIsOneStep(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	r, j := h.l.bg.orderOf(h.b), &h.c.journal
	if !j.reserveSettled() { // giveUp does that
		t.Fatal("no room")
	}
	ended := make(chan struct{})
	j.mu.Lock() // nothing can be put on record
	go func() { r.dissolve(true); close(ended) }()
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; runtime.Gosched() {
		if !h.b.order.on.Load() {
			t.Error("the order has ended, and no record says so")
			break
		}
	}
	j.mu.Unlock()
	<-ended
	if h.b.order.on.Load() {
		t.Error("the order has not ended")
	}
}

// TestOrderedDropThatFails: a forced detach that finds no room in the journal, and is given up, leaves the queue as it is: no
// record says that it has ended.
func TestOrderedDropThatFails(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.write(5*BlockSize, page(2)) // 1 is a shadow
	h.flush()
	j := &h.c.journal
	j.mu.Lock()
	room := j.mu.ring.cap
	j.mu.reserved += room // by requests for other devices, under way
	j.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.c.FinishDetach(ctx, h.b.ID(), true) }()
	for h.b.order.want.Load() { // it has begun
	}
	for range 3 {
		h.tick()
		h.step()
	}
	cancel()
	var err error
	for waits := true; waits; {
		select {
		case err = <-ended:
			waits = false
		default:
			h.tick()
			h.step()
		}
	}
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	j.unreserve(int(room))
	h.run(5)
	h.write(9*BlockSize, page(3)) // the device is in use again
	h.flush()
	before := h.b.order.mu.ring.len()
	h.reopen() // power cut
	if after := h.b.order.mu.ring.len(); after != before {
		t.Errorf("%d versions are queued, and %d after a start", before, after)
	}
	h.wantSound()
}

// TestOrderedEndNotOnRecord: the record that ends an order is lost with the power after newest versions
// were written back. The next start finds the queue and the note that the device was an image, writes the queue once more, and
// does not say that it is an image before all of that is there. Nothing that is durable is lost.
func TestOrderedEndNotOnRecord(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.write(5*BlockSize, page(2))
	h.write(6*BlockSize, page(2))
	h.flush()
	h.write(7*BlockSize, page(3))
	h.flush()
	r := h.l.bg.orderOf(h.b)
	if !h.c.journal.reserveSettled() {
		t.Fatal("no room")
	}
	r.dissolve(true) // as giveUp does
	h.b.order.want.Store(false)
	h.stuck = func(op *Op) bool { return op.Dev == SSD && (op.Kind == OpWrite || op.Kind == OpFlush) }
	h.b.draining.Store(true)
	h.until("writeback", func() bool { return h.back[7*BlockSize] == 3 && h.back[5*BlockSize] == 2 })
	for range 20 { // and flushed
		h.tick()
		h.step()
	}
	h.stuck = nil
	h.reopen()
	h.b.draining.Store(true)
	if n := h.b.order.mu.ring.len(); n != 4 {
		t.Fatalf("%d versions are queued", n)
	}
	h.until("the end", func() bool {
		s := h.status()
		if s.Ordered == "on" && s.UnsettledBytes != 0 {
			t.Fatal("it is said to be an image too early")
		}
		return s.UnsettledBytes == 0 && s.Ordered == "on" && h.b.Remaining() == 0
	})
	for blk, v := range map[int64]byte{5: 2, 6: 2, 7: 3} {
		if h.back[blk*BlockSize] != v {
			t.Errorf("block %d has %d", blk, h.back[blk*BlockSize])
		}
		h.wantRead(blk*BlockSize, page(v))
	}
	h.wantSound()
}

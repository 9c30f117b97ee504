package cache

import (
	"bytes"
	"errors"
	"testing"
)

// lose takes from the ordered device what it was not flushed for, and gives it back.
func (h *orderHarness) lose(before []byte) {
	h.c.SetPresence(h.b.ID(), Holding)
	copy(h.back, before)
	h.c.Lost(h.b.ID())
	h.c.SetPresence(h.b.ID(), Present)
}

// TestOrderedStartWritesAgainFirst: what an ordered device has lost, and a FLUSH has promised since the SSD has it, is
// there before anything that came later, also if the power goes in between.
func TestOrderedStartWritesAgainFirst(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.settle()
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(2)) // not flushed
	h.lose(before)
	h.flush() // the SSD has it
	h.reopen()
	h.log = nil
	if n := h.status().UnsettledBytes; n != BlockSize {
		t.Errorf("%d bytes are said to be lacking, a block is", n)
	}
	h.write(9*BlockSize, page(3))
	h.drain()
	h.wantLog("write 5+1 2", "flush", "write 9+1 3", "flush")
	h.wantSound()
}

// lackingHarness has an ordered device that has lost block 5, which is 2; a FLUSH has promised it since.
func lackingHarness(t *testing.T) *orderHarness {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.settle()
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(2)) // not flushed
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.lose(before)
	h.flush() // the SSD has it
	return h
}

// TestOrderedOverLost: the same if it is overwritten before it is there again.
func TestOrderedOverLost(t *testing.T) {
	h := lackingHarness(t)
	h.write(9*BlockSize, page(3))
	h.flush()
	h.log = nil
	h.write(5*BlockSize, page(4))
	h.wantRead(5*BlockSize, page(4))
	h.drain()
	h.wantLog("write 5+1 2", "flush", "write 9+1 3", "flush", "write 5+1 4", "flush")
	h.wantSound()
}

// TestOrderedOverLostAfterStart: the same if the power goes in between, and it is overwritten before the start knows
// what the device has.
func TestOrderedOverLostAfterStart(t *testing.T) {
	for _, cut := range []bool{false, true} {
		h := lackingHarness(t)
		h.reopen()
		h.reopen() // what is on record stays
		if !h.b.order.noted.Load() {
			t.Fatal("the start does not know that the device was an image")
		}
		h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite }
		h.write(9*BlockSize, page(3))
		h.flush()
		h.log = nil
		r := &Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(4), Backing: h.b.ID()}
		h.done = false
		h.l.Submit(r)
		h.run(20)
		if h.done {
			t.Error("the write has not waited")
		}
		if cut { // power again, with the write under way
			h.reopen()
			h.stuck = nil
			h.drain()
			h.wantLog("write 5+1 2", "flush", "write 9+1 3", "flush")
			continue
		}
		h.stuck = nil
		h.until("the write", func() bool { return h.done })
		h.drain()
		h.wantLog("write 5+1 2", "flush", "write 9+1 3", "flush", "write 5+1 4", "flush")
		h.wantRead(5*BlockSize, page(4))
		h.wantSound()
	}
}

// TestOrderedOverLostEnds: a write that waits for what the device has lost to be there again ends also if the device,
// the SSD or the order goes. One of another block does not wait.
func TestOrderedOverLostEnds(t *testing.T) {
	for what, goes := range map[string]func(h *orderHarness){
		"device": func(h *orderHarness) { h.c.SetPresence(h.b.ID(), Failing) },
		"SSD":    func(h *orderHarness) { h.fail = func(op *Op) error { return errMedium } },
		"order":  func(h *orderHarness) { h.set(func(t *Tunables) { t.Ordered = false }) },
	} {
		h := lackingHarness(t)
		h.stuck = func(op *Op) bool { return op.Dev != SSD }
		r := &Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(4), Backing: h.b.ID()}
		h.done = false
		h.l.Submit(r)
		h.run(20)
		if h.done {
			t.Fatal("the write has not waited")
		}
		h.write(6*BlockSize, page(4))
		h.done = false
		goes(h)
		if what == "SSD" {
			h.until("the loss", func() bool { return h.c.lost() })
			h.stuck = nil // it fails over to the device
		}
		h.until("the end of the write, without the "+what, func() bool { return h.done })
		if want := map[string]error{"device": ErrAbsent, "SSD": ErrSSDLost}[what]; !errors.Is(r.Err, want) {
			t.Errorf("without the %s: %v", what, r.Err)
		}
	}
}

// TestOrderedStartOfNoImage: what is dirty of a device that was no image yet is overwritten at once, however much it is.
func TestOrderedStartOfNoImage(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("no order", func() bool { return !h.b.order.on.Load() })
	h.stuck = func(op *Op) bool { return op.Dev != SSD }
	for _, how := range []string{"switched on again", "by the next start"} {
		h.write(5*BlockSize, page(2))
		h.set(func(t *Tunables) { t.Ordered = true })
		if how == "switched on again" {
			h.until("the queue", func() bool { return h.b.order.on.Load() })
			h.write(7*BlockSize, page(2))
			h.flush()
		}
		h.reopen()
		if !h.b.order.on.Load() || h.b.order.noted.Load() {
			t.Errorf("%s: the device counts as an image that it never was", how)
		}
		h.write(5*BlockSize, page(3)) // does not wait
		h.set(func(t *Tunables) { t.Ordered = false })
		h.reopen()
	}
}

// TestOrderedImageOnRecordFirst: a device is not said to be an image before that is durable.
func TestOrderedImageOnRecordFirst(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("no order", func() bool { return !h.b.order.on.Load() })
	h.flush()
	if d := h.images(); d != "" {
		t.Errorf("no device is ordered, and images are %s on record", d)
	}
	h.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpWrite }
	h.set(func(t *Tunables) { t.Ordered = true })
	h.until("the base", func() bool { return h.b.order.based.Load() })
	h.run(20)
	if s := h.status().Ordered; s != "starting" {
		t.Errorf("a start would not know that it is an image, and its order is %s", s)
	}
	h.stuck = nil
	h.until("the order", func() bool { return h.status().Ordered == "on" })
	if d := h.images(); d != "0x1" {
		t.Errorf("the images are %q on record", d)
	}
}

// images is what the newest page of the journal says of them.
func (h *orderHarness) images() string {
	h.t.Helper()
	d, err := Dump(h.t.Context(), memStorage(bytes.Clone(h.ssd)), DumpOptions{Journal: true})
	if err != nil {
		h.t.Fatal(err)
	}
	return d.Journal[len(d.Journal)-1].Images
}

// TestOrderedStartThatFails: the order is switched on while a block is dirty that the disk does not take. Who waits for
// room in the queue is told, as on any ordered device that fails, or goes on.
func TestOrderedStartThatFails(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("no order", func() bool { return !h.b.order.on.Load() })
	h.write(5*BlockSize, page(1))
	h.fail = func(op *Op) error { // one bad sector
		if op.Dev != SSD && op.Kind == OpWrite && op.Off <= 5*BlockSize && op.Off+op.Len > 5*BlockSize {
			return errMedium
		}
		return h.note(op)
	}
	h.set(func(t *Tunables) { t.Ordered = true })
	h.until("the order", func() bool { return h.b.order.on.Load() })
	h.write(9*BlockSize, page(2))
	h.now += int64(31e9) // older than ordered-age
	h.done = false
	r := &Request{Op: ReqWrite, Off: 10 * BlockSize, Len: BlockSize, Data: page(3), Backing: h.b.ID()}
	h.l.Submit(r)
	h.run(36000) // an hour
	s := h.status()
	if !h.done {
		t.Errorf("a write waits for ever: the order is %s, broken %d times, %d bytes unsettled for %d ms", s.Ordered,
			s.OrderedBroken, s.UnsettledBytes, s.UnsettledMs)
	}
}

package cache

import (
	"bytes"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestOrderedTryBeforeTheProbe: a try that began before a probe found the backing device there says nothing, also if it fails
// afterwards. Who waits is told of the next one.
func TestOrderedTryBeforeTheProbe(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.c.opts.Suspect = func(BackingID) {}
	write := func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite }
	failed, fails := 0, 2
	h.fail = func(op *Op) error {
		if write(op) && failed < fails {
			failed++
			return syscall.EIO
		}
		return nil
	}
	h.write(0, page(1))
	h.flush()
	ended := false
	r := &Request{Op: ReqDiscard, Off: 9 * BlockSize, Len: BlockSize}
	h.finish = func(f *Request) { ended = ended || f == r }
	r.Backing = h.b.ID()
	h.l.Submit(r)
	h.until("the first try", func() bool { return failed == 1 })
	probe := h.c.BeginProbe(h.b.ID())
	h.stuck = write
	h.until("the second try", func() bool { return slices.ContainsFunc(h.ops, write) })
	h.c.Alive(h.b.ID(), probe)
	h.stuck = nil
	h.until("its end", func() bool { return failed == 2 })
	h.tick()
	h.step()
	if ended {
		t.Fatalf("the discard ends with %v", r.Err)
	}
	h.until("the third try", func() bool { return ended })
	if r.Err != nil {
		t.Errorf("the discard ends with %v", r.Err)
	}
}

// TestOrderedAbsentAtTheProbe: a batch is on the device, but not flushed there, while the order waits for a probe of the SSD.
// The device goes away and comes back without it. Before that is known, no flush of it may count.
func TestOrderedAbsentAtTheProbe(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.write(60*BlockSize, page(2))
	h.flush() // acknowledged
	before := bytes.Clone(h.back)
	bad, r := h.slotOf(5), h.l.bg.orderOf(h.b)
	absent := false
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpRead && op.Off == bad {
			return errMedium
		}
		if op.Dev != SSD && absent {
			t.Errorf("a %v of a device that is not there", op.Kind)
		}
		return h.note(op)
	}
	there := func() bool { return h.back[60*BlockSize] == 2 }
	h.stuck = func(op *Op) bool { return op.probe && r.step == orderProbe && there() }
	_ = h.c.SetDrain(h.b.ID(), true)
	h.until("the probe", func() bool {
		return r.busy && r.step == orderProbe && there() && len(h.ops) == 1 && h.ops[0].probe
	})
	h.c.SetPresence(h.b.ID(), Holding)
	if !h.l.Quiet(h.b.ID()) {
		t.Fatal("something is under way")
	}
	copy(h.back, before) // it answers again, and has lost what it was not flushed for
	absent, h.stuck = true, nil
	h.run(20) // the guard has not put it back yet
	absent = false
	h.c.Lost(h.b.ID())
	h.c.SetPresence(h.b.ID(), Present)
	h.drain()
	if h.back[60*BlockSize] != 2 {
		t.Errorf("the device has %d, the block is %d, flushed, and nothing is dirty", h.back[60*BlockSize], 2)
	}
	h.hint(ReqRead, 60, 1, "hint=evict")
	h.wantRead(60*BlockSize, page(2))
	h.wantSound()
}

// TestFlushAcrossAnAbsence: a flush hangs while the device is held for, and succeeds when that is there again, without what it
// had not been flushed for. What the flush was to cover is not durable.
func TestFlushAcrossAnAbsence(t *testing.T) {
	for _, client := range []bool{false, true} {
		h := newGoneOn(smallWith(t, FormatOptions{BucketBytes: 64 << 10}))
		h.write(0, fill(7, 1))
		h.drain()
		mode := Writethrough
		if client {
			mode = Writearound // the device has the only copy
		}
		if err := h.c.SetMode(h.b.ID(), mode); err != nil {
			t.Fatal(err)
		}
		h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
		h.write(0, fill(1, 1)) // acknowledged, not flushed
		r := &Request{Op: ReqFlush, Backing: h.b.ID()}
		ended := false
		h.finish = func(f *Request) { ended = ended || f == r }
		if client {
			h.l.Submit(r)
		}
		h.until("the flush", func() bool { i := len(h.ops); return i > 0 && h.stuck(h.ops[i-1]) && h.runnable() < 0 })
		h.c.SetPresence(h.b.ID(), Holding) // no answer for a while
		copy(h.back, fill(7, 1))           // its power was gone
		h.stuck = nil
		for range 5 {
			h.step() // the flush, which was sent again, succeeds
		}
		if !h.l.Quiet(h.b.ID()) {
			t.Fatal("something is under way")
		}
		h.c.Lost(h.b.ID())
		h.c.SetPresence(h.b.ID(), Present)
		if client {
			h.until("its end", func() bool { return ended })
			if !errors.Is(r.Err, ErrLost) {
				t.Errorf("the FLUSH ends with %v, and the write is gone", r.Err)
			}
			continue
		}
		h.drain()
		if h.back[0] != 1 {
			t.Errorf("the device has %d, and nothing is dirty", h.back[0])
		}
	}
}

// TestDrainOfAnOrderedDeviceThatFails: who waits for an ordered device that is there, and takes nothing, is told.
func TestDrainOfAnOrderedDeviceThatFails(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.fail = failsWrites
	if err := h.c.BeginDetach(h.b.ID()); err != nil {
		t.Fatal(err)
	}
	if h.waitDrained(100*time.Millisecond) == nil {
		t.Error("it is said to be written back")
	}
}

// TestOrderedChangeWithoutSSD: what an ordered device has lost, and a FLUSH has promised since, was written
// there again, but not flushed, when the SSD is lost. Nothing that comes later is written there before it is.
func TestOrderedChangeWithoutSSD(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.c.opts.Missed = func(_ Missed, done func(error)) { done(nil) }
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
	h.until("the block", func() bool { return slices.Contains(h.log, "write 5+1 1") && h.b.dirty.Load() == 0 })
	h.vanish()
	h.done = false
	h.l.Submit(&Request{Op: ReqWrite, Off: 900 * BlockSize, Len: BlockSize, Data: page(2), Backing: h.b.ID()})
	h.run(20)
	if h.back[900*BlockSize] == 2 {
		t.Error("a later change is on the ordered device before what was promised is flushed there")
	}
}

// TestOrderedOnlyToBeFlushed: the SSD is lost when an ordered device has all that it should have, but was not flushed for it
// since the start. A change waits for that flush, and does not fail.
func TestOrderedOnlyToBeFlushed(t *testing.T) {
	h := newOrderHarness(t, func(t *Tunables) { t.Loss.Hold = 0 })
	h.c.opts.Missed = func(_ Missed, done func(error)) { done(nil) }
	h.settle()
	h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
	h.reopen()
	h.c.opts.Missed = func(_ Missed, done func(error)) { done(nil) }
	if _, err := h.read(5*BlockSize, BlockSize); err != nil {
		t.Fatal(err)
	}
	h.until("the fill", func() bool { return h.b.uncovered() > 0 })
	h.vanish()
	h.done = false
	r := &Request{Op: ReqWrite, Off: 900 * BlockSize, Len: BlockSize, Data: page(2), Backing: h.b.ID()}
	h.l.Submit(r)
	h.run(20)
	if h.done {
		t.Fatalf("the change does not wait for the flush: %v", r.Err)
	}
	h.stuck = nil
	h.until("the change", func() bool { return h.done })
	if r.Err != nil {
		t.Error(r.Err)
	}
}

// vanish takes the SSD away.
func (h *orderHarness) vanish() {
	h.fail = func(op *Op) error {
		if op.Dev == SSD {
			return syscall.ENODEV
		}
		return h.note(op)
	}
	h.c.ssdFailed(syscall.ENODEV)
	h.until("the loss", h.c.ssdHealth.settled.Load)
}

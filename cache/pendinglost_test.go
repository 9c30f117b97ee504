package cache

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"ubcache/attrs"
)

// newPending has a block that is 7 and durable on the backing device, and 1 and durable on the SSD; this has been
// written back, but not flushed for.
func newPending(t *testing.T, o FormatOptions) *goneHarness {
	o.BucketBytes = 64 << 10
	h := newGoneOn(smallWith(t, o))
	h.write(0, fill(7, 1))
	h.drain()
	h.write(0, fill(1, 1))
	h.flush()
	h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
	_ = h.c.SetDrain(h.b.ID(), true)
	h.until("writeback", func() bool { return h.back[0] == 1 && h.b.dirty.Load() == 0 })
	_ = h.c.SetDrain(h.b.ID(), false)
	if h.c.Status().Backings[0].PendingBytes != BlockSize {
		t.Fatal("the block is not pending")
	}
	return h
}

// forget makes the backing device, which is gone, return without what it was not flushed for.
func (h *goneHarness) forget() {
	h.stuck = nil
	for len(h.ops) > 0 { // the flush fails
		h.step()
	}
	copy(h.back, fill(7, 1))
	h.comeBack(true)
}

// TestPendingLostByBoth: the SSD cannot return a pending block, and the backing device loses it before it is read from
// there. It is an error then, and not what it was before, also for a write that covers part of it.
func TestPendingLostByBoth(t *testing.T) {
	for name, r := range map[string]func() *Request{
		"read":         func() *Request { return readOf(0, BlockSize) },
		"partial read": func() *Request { return readOf(512, 512) },
		"write":        func() *Request { return writeOf(512, fill(2, 1)[:512]) },
	} {
		for _, unreadable := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				h := newPending(t, FormatOptions{})
				slot, fail := h.slotOf(0), h.fail
				h.fail = func(op *Op) error {
					if unreadable && op.Dev == SSD && op.Kind == OpRead && op.Off == slot {
						return errMedium
					}
					return fail(op)
				}
				if !unreadable {
					h.ssd[slot+5] ^= 1
				}
				h.leave(Holding)
				r := r()
				h.begin(r)
				h.wantWaiting(name)
				h.forget()
				h.wantDone(name, r, ErrDirtyBad)
				if _, err := h.read(1024, 512); !errors.Is(err, ErrDirtyBad) {
					t.Errorf("then a read ends with %v", err)
				}
			})
		}
	}
}

// TestPendingReadAcrossALoss: a read of a pending block that goes past a slow SSD waits for the backing device, which
// returns without the block. It is read from the SSD then.
func TestPendingReadAcrossALoss(t *testing.T) {
	for _, n := range []int{512, BlockSize, 2 * BlockSize} {
		h := newPending(t, FormatOptions{})
		h.c.ssdHealth.state.Store(uint32(HealthSlow))
		h.gone = true
		r := readOf(0, n)
		r.Backing, h.done = h.b.ID(), false
		h.l.Submit(r)
		h.step()
		h.leave(Holding)
		h.wantWaiting("the read")
		h.forget()
		h.wantDone("the read", r, nil)
		if want := append(fill(1, 1), fill(0, 1)...); !bytes.Equal(r.Data, want[:n]) {
			t.Errorf("a read of %d bytes has %d", n, r.Data[0])
		}
	}
}

// TestPendingMismatchAcrossALoss: what the SSD has of a pending block is not what the client expects, which is what the
// backing device has again when it is asked.
func TestPendingMismatchAcrossALoss(t *testing.T) {
	h := newPending(t, FormatOptions{NoChecksums: true})
	h.leave(Holding)
	r := readOf(0, BlockSize)
	r.Attrs, r.Results = &attrs.Set{}, &attrs.Results{}
	r.Attrs.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Sums: attrs.XXH64.AppendSums(nil, fill(7, 1))})
	h.begin(r)
	h.wantWaiting("the read")
	h.forget()
	h.wantDone("the read", r, ErrMismatch)
}

// TestPendingMatchAcrossALoss: the same, where the SSD returned something else at first, and has what is expected when the
// backing device may have lost it.
func TestPendingMatchAcrossALoss(t *testing.T) {
	h := newPending(t, FormatOptions{NoChecksums: true})
	slot := h.slotOf(0)
	h.ssd[slot] ^= 1
	h.leave(Holding)
	r := readOf(0, BlockSize)
	r.Attrs, r.Results = &attrs.Set{}, &attrs.Results{}
	r.Attrs.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Sums: attrs.XXH64.AppendSums(nil, fill(1, 1))})
	h.begin(r)
	h.wantWaiting("the read")
	h.ssd[slot] ^= 1
	h.forget()
	h.wantDone("the read", r, nil)
}

// TestLossIsNews: who sees a block pending while a loss is being noted, and reads it from the backing device, learns of
// the loss.
func TestLossIsNews(t *testing.T) {
	h := newPending(t, FormatOptions{})
	s := h.c.index.stripeOf(h.b.ID(), 0)
	s.mu.Lock()
	began, done := h.b.losses.Load(), make(chan struct{})
	go func() {
		h.c.Lost(h.b.ID())
		close(done)
	}()
	for h.b.losses.Load() == began {
		runtime.Gosched()
	}
	seen := h.b.losses.Load()
	if e, _ := h.c.index.find(makeKey(h.b.ID(), 0)); e.st&stPending == 0 {
		t.Error("the block is not pending any more")
	}
	s.mu.Unlock()
	if <-done; h.b.losses.Load() == seen {
		t.Error("the loss cannot be told from an older one")
	}
	h.stuck = nil
}

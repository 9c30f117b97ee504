package cache

import (
	"bytes"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"ubcache/attrs"
)

// TestLostByBoth: what the backing device has lost of a written-through block, the SSD has; if that is lost as well,
// before the record of it was on the SSD, the block is an error, and not what the backing device had before.
func TestLostByBoth(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		v := newLossy(t, FormatOptions{NoChecksums: true}, Writethrough)
		v.write(0, fill(1, 1))
		if forgets {
			clear(v.back)
			v.c.Lost(v.b.id)
		}
		v.vanish()
		v.restart()
		if !forgets {
			v.wantRead(0, fill(1, 1))
			continue
		}
		_, err := v.read(0, BlockSize)
		v.wantError(err, ErrDirtyBad, "the block that both have lost")
	}
}

// TestFlushThatWaitsIsOvertaken: the backing device loses a write while a FLUSH that is to cover it waits for what
// becomes of the SSD. That FLUSH fails, and the next one does not.
func TestFlushThatWaitsIsOvertaken(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writearound)
	v.write(0, fill(1, 1))
	v.gone = true
	v.c.ssdFailed(syscall.ENODEV)
	for !v.c.lost() {
		v.l.Tick()
	}
	answered := map[*Request]bool{}
	v.finish = func(f *Request) { answered[f] = true }
	r := v.start(&Request{Op: ReqFlush})
	if answered[r] || len(v.ops) > 0 {
		t.Fatal("the FLUSH does not wait")
	}
	clear(v.back)
	v.c.Lost(v.b.id)
	v.pass(time.Second)
	if !answered[r] || !errors.Is(r.Err, ErrLost) {
		t.Errorf("the FLUSH is answered: %v, %v", answered[r], r.Err)
	}
	r = v.start(&Request{Op: ReqFlush})
	v.pass(time.Second)
	if !answered[r] || r.Err != nil {
		t.Errorf("the next FLUSH is answered: %v, %v", answered[r], r.Err)
	}
}

// TestFlushesThatDisagree: of two flushes at the same time one fails, and nobody knows of what the device has dropped. What
// the other one was for is not durable either, be it a FLUSH or a write with FUA.
func TestFlushesThatDisagree(t *testing.T) {
	for _, fua := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writearound)
		ended := map[*Request]bool{}
		v.finish = func(f *Request) { ended[f] = true }
		v.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
		flushes := func(n int) {
			t.Helper()
			v.until("the flush", func() bool { return len(v.ops) == n && v.runnable() < 0 })
		}
		r := writeOf(0, fill(2, 1))
		if r.FUA = fua; !fua {
			v.write(0, fill(2, 1))
			r = &Request{Op: ReqFlush}
		}
		v.start(r)
		flushes(1)
		mine := v.ops[0]
		other := v.start(&Request{Op: ReqFlush})
		flushes(2)
		fail := v.fail
		v.fail = func(op *Op) error {
			if op != mine && op.Dev != SSD && op.Kind == OpFlush {
				return errMedium
			}
			return fail(op)
		}
		v.stuck = func(op *Op) bool { return op == mine }
		v.until("the other one's end", func() bool { return ended[other] })
		if ended[r] || other.Err == nil {
			t.Fatalf("ended %v; the other one with %v", ended[r], other.Err)
		}
		v.stuck = nil
		if v.until("its end", func() bool { return ended[r] }); !errors.Is(r.Err, ErrLost) {
			t.Errorf("FUA %v: ended with %v", fua, r.Err)
		}
	}
}

// TestFUAThatWaitsIsOvertaken: a write with FUA has gone past the cache when the SSD is lost, and waits for the marker. Meanwhile
// the backing device loses it. The flush that the marker needs comes too late for it, so it fails.
func TestFUAThatWaitsIsOvertaken(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writeback)
		v.setLoss(LossPolicy{})
		v.write(8*BlockSize, fill(1, 1)) // so that the SSD may lack a record
		v.stuck = func(op *Op) bool { return op.Dev != SSD }
		r, ended := asked(writeOf(0, fill(2, 1)), attrs.Writearound), false
		v.finish = func(f *Request) { ended = ended || f == r }
		r.FUA = true
		v.start(r)
		v.until("the write", func() bool { return len(v.ops) == 1 && v.stuck(v.ops[0]) })
		v.vanish()
		v.stuck = nil
		v.step()
		if ended || len(v.ops) > 0 || v.b.marker.Load() != markerAsked {
			t.Fatal("it does not wait for the marker")
		}
		var want error
		if forgets {
			clear(v.back)
			v.c.Lost(v.b.id)
			want = ErrLost
		}
		if v.until("its end", func() bool { return ended }); !errors.Is(r.Err, want) {
			t.Errorf("forgets %v: the write ended with %v, expected %v", forgets, r.Err, want)
		}
		if len(v.markers) != 1 {
			t.Error("there is no marker")
		}
	}
}

// TestFUACopyLostByBoth: a write with FUA has gone to both devices. The backing device loses it before it is flushed, and the
// SSD is lost before a record of the copy is there. It is not acknowledged.
func TestFUACopyLostByBoth(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writethrough)
		v.setLoss(LossPolicy{})
		r, ended := writeOf(0, fill(2, 1)), false
		v.finish = func(f *Request) { ended = ended || f == r }
		r.FUA = true
		v.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpWrite }
		v.start(r)
		v.until("the change", func() bool { return v.runnable() < 0 })
		v.c.SetPresence(v.b.id, Holding) // the flush waits
		v.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpFlush }
		v.until("the copy", func() bool { return v.slotOf(0) >= 0 })
		var want error
		if forgets {
			clear(v.back)
			v.c.Lost(v.b.id)
			want = ErrLost
		}
		v.c.SetPresence(v.b.id, Present)
		v.vanish()
		v.stuck = nil
		if v.until("its end", func() bool { return ended }); !errors.Is(r.Err, want) {
			t.Errorf("forgets %v: the write ended with %v, expected %v", forgets, r.Err, want)
		}
	}
}

// TestLostOverwriteForgotten: what was dirty on the lost SSD and is overwritten on the backing device, which then loses what
// it was not flushed for, is not what it was before both.
func TestLostOverwriteForgotten(t *testing.T) {
	// forgetful is such a device, with a block that is dirty and flushed.
	forgetful := func(t *testing.T) (v *lossy, forget func()) {
		v = newLossy(t, FormatOptions{}, Writeback)
		v.setLoss(LossPolicy{})
		copy(v.back, fill(7, 1))
		durable := bytes.Clone(v.back)
		fail := v.fail
		v.fail = func(op *Op) error {
			err := fail(op)
			if err == nil && op.Dev != SSD && op.Kind == OpFlush {
				copy(durable, v.back)
			}
			return err
		}
		v.write(0, fill(1, 1))
		v.flush()
		return v, func() {
			copy(v.back, durable)
			v.c.Lost(v.b.id)
		}
	}

	t.Run("lost before", func(t *testing.T) {
		v, forget := forgetful(t)
		v.vanish()
		v.write(0, fill(2, 1))
		forget()
		v.wantRead(0, fill(2, 1))
	})
	t.Run("lost meanwhile", func(t *testing.T) { // when the SSD has got a copy
		v, forget := forgetful(t)
		v.write(8*BlockSize, fill(1, 1))
		v.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite && op.Off == v.b.dataOff }
		r, ended := asked(writeOf(0, fill(2, 1)), attrs.Writethrough), false
		v.finish = func(f *Request) { ended = ended || f == r }
		r.Backing = v.b.id
		v.l.Submit(r)
		v.until("the write", func() bool { return len(v.ops) == 1 && v.stuck(v.ops[0]) })
		v.vanish()
		v.write(8*BlockSize, fill(2, 1)) // so that the marker, which needs a flush, is there before
		v.stuck = nil
		if v.until("its end", func() bool { return ended }); r.Err != nil {
			t.Fatal(r.Err)
		}
		forget()
		v.wantRead(0, fill(2, 1))
	})
	t.Run("a flush fails", func(t *testing.T) {
		v, forget := forgetful(t)
		v.vanish()
		fail, wrote := v.fail, false
		v.fail = func(op *Op) error {
			if op.Dev == SSD {
				return fail(op)
			}
			wrote = wrote || op.Kind == OpWrite
			if wrote && op.Kind == OpFlush {
				return errMedium
			}
			return fail(op)
		}
		err := v.do(writeOf(0, fill(2, 1)))
		v.wantError(err, errMedium, "the write")
		forget()
		_, err = v.read(0, BlockSize)
		v.wantError(err, ErrSSDLost, "the block that nobody has")
	})
}

// TestLostOverDurable: a block was dirty and flushed, and then written through, when the SSD loses what it was not flushed for.
// The backing device has the newer version, in its volatile cache only: should it lose that, too, the flushed one must
// not be gone for something older. So the block is an error. One that was not dirty before is read from there. It is the
// same if a failed commit has left the records in the journal.
func TestLostOverDurable(t *testing.T) {
	for _, sums := range []bool{true, false} {
		for _, commit := range []bool{false, true} {
			v := newLossy(t, FormatOptions{NoChecksums: !sums}, Writeback)
			v.write(0, fill(1, 1))
			v.flush()
			v.mode(Writethrough)
			before := bytes.Clone(v.ssd)
			v.write(0, fill(2, 1))
			v.write(8*BlockSize, fill(3, 1))
			if commit {
				v.stuck = func(op *Op) bool { return op.Dev != SSD }
				v.fail = func(op *Op) error {
					if op.Dev == SSD && op.FUA && !v.gone {
						copy(before[op.Off:], op.Mem)
						v.gone = true
					}
					return v.outcome(op)
				}
				v.start(&Request{Op: ReqFlush})
				v.until("the commit", func() bool { return v.gone })
			}
			v.vanish()
			copy(v.ssd, before)
			v.stuck = nil
			v.restart()
			_, err := v.read(0, BlockSize)
			v.wantError(err, ErrDirtyBad, "the block that was flushed before")
			v.wantRead(8*BlockSize, fill(3, 1))
		}
	}
}

// TestLostUnderFailedChange: a block was written through, and then a change of it failed on the backing device, which may have
// anything of that. The block is dirty from then on: reads have shown what the SSD has. If the SSD loses that, the block is
// an error, and not what the backing device has.
func TestLostUnderFailedChange(t *testing.T) {
	for _, sums := range []bool{true, false} {
		for _, op := range []ReqOp{ReqWrite, ReqWriteZeroes} {
			v := newLossy(t, FormatOptions{NoChecksums: !sums}, Writethrough)
			before := bytes.Clone(v.ssd)
			v.write(0, fill(1, 2))
			fail := v.fail
			v.fail = func(op *Op) error {
				if op.Dev != SSD && (op.Kind == OpWrite || op.Kind == OpZero) {
					copy(v.back, fill(2, 1)) // a part of it, or whatever
					return errMedium
				}
				return fail(op)
			}
			err := v.do(&Request{Op: op, Len: BlockSize, Data: fill(2, 1)})
			v.wantError(err, errMedium, "the change")
			v.fail = fail
			v.wantRead(0, fill(1, 2))
			v.vanish()
			copy(v.ssd, before)
			v.restart()
			_, err = v.read(0, BlockSize)
			v.wantError(err, ErrDirtyBad, "the block that was to be changed")
			v.wantRead(BlockSize, fill(1, 2)[BlockSize:])
		}
	}
}

// TestFlushAfterLossOfBoth: what was written through is on the backing device no more, or perhaps not, and the SSD, which may have
// lost the copy, was lost before that. No FLUSH says that it is durable.
func TestFlushAfterLossOfBoth(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writethrough)
		v.setLoss(LossPolicy{})
		v.write(0, fill(1, 1))
		fail := v.fail
		v.fail = func(op *Op) error {
			if op.Dev != SSD && op.Kind == OpWrite {
				return errMedium
			}
			return fail(op)
		}
		if !forgets {
			v.stuck = func(op *Op) bool { return op.Dev != SSD }
			v.start(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1)})
			v.until("the change", func() bool { return len(v.ops) == 1 && v.stuck(v.ops[0]) })
		}
		v.vanish()
		if forgets {
			clear(v.back)
			v.c.Lost(v.b.id)
		}
		v.stuck = nil
		v.until("the loss of both", func() bool { return v.b.dirty.Load() == 1 })
		v.wantError(v.do(&Request{Op: ReqFlush}), ErrSSDLost, "the FLUSH")
	}
}

// TestFUAFlushed: a write with FUA that went to the backing device and has been flushed there does not fail for what the
// device loses afterwards, also if the SSD is lost then.
func TestFUAFlushed(t *testing.T) {
	for _, mode := range []Mode{Writethrough, Writearound} {
		h := newOrderHarness(t, nil)
		h.settle()
		h.c.opts.Missed = func(_ Missed, done func(error)) { done(nil) }
		if err := h.c.SetMode(h.b.ID(), mode); err != nil {
			t.Fatal(err)
		}
		h.stuck = func(op *Op) bool { return op.Dev == SSD && (op.Kind == OpFlush || op.FUA) }
		r := &Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: page(1), FUA: true, Backing: h.b.ID()}
		other := &Request{Op: ReqWrite, Off: 9 * BlockSize, Len: BlockSize, Data: page(2), Backing: h.b.ID()}
		if mode == Writearound { // a record that the flush waits for
			_ = h.c.SetMode(h.b.ID(), Writethrough)
			h.done = false
			h.l.Submit(other)
			h.until("the other", func() bool { return h.done })
			_ = h.c.SetMode(h.b.ID(), mode)
		}
		h.done, h.log = false, nil
		h.l.Submit(r)
		h.until("the flush", func() bool { return slices.Contains(h.log, "flush") })
		h.run(3)
		if h.done {
			t.Fatalf("%v: the write has not waited for the SSD: %v", mode, r.Err)
		}
		h.c.SetPresence(h.b.ID(), Holding) // as it was, but nobody knows
		h.c.Lost(h.b.ID())
		h.c.SetPresence(h.b.ID(), Present)
		h.stuck = nil
		h.fail = func(op *Op) error {
			if op.Dev == SSD {
				return syscall.ENODEV
			}
			return h.note(op)
		}
		h.until("its end", func() bool { return h.done })
		if r.Err != nil || !h.c.lost() {
			t.Errorf("%v: the write: %v", mode, r.Err)
		}
	}
}

// TestWrittenBackLostByBoth: a block was written back and is not durable on either device: its record is not on the
// SSD, which is lost, and the backing device, which was not flushed for it, forgets it. A FLUSH must not say that it is durable.
func TestWrittenBackLostByBoth(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{})
	v.write(8*BlockSize, fill(9, 1))
	v.flush()
	v.drain()
	v.settle()
	before := bytes.Clone(v.ssd)
	v.write(0, fill(1, 1)) // acknowledged, not flushed
	v.stuck = func(op *Op) bool { return op.Kind == OpFlush }
	if err := v.c.SetDrain(v.b.id, true); err != nil {
		t.Fatal(err)
	}
	v.until("writeback", func() bool { return v.b.dirty.Load() == 0 })
	if n, _ := v.c.journal.pendingRecords(); n == 0 {
		t.Fatal("its record is on the SSD")
	}
	v.vanish()
	clear(v.back[:BlockSize]) // it was not flushed
	v.c.Lost(v.b.id)
	v.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpFlush }
	err := v.do(&Request{Op: ReqFlush})
	v.wantError(err, ErrSSDLost, "the FLUSH of what nobody has for certain")
	copy(v.ssd, before) // with its volatile cache
	v.stuck = nil
	v.restart()
	if got, err := v.read(0, BlockSize); err == nil && got[0] != 1 {
		t.Errorf("after a start: %d", got[0])
	}
}

package cache

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

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

// readExpecting reads the first block for a client that expects it to be v.
func readExpecting(v byte) *Request {
	r := readOf(0, BlockSize)
	r.Attrs, r.Results = &attrs.Set{}, &attrs.Results{}
	r.Attrs.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Sums: attrs.XXH64.AppendSums(nil, fill(v, 1))})
	return r
}

// TestPendingMismatchAcrossALoss: what the SSD has of a pending block is not what the client expects, which is what the
// backing device has again when it is asked.
func TestPendingMismatchAcrossALoss(t *testing.T) {
	h := newPending(t, FormatOptions{NoChecksums: true})
	h.leave(Holding)
	r := readExpecting(7)
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
	r := readExpecting(1)
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

// newPendingWithout has a block that is 7 and durable on the backing device, and 1 and durable on an SSD that is lost; this
// has been written back since the marker was made, and no flush of the background covers it. forget makes the backing
// device lose what it was not flushed for.
func newPendingWithout(t *testing.T) (v *lossy, forget func()) {
	t.Helper()
	v = newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{})
	copy(v.back, fill(7, 1))
	durable := bytes.Clone(v.back)
	v.then = func(op *Op) {
		if op.Dev != SSD && op.Kind == OpFlush {
			copy(durable, v.back)
		}
	}
	v.write(8*BlockSize, fill(1, 1))
	v.drain()
	v.write(0, fill(1, 1))
	v.flush()
	v.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite && op.Off == v.b.dataOff }
	_ = v.c.SetDrain(v.b.id, true)
	v.until("writeback", func() bool { return len(v.ops) == 1 && v.stuck(v.ops[0]) })
	v.vanish()
	v.write(8*BlockSize, fill(2, 1))
	v.stuck = func(op *Op) bool { return op.Kind == OpFlush && op.owner == nil }
	v.until("its end", func() bool { return v.b.dirty.Load() == 0 })
	if v.back[0] != 1 || v.c.Status().Backings[0].PendingBytes != BlockSize {
		t.Fatal("the block is not pending")
	}
	return v, func() {
		copy(v.back, durable)
		v.c.Lost(v.b.id)
	}
}

// TestPendingChangedWithout: a pending block is changed when the SSD is lost, and the backing device loses what it was not
// flushed for. No sector is what it was before the SSD had it, whether the loss comes before the change is flushed or after.
func TestPendingChangedWithout(t *testing.T) {
	for name, r := range map[string]func() *Request{
		"part of it":  func() *Request { return writeOf(512, fill(2, 1)[:512]) },
		"all of it":   func() *Request { return writeOf(0, fill(2, 1)) },
		"more":        func() *Request { return writeOf(512, fill(2, 2)[:BlockSize]) },
		"zeroes":      func() *Request { return &Request{Op: ReqWriteZeroes, Off: 512, Len: 1024} },
		"discard":     func() *Request { return &Request{Op: ReqDiscard, Off: 512, Len: 512} },
		"all zeroes":  func() *Request { return &Request{Op: ReqWriteZeroes, Len: 2 * BlockSize} },
		"all discard": func() *Request { return &Request{Op: ReqDiscard, Len: BlockSize} },
	} {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, early=%v", name, early), func(t *testing.T) {
				v, forget := newPendingWithout(t)
				r, ended := r(), false
				v.finish = func(f *Request) { ended = ended || f == r }
				if stuck := v.stuck; early {
					v.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
					v.start(r)
					v.until("the change", func() bool {
						return ended || slices.ContainsFunc(v.ops, func(op *Op) bool { return op.Kind == OpFlush && op.owner == r })
					})
					v.c.SetPresence(v.b.id, Holding)
					forget()
					v.c.SetPresence(v.b.id, Present)
					v.stuck = stuck
				} else {
					v.start(r)
				}
				if v.until("its end", func() bool { return ended }); r.Err != nil {
					t.Fatal(r.Err)
				}
				if !early {
					forget()
				}
				for off := int64(0); off < BlockSize; off += SectorSize {
					got, err := v.read(off, SectorSize)
					switch changed := off >= r.Off && off < r.Off+r.Len; {
					case changed && err != nil:
						t.Errorf("the changed sector at %d: %v", off, err)
					case changed && (r.Op == ReqWrite) != (got[0] == 2):
						t.Errorf("the changed sector at %d is %d", off, got[0])
					case !changed && early:
						v.wantError(err, ErrSSDLost, fmt.Sprintf("the sector at %d, that nobody has", off))
					case !changed && (err != nil || got[0] != 1):
						t.Errorf("the other sector at %d is %d, %v", off, got[0], err)
					}
				}
			})
		}
	}
}

// TestPendingIdleDiscardWithout: the same, where the backing device cannot discard, and keeps the block as it is.
func TestPendingIdleDiscardWithout(t *testing.T) {
	v, forget := newPendingWithout(t)
	v.b.SetAbilities(false, true)
	if err := v.do(&Request{Op: ReqDiscard, Len: BlockSize}); err != nil {
		t.Fatal(err)
	}
	v.wantRead(0, fill(1, 1))
	forget()
	_, err := v.read(0, BlockSize)
	v.wantError(err, ErrSSDLost, "the block that nobody has")
}

// TestPendingChangeFailsWithout: the backing device fails a change of a pending block, of which it has made a part. What the SSD
// has is no likeness of the device then by which it could be recognised.
func TestPendingChangeFailsWithout(t *testing.T) {
	v, _ := newPendingWithout(t)
	fail := v.fail
	v.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			copy(v.back, fill(2, 1)[:SectorSize])
			return syscall.EIO
		}
		return fail(op)
	}
	v.wantError(v.do(writeOf(0, fill(2, 1))), syscall.EIO, "the write")
	v.fail, v.stuck = fail, nil
	v.until("a flush", func() bool { return v.c.Status().Backings[0].PendingBytes == 0 })
	if n, err := v.c.Recognise(v.b.id, v.back, 100); err != nil {
		t.Errorf("the device is not recognised by one of %d blocks: %v", n, err)
	}
	for off, want := range []byte{2, 1} {
		if got, err := v.read(int64(off)*SectorSize, SectorSize); err != nil || got[0] != want {
			t.Errorf("sector %d is %d, %v", off, got[0], err)
		}
	}
}

// newWritingBackWithout has a block that is clean at that place, and one at 0 that is durable on an SSD that is lost while it is
// being written back. Its write to the backing device, and flushes of that, are what the functions tell of.
func newWritingBackWithout(t *testing.T, clean int64) (v *lossy, write, flush func(op *Op) bool) {
	t.Helper()
	v = newLossy(t, FormatOptions{}, Writeback)
	write = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite && op.Off == v.b.dataOff }
	flush = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
	v.setLoss(LossPolicy{})
	v.write(clean, fill(1, 1))
	v.drain()
	v.write(0, fill(1, 1))
	v.flush()
	v.stuck = write
	_ = v.c.SetDrain(v.b.id, true)
	v.until("writeback", func() bool { return len(v.ops) == 1 && write(v.ops[0]) })
	v.vanish()
	return v, write, flush
}

// TestPendingMarked: a block is written back while the marker's flush is under way. That does not cover it, so it is one
// that only the lost SSD has for sure.
func TestPendingMarked(t *testing.T) {
	for _, during := range []bool{false, true} {
		v, write, flush := newWritingBackWithout(t, 8*BlockSize)
		if during {
			v.stuck = func(op *Op) bool { return write(op) || flush(op) }
		} else {
			v.stuck = flush
			v.until("the write", func() bool { return v.b.dirty.Load() == 0 })
		}
		v.start(writeOf(8*BlockSize, fill(2, 1)))
		v.until("the marker's flush", func() bool { return v.b.marker.Load() == markerMaking })
		v.stuck = flush
		v.until("the write", func() bool { return v.b.dirty.Load() == 0 })
		v.stuck = nil
		v.until("the marker", func() bool { return len(v.markers) == 1 })
		want := int64(0)
		if during {
			want = 1
		}
		if n := v.markers[v.b.uuid].Dirty; n != want {
			t.Errorf("during=%v: the marker tells of %d dirty blocks", during, n)
		}
	}
}

// TestPendingMarkedDuringALoss: the marker counts while a loss is being noted, which has taken the block from those that are
// pending and not made it dirty yet.
func TestPendingMarkedDuringALoss(t *testing.T) {
	const other = 2 << 20 // in another stripe
	v, write, flush := newWritingBackWithout(t, other)
	v.stuck = func(op *Op) bool { return write(op) || flush(op) }
	v.start(writeOf(other, fill(2, 1)))
	v.until("the marker's flush", func() bool { return v.b.marker.Load() == markerMaking })
	v.stuck = flush
	v.until("the write", func() bool { return v.b.dirty.Load() == 0 })

	s := v.c.index.stripeOf(v.b.id, 0)
	s.mu.Lock()
	began, done := v.b.losses.Load(), make(chan struct{})
	go func() {
		v.c.Lost(v.b.id)
		close(done)
	}()
	for v.b.losses.Load() == began {
		runtime.Gosched()
	}
	v.stuck = nil
	v.until("the end of the flush", func() bool { return v.b.marker.Load() != markerMaking })
	s.mu.Unlock()
	<-done
	v.until("the marker", func() bool { return len(v.markers) == 1 })
	if n := v.markers[v.b.uuid].Dirty; n != 1 {
		t.Errorf("the marker tells of %d dirty blocks", n)
	}
}

// TestCoveredIsNotLost: a pending block that a flush has covered stays pending while an SSD that stalls may be taken back.
// What the backing device loses then does not include it.
func TestCoveredIsNotLost(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.setLoss(LossPolicy{})
	v.write(0, fill(1, 1))
	v.stuck = func(op *Op) bool { return op.Dev == SSD || op.Kind == OpFlush }
	v.start(readOf(0, BlockSize))
	v.until("the loss", func() bool { v.now += int64(time.Second); return v.c.lost() })
	v.stall()
	v.pass(time.Duration(2 * pendingAge))
	if v.b.uncovered() > 0 || v.c.Status().Backings[0].PendingBytes != BlockSize {
		t.Fatal("the block is not pending, and covered")
	}
	v.c.Lost(v.b.id)
	v.wantRead(0, fill(1, 1))
	if n := v.b.dirty.Load(); n != 0 {
		t.Errorf("%d blocks are dirty", n)
	}
}

// TestPinOfADurableBlock: a block was written and flushed. Then it is pinned, and the commit of that fails after
// its page is on the SSD. The data was not in the SSD's volatile cache, so it is there after a start, also without checksums.
func TestPinOfADurableBlock(t *testing.T) {
	for _, landed := range []bool{false, true} {
		v := newLossy(t, FormatOptions{NoChecksums: true}, Writeback)
		v.write(0, fill(1, 1))
		v.flush()
		var pin attrs.Set
		pin.SetHint(attrs.HintPin)
		r := readOf(0, BlockSize)
		r.Attrs = &pin
		if err := v.do(r); err != nil || v.b.pinned.Load() != 1 {
			t.Fatal(err, v.b.pinned.Load())
		}
		v.fail = func(op *Op) error {
			if op.Dev == SSD && op.FUA && !v.gone {
				if landed {
					copy(v.ssd[op.Off:], op.Mem)
				}
				v.gone = true
			}
			return v.outcome(op)
		}
		v.start(&Request{Op: ReqFlush})
		v.until("the commit", func() bool { return v.gone })
		v.vanish()
		v.restart()
		got, err := v.read(0, BlockSize)
		if err != nil || got[0] != 1 {
			t.Errorf("landed %v: a block that was flushed is %d, %v", landed, got[0], err)
		}
	}
}

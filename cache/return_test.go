package cache

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	"ubcache/attrs"
)

// stallUntilLost makes the SSD hang, if it does not yet, until it counts as lost, with I/O under way.
func (v *lossy) stallUntilLost() {
	v.t.Helper()
	if v.stuck == nil {
		v.stall()
	}
	v.start(&Request{Op: ReqRead, Off: 200 * BlockSize, Len: BlockSize, Data: make([]byte, BlockSize)})
	v.start(&Request{Op: ReqWrite, Off: 201 * BlockSize, Len: BlockSize, Data: fill(1, 1)})
	v.pass(defaultLossLimit + 2*time.Second)
	if !v.c.lost() || !v.c.ssdHealth.settled.Load() {
		v.t.Fatalf("the SSD is %v", v.c.health())
	}
}

// TestStallThenErrors: operations that hang until the driver gives them up end the hope that the SSD is taken
// back in place; whoever looks for it must not wait for that.
func TestStallThenErrors(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 1))
	v.flush()
	v.stallUntilLost()
	if l, lost := v.c.Loss(); !lost || !l.Stalled || !l.Busy {
		t.Fatalf("after a stall: %+v", l)
	}
	v.gone, v.stuck = true, nil
	v.until("the errors", func() bool { l, _ := v.c.Loss(); return !l.Busy })
	v.gone = false
	v.pass(5 * time.Second)
	if l, lost := v.c.Loss(); !lost || l.Stalled {
		t.Errorf("after errors: lost %v, %+v", lost, l)
	}
}

// TestReturnInPlaceThenCrash: what is clean on the backing device while the SSD is away is still dirty on
// record, and must not come back when it has been overwritten after the return.
func TestReturnInPlaceThenCrash(t *testing.T) {
	for _, sums := range []bool{true, false} {
		v := newLossy(t, FormatOptions{NoChecksums: !sums}, Writethrough)
		v.write(0, fill(1, 4)) // pending: dirty on record
		stalled := false
		v.stuck = func(op *Op) bool {
			if op.Dev == SSD {
				return stalled
			}
			return op.Kind == OpFlush && !v.c.lost()
		}
		v.until("the commit", func() bool { n, _ := v.c.journal.pendingRecords(); return n == 0 })
		if n := len(v.b.mu.pending); n != 4 {
			t.Fatalf("%d blocks are pending", n)
		}
		stalled = true
		wrote := v.b.mu.pending[3].wrote
		v.stallUntilLost()
		v.until("the backing device's flush", func() bool { return v.b.flushed.Load() >= wrote })
		v.pass(2 * time.Second)
		v.stuck = nil
		v.until("the return", func() bool { return v.c.health() == HealthOK })
		if err := v.c.SetMode(v.b.id, None); err != nil {
			t.Fatal(err)
		}
		v.write(0, fill(2, 4))
		v.flush()
		clear(v.opts.Pending[:pageSize]) // the power goes
		v.restart()
		v.wantRead(0, fill(2, 4))
		v.drain()
		v.wantRead(0, fill(2, 4))
	}
}

// TestFlushAsTheSSDReturns: a FLUSH has found the SSD lost, and when it asks what is to be done then, the SSD is back. It
// waits for the commit.
func TestFlushAsTheSSDReturns(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpFlush }
	v.write(0, fill(1, 1))
	r, ended := &Request{Op: ReqFlush, Backing: v.b.id, b: v.b, losses: noLosses, copied: noLosses}, false
	v.finish = func(f *Request) { ended = ended || f == r }
	v.c.ssdHealth.settled.Store(true) // as after a loss
	f := &flush{r: r, pending: 1}
	f.w = waiter{lane: v.l, owner: f}
	f.withoutSSD(v.l)
	v.until("the commit", func() bool { return v.runnable() < 0 })
	if ended {
		t.Error("it does not wait")
	}
	v.stuck = nil
	if v.until("its end", func() bool { return ended }); r.Err != nil {
		t.Error(r.Err)
	}
	if n, _ := v.c.journal.pendingRecords(); n != 0 {
		t.Errorf("%d records are not durable", n)
	}
}

// newLossyOrdered has an ordered device.
func newLossyOrdered(t *testing.T) *lossy {
	t.Helper()
	v := newLossy(t, FormatOptions{}, Writeback)
	tun := DefaultTunables()
	tun.Ordered, tun.WritebackDelay, tun.SequentialCutoff = true, time.Hour, 0
	if err := v.c.SetTunables(v.b.id, tun); err != nil {
		t.Fatal(err)
	}
	v.until("the order", func() bool { return v.b.order.sound.Load() })
	return v
}

// TestLostSettledRecord: a start that does not find that a batch was settled writes it again, so that a change
// without the SSD must not be mistaken for one that the SSD does not miss.
func TestLostSettledRecord(t *testing.T) {
	for _, durable := range []bool{true, false} {
		v := newLossyOrdered(t)
		v.write(0, fill(1, 2))
		v.flush()
		v.stuck = func(op *Op) bool { return !durable && op.Dev == SSD && v.b.order.said() != 0 }
		if err := v.c.SetDrain(v.b.id, true); err != nil {
			t.Fatal(err)
		}
		v.until("the batch", func() bool { return v.b.order.said() != 0 && !v.b.order.unsettled() })
		if durable {
			v.until("its record", func() bool { return v.c.journal.isDurable(v.b.order.said()) })
		}
		v.gone = true
		v.c.ssdFailed(syscall.ENODEV)
		v.stuck = nil
		v.until("the loss", v.c.ssdHealth.settled.Load)
		v.write(64*BlockSize, fill(3, 1)) // the SSD knows nothing of it
		if n := len(v.markers); n != 0 == durable {
			t.Errorf("settled on record %v: %d markers", durable, n)
		}
	}
}

// TestLostBadBlockInOrder: an ordered device lacks a version that the SSD cannot return as it lacks any other. Without
// the SSD it stays the older image, and the block is in the cache until its turn.
func TestLostBadBlockInOrder(t *testing.T) {
	v := newLossyOrdered(t)
	v.write(0, fill(1, 1))
	v.flush()
	v.ssd[v.slotOf(0)] ^= 1
	if _, err := v.read(0, BlockSize); err == nil || v.b.bad.Load() != 1 || v.b.order.mu.ring.len() != 1 {
		t.Fatalf("read: %v; %d blocks are bad, %d queued", err, v.b.bad.Load(), v.b.order.mu.ring.len())
	}
	v.vanish()
	for _, blk := range []int64{0, 64} {
		err := v.do(&Request{Op: ReqWrite, Off: blk * BlockSize, Len: BlockSize, Data: fill(2, 1)})
		v.wantError(err, ErrSSDLost, "write")
		err = v.do(&Request{Op: ReqDiscard, Off: blk * BlockSize, Len: BlockSize})
		v.wantError(err, ErrSSDLost, "discard")
	}
	if len(v.markers) != 0 {
		t.Error("the SSD has missed something")
	}
	v.restart()
	v.write(0, fill(3, 1))
	v.drain()
	v.wantRead(0, fill(3, 1))
}

// TestLostOrder: whether a device is ordered is a matter of the SSD's records.
func TestLostOrder(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.vanish()
	tun := DefaultTunables()
	tun.Ordered = true
	v.wantError(v.c.SetTunables(v.b.id, tun), ErrSSDLost, "a change of the order")
	tun.Ordered, tun.DirtyMax = false, 30
	if err := v.c.SetTunables(v.b.id, tun); err != nil {
		t.Errorf("another setting: %v", err)
	}
}

// TestOlderSSDIsNotTakenBack: what answers in the place of a stalled SSD must be that one, not a copy from an
// earlier start.
func TestOlderSSDIsNotTakenBack(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 1))
	v.flush()
	old := append(memStorage(nil), v.ssd...)
	v.restart()
	v.stallUntilLost()
	copy(v.ssd, old)
	v.stuck = nil
	v.pass(20 * time.Second)
	if v.c.health() == HealthOK {
		t.Error("an older copy of the SSD was taken back")
	}
}

// TestReturnIsNoVerdict: dirty blocks that could not be read while the SSD was away are read again when it is back in
// place. They are not bad.
func TestReturnIsNoVerdict(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{Hold: time.Hour})
	v.write(0, fill(1, 4))
	v.write(8*BlockSize, fill(2, 1))
	v.flush()
	var answered []*Request
	v.finish = func(r *Request) { answered = append(answered, r) }
	v.stall()
	reads := []*Request{
		v.start(&Request{Op: ReqRead, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize)}),
		v.start(&Request{Op: ReqRead, Off: 8 * BlockSize, Len: BlockSize, Data: make([]byte, BlockSize)}),
		v.start(&Request{Op: ReqRead, Off: 8*BlockSize + 512, Len: 512, Data: make([]byte, 512)}),
		v.start(&Request{Op: ReqWrite, Off: 512, Len: 512, Data: fill(3, 1)[:512]}),
	}
	v.pass(defaultLossLimit + 2*time.Second)
	if !v.c.lost() || len(answered) != 0 {
		t.Fatalf("the SSD is %v, %d requests are answered", v.c.health(), len(answered))
	}
	v.stuck = nil
	v.until("the answers", func() bool { return len(answered) == len(reads) })
	for i, r := range reads {
		if r.Err != nil {
			t.Errorf("request %d: %v", i, r.Err)
		}
	}
	if n := v.b.bad.Load(); n != 0 || v.c.health() != HealthOK {
		t.Errorf("%d blocks count as bad, the SSD is %v", n, v.c.health())
	}
	want := fill(1, 4)
	copy(want[512:1024], fill(3, 1))
	v.wantRead(0, want)
	v.wantRead(8*BlockSize, fill(2, 1))
}

// TestChangeUnderWayIsNotClean: a block that the backing device was flushed for is being changed there when the SSD hangs and is
// lost. As long as it may be taken back in place, the copy on the SSD must not become clean in the pending ring: after
// a kill it would be older than what the backing device has.
func TestChangeUnderWayIsNotClean(t *testing.T) {
	for _, changing := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writethrough)
		v.write(0, fill(1, 1))
		v.stall()
		if changing {
			v.start(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1)})
			v.step() // the backing device has it
		}
		v.b.flushDone(v.b.mu.pending[0].wrote, 0)
		first, n := LSN(v.c.journal.durableLSN.Load()), v.c.journal.mu.next
		v.l.bg.doctor.cleanLost(v.b, v.now, true)
		dirty := false
		for l := first; l < n; l++ {
			r := decodeRecord(v.c.journal.mu.ring.at(l))
			dirty = dirty || r.kind == recMap && r.block == 0 && r.flags&recDirty != 0
		}
		if dirty != changing {
			t.Errorf("while it is changed %v: on record it is dirty: %v", changing, dirty)
		}
		v.stuck = nil
		v.settle()
	}
}

// TestReturnInPlaceThenChange: while the SSD is away the backing device is flushed for a block whose record is in the
// pending ring only. The ring says that it is clean then, and memory does not. When the SSD is back in place, the record is dirty as before:
// a change of the backing device does not wait for the removal of what is dirty, so after a crash a clean copy would be older.
func TestReturnInPlaceThenChange(t *testing.T) {
	for _, forgets := range []bool{false, true} { // what the backing device was flushed for counts as lost with the rest
		for _, cut := range []bool{false, true} {
			for _, mode := range []Mode{Writethrough, Writearound} {
				t.Run(fmt.Sprintf("lost=%v,power cut=%v,%v", forgets, cut, mode), func(t *testing.T) {
					v := newLossy(t, FormatOptions{}, Writethrough)
					v.setLoss(LossPolicy{Hold: time.Hour})
					v.write(0, fill(1, 1))
					v.stuck = func(op *Op) bool { return op.Dev == SSD || op.Kind == OpFlush }
					v.stallUntilLost()
					v.stall()
					v.until("the backing device's flush", func() bool { return v.b.flushed.Load() > earlierLife })
					v.pass(2 * time.Second)
					if r := decodeRecord(v.c.journal.mu.ring.at(1)); r.block != 0 || r.flags&recDirty != 0 {
						t.Fatalf("in the pending ring there is %v", &r)
					}
					if forgets {
						v.c.Lost(v.b.id)
					}
					v.stuck = nil
					v.until("the return", func() bool { return v.c.health() == HealthOK })
					v.mode(mode)
					v.stuck = func(op *Op) bool { return op.Kind == OpFlush && op.Dev != SSD }
					v.start(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1)})
					v.until("the change", func() bool { return bytes.Equal(v.back[:BlockSize], fill(2, 1)) })
					if cut {
						v.until("the commit", func() bool { return v.c.journal.isDurable(1) })
						clear(v.opts.Pending[:pageSize])
					}
					v.stuck = nil
					v.restart()
					got, err := v.read(0, BlockSize)
					if err != nil {
						t.Fatal(err)
					}
					want(t, "evict", v.hint(ReqRead, 0, 1, "hint=evict"), attrs.Handled, attrs.ReasonNone)
					v.until("writeback", func() bool { return v.slotOf(0) < 0 })
					v.wantRead(0, got)
				})
			}
		}
	}
}

// laneBeside is a second lane, whose operations end when the test says so.
type laneBeside struct {
	*harness
	l   *Lane
	ops []*Op
}

func (d *laneBeside) Submit(op *Op)   { d.ops = append(d.ops, op) }
func (d *laneBeside) Finish(*Request) {}

// atSubmit is the driver of a lane that does something before an operation is submitted.
type atSubmit struct {
	*harness
	do func(op *Op)
}

func (d atSubmit) Submit(op *Op) {
	d.do(op)
	d.harness.Submit(op)
}

// TestChangeFailsBesideCleaning: another lane's change of a block fails while the background, the SSD being lost, is
// about to make the block clean in the pending ring, as the backing device was flushed for it before. That has a part
// of the change by now, so after a kill the block is written back again.
func TestChangeFailsBesideCleaning(t *testing.T) {
	for _, hope := range []bool{true, false} {
		v := newLossy(t, FormatOptions{}, Writethrough)
		v.write(0, fill(1, 1))
		v.b.flushDone(v.b.mu.pending[0].wrote, 0)
		v.write(64*BlockSize, fill(1, 1)) // for which a flush is due
		v.mode(Writearound)
		d := &laneBeside{harness: v.harness}
		d.l = v.c.NewLane(d)
		d.l.Submit(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1), Backing: v.b.id})
		if len(d.ops) != 1 || d.ops[0].Kind != OpWrite || d.ops[0].Dev == SSD {
			t.Fatalf("%d operations are under way", len(d.ops))
		}
		failed := false
		v.l.d = atSubmit{v.harness, func(op *Op) {
			if op.Kind == OpFlush && op.Dev != SSD && !failed {
				failed = true
				copy(v.back[:512], fill(2, 1))
				d.l.Complete(d.ops[0], syscall.EREMOTEIO)
			}
		}}
		v.now += pendingAge
		v.l.bg.doctor.cleanLost(v.b, v.now, hope)
		if !failed {
			t.Fatal("the background has flushed nothing")
		}
		if n := v.b.dirty.Load(); n != 1 {
			t.Errorf("%d blocks are dirty after the change has failed", n)
		}
		v.restart()
		v.drain()
		if !bytes.Equal(v.back[:BlockSize], fill(1, 1)) {
			t.Errorf("hope %v: the backing device keeps a part of what has failed", hope)
		}
	}
}

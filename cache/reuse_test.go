package cache

import (
	"bytes"
	"errors"
	"testing"
)

// reused is a cache in which a bucket can be used again for the blocks that it had.
type reused struct {
	*harness
	bucket BucketID
	n      int64 // blocks of a bucket
	reads  int64 // blocks that were read to fill others
}

// newReused has a bucket full of dirty blocks, from block 0 on, and nothing else.
func newReused(t *testing.T) *reused {
	h := &reused{harness: smallOn(t, FormatOptions{BucketBytes: 64 << 10}, 16<<20)}
	h.n = h.c.geo.slotsPerBucket()
	h.b.flushDone(earlierLife, 0) // else what is read would be pending
	h.writeAll(1)
	h.bucket = h.at()
	return h
}

// at is the bucket of block 0.
func (h *reused) at() BucketID {
	return h.c.bucketOf(Slot((h.slotOf(0) - h.c.geo.DataOff) / BlockSize))
}

func (h *reused) writeAll(v byte) {
	h.t.Helper()
	h.write(0, fill(v, int(h.n)))
}

// overwrite writes the blocks twice: to another bucket first, and then, when eviction has freed the first one,
// to the slots that they had there. With must it has to be free sooner or later.
func (h *reused) overwrite(must bool) {
	h.t.Helper()
	h.writeAll(2)
	blocks := int64(len(h.back)/BlockSize) - regionBlocks
	next := func() bool { return len(h.c.alloc.mu.free) > 0 && h.c.alloc.mu.free[0] == h.bucket }
	for i := 0; i < 4*h.slots() && !next(); i++ {
		if _, err := h.read((regionBlocks+h.reads%blocks)*BlockSize, BlockSize); err != nil {
			h.t.Fatal(err)
		}
		h.reads++
		h.tick()
	}
	h.writeAll(3)
	if must && h.at() != h.bucket {
		h.t.Fatalf("the blocks are in bucket %d, want %d", h.at(), h.bucket)
	}
}

func (h *reused) slots() int { return int(h.c.geo.slots()) }

// wantUnpinned is for when nothing is under way.
func (h *reused) wantUnpinned() {
	h.t.Helper()
	for i := range h.c.buckets {
		if n := h.c.buckets[i].pins.Load(); n != 0 {
			h.t.Errorf("bucket %d has %d pins", i, n)
		}
	}
}

func (h *reused) drainTo(what string, ok func() bool) {
	h.t.Helper()
	if err := h.c.SetDrain(h.b.ID(), true); err != nil {
		h.t.Fatal(err)
	}
	h.until(what, ok)
	if err := h.c.SetDrain(h.b.ID(), false); err != nil {
		h.t.Fatal(err)
	}
}

// TestFlushBeforeTheSlotWasUsedAgain: a flush that covers what a slot held does not make clean what it holds of
// the same block later.
func TestFlushBeforeTheSlotWasUsedAgain(t *testing.T) {
	h := newReused(t)
	h.stuck = func(op *Op) bool { return op.Kind == OpFlush && op.Dev != SSD }
	h.drainTo("writeback", func() bool { return h.b.dirty.Load() == 0 })
	first := h.b.wrote.Load()
	h.overwrite(true)
	h.drainTo("writeback", func() bool { return h.b.dirty.Load() == 0 })
	h.b.flushDone(first, 0)
	h.tick()
	for blk := range h.n {
		if p, ok := h.c.Locate(h.b.ID(), blk*BlockSize); !ok || !p.Dirty || !p.Pending {
			t.Fatalf("not flushed since it was written back, block %d is %+v", blk, p)
		}
	}
	h.stuck = nil
	h.until("cleaning", func() bool { return len(h.b.mu.pending) == 0 })
	if p, ok := h.c.Locate(h.b.ID(), 0); !ok || p.Dirty {
		t.Errorf("flushed, the block is %+v", p)
	}
}

// TestWrittenBackBeforeTheSlotWasUsedAgain: what was being written back when its slot was freed and used again
// for the same block is not what the block has now.
func TestWrittenBackBeforeTheSlotWasUsedAgain(t *testing.T) {
	h := newReused(t)
	h.stuck = func(op *Op) bool { return op.Kind == OpWrite && op.Dev != SSD }
	h.drainTo("a write", func() bool {
		for _, op := range h.ops {
			if h.stuck(op) {
				return true
			}
		}
		return false
	})
	h.overwrite(true)
	h.stuck = nil
	h.until("the write", func() bool { return h.l.bg.wb.flying == 0 })
	if h.b.dirty.Load() != h.n {
		t.Errorf("%d blocks are dirty, want %d: they were not written back", h.b.dirty.Load(), h.n)
	}
	h.drain()
	if !bytes.Equal(h.back[:h.n*BlockSize], fill(3, int(h.n))) {
		t.Errorf("drained, the backing device has version %d", h.back[0])
	}
}

// TestLostAfterTheSlotWasUsedAgain: nor does the flush say, when the SSD is lost, that the backing device has what the
// pending ring knows of the slot.
func TestLostAfterTheSlotWasUsedAgain(t *testing.T) {
	h := newReused(t)
	h.stuck = func(op *Op) bool { return op.Kind == OpFlush && op.Dev != SSD }
	h.drainTo("writeback", func() bool { return h.b.dirty.Load() == 0 })
	first := h.b.wrote.Load()
	h.overwrite(true)
	h.b.flushDone(first, 0)
	h.l.bg.doctor.cleanLost(h.b, h.now, true)
	j, n := &h.c.journal, int64(0)
	for l := LSN(j.durableLSN.Load()); l < j.mu.next; l++ {
		r := decodeRecord(j.mu.ring.at(l))
		if r.kind != recMap || h.c.bucketOf(Slot(r.slot)) != h.bucket {
			continue
		}
		if n++; r.flags&recDirty == 0 {
			t.Fatalf("block %d is clean in the pending ring", r.block)
		}
	}
	if n != h.n {
		t.Errorf("%d records are pending, want %d", n, h.n)
	}
	h.stuck = nil
}

// TestBadReadAfterTheSlotWasUsedAgain: what a read has found bad in a slot, and judges only when its other parts
// are there, is not what the block has by then in the same slot.
func TestBadReadAfterTheSlotWasUsedAgain(t *testing.T) {
	h := newReused(t)
	h.ssd[h.slotOf(0)+7] ^= 0xff
	miss := h.n * BlockSize
	h.stuck = func(op *Op) bool { return op.Kind == OpRead && op.Dev != SSD && op.Off == miss }
	ended := 0
	h.finish = func(*Request) { ended++ }
	r := &Request{Op: ReqRead, Backing: h.b.ID(), Len: miss + BlockSize, Data: make([]byte, miss+BlockSize)}
	h.l.Submit(r)
	h.until("the reads of the SSD", func() bool { return h.runnable() < 0 })
	if ended != 0 {
		t.Fatal("the read has ended")
	}
	h.overwrite(false)
	h.stuck = nil
	ended = 0
	h.until("the read", func() bool { return ended == 1 })
	if r.Err != nil || r.Data[0] != 3 {
		t.Errorf("the read: %v, has version %d", r.Err, r.Data[0])
	}
	h.wantRead(0, fill(3, int(h.n)))
	h.wantUnpinned()
}

// TestSlotWaitsForItsVerdict: nor is a slot used again while it is not known whether it is the one that is bad or the
// whole SSD.
func TestSlotWaitsForItsVerdict(t *testing.T) {
	h := newReused(t)
	slot := h.slotOf(0)
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpRead && op.Off == slot {
			return errMedium
		}
		return nil
	}
	h.stuck = func(op *Op) bool { return op.probe }
	ended := false
	h.finish = func(*Request) { ended = true }
	r := &Request{Op: ReqRead, Backing: h.b.ID(), Len: BlockSize, Data: make([]byte, BlockSize)}
	h.l.Submit(r)
	h.until("the probe", func() bool { return len(h.ops) > 0 && h.runnable() < 0 })
	if n := h.c.buckets[h.bucket].pins.Load(); n != 1 || ended {
		t.Errorf("the bucket has %d pins", n)
	}
	h.stuck = nil
	h.until("the verdict", func() bool { return ended })
	if !errors.Is(r.Err, ErrDirtyBad) {
		t.Errorf("the read: %v", r.Err)
	}
	h.wantUnpinned()
}

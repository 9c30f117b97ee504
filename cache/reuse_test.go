package cache

import (
	"bytes"
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
// to the slots that they had there.
func (h *reused) overwrite() {
	h.t.Helper()
	h.writeAll(2)
	blocks := int64(len(h.back)/BlockSize) - regionBlocks
	next := func() bool { return len(h.c.alloc.mu.free) > 0 && h.c.alloc.mu.free[0] == h.bucket }
	for i := 0; !next(); i++ {
		if i > 20_000 {
			h.t.Fatal("the bucket is not used again")
		}
		if _, err := h.read((regionBlocks+h.reads%blocks)*BlockSize, BlockSize); err != nil {
			h.t.Fatal(err)
		}
		h.reads++
		h.tick()
	}
	h.writeAll(3)
	if h.at() != h.bucket {
		h.t.Fatalf("the blocks are in bucket %d, want %d", h.at(), h.bucket)
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
	h.overwrite()
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
	h.overwrite()
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
	h.overwrite()
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

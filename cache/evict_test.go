package cache

import (
	"testing"
	"time"
)

// TestSlowDiscardsEvictNoMore: buckets that are being discarded are as good as free: eviction empties no others for the
// time that takes.
func TestSlowDiscardsEvictNoMore(t *testing.T) {
	h := pressed(t)
	h.c.opts.Discard = true
	h.flush()
	h.flood(0, 1000)
	for len(h.ops) > 0 {
		h.step()
	}
	before := h.c.Stats().EvictedBuckets
	h.stuck = func(op *Op) bool { return op.Kind == OpDiscard && op.Dev == SSD } // for 2 s
	for b := Block(1000); h.c.alloc.freeCount.Load() >= int32(h.c.reserve); b += 4 {
		if _, err := h.read(int64(b)*BlockSize, 4*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	h.within(2*time.Second, func() bool { return false })
	n := h.c.Stats().EvictedBuckets - before
	h.stuck = nil
	h.within(time.Second, func() bool { return len(h.ops) == 0 })
	if n > int64(2*h.c.reserve) {
		t.Errorf("%d of %d buckets were emptied for a reserve of %d, and %d blocks of the cache are left",
			n, h.c.geo.Buckets, h.c.reserve, h.b.cached.Load())
	}
}

// TestDirtyBlockThatStaysDoesNotStopEviction: all buckets but one have a pinned block, that one has a dirty one that the
// SSD has lost, or that its device does not take, and no bucket is free to move anything to. The cache goes on all the same.
func TestDirtyBlockThatStaysDoesNotStopEviction(t *testing.T) {
	for _, bad := range []bool{true, false} {
		h := pressed(t)
		h.setTunables(func(t *Tunables) { t.PinQuota = 50 })
		h.b.dirtyMax.Store(h.c.geo.slots())
		h.b.dirtyTarget.Store(h.c.geo.slots())
		h.l.bg.evict.retry = 1 << 62 // a burst is faster than eviction
		end := Block(0)
		for free := int32(-1); free != h.c.alloc.freeCount.Load(); end += 16 {
			free = h.c.alloc.freeCount.Load()
			h.write(int64(end)*BlockSize, fill(1, 16))
		}
		h.l.bg.evict.retry = 0
		h.l.closeBucket(streamDirty)
		for at := Block(16); at < end-16; at += 4 {
			if h.hint(ReqRead, at, 1, "hint=pin"); h.resident(at, 1).Pinned != 1 {
				t.Fatalf("block %d cannot be pinned", at)
			}
		}
		if bad {
			h.ssd[h.slotOf(0)] ^= 1
			if _, err := h.read(0, BlockSize); err == nil {
				t.Fatal("the block is not bad")
			}
		} else {
			h.fail = func(op *Op) error {
				if op.Dev != SSD && op.Kind == OpWrite && op.Off < BlockSize {
					return errMedium
				}
				return nil
			}
		}
		_ = h.c.SetDrain(h.b.ID(), true)
		if !h.within(time.Minute, func() bool { return h.b.dirty.Load() <= 1 }) {
			t.Fatalf("%d blocks are dirty", h.b.dirty.Load())
		}
		if !h.within(time.Minute, func() bool { return h.c.alloc.freeCount.Load() > 1 }) {
			t.Errorf("bad %v: after a minute %d buckets are free: of %d %d are closed, %d blocks are dirty, %d pinned", bad,
				h.c.alloc.freeCount.Load(), h.c.geo.Buckets, h.c.alloc.mu.closed, h.b.dirty.Load(), h.b.pinned.Load())
		}
	}
}

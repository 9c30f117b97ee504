package cache

import (
	"testing"
	"time"
)

// TestFlushesPause: a pending block that is being changed waits for the SSD, and the disk is not flushed all that time for its sake.
func TestFlushesPause(t *testing.T) {
	h := small(t)
	h.mode(Writethrough)
	h.write(5*BlockSize, fill(1, 1))
	h.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpWrite }
	done := h.async(&Request{Op: ReqWrite, Off: 5 * BlockSize, Len: BlockSize, Data: fill(2, 1)})
	if err := h.c.SetDrain(h.b.ID(), true); err != nil {
		t.Fatal(err)
	}
	flushes := 0
	h.then = func(op *Op) {
		if op.Dev != SSD && op.Kind == OpFlush {
			flushes++
		}
	}
	for range 1000 {
		h.now += int64(100 * time.Microsecond)
		h.l.Tick()
		h.step()
	}
	if *done {
		t.Fatal("the write did not wait for the SSD")
	}
	if flushes < 2 || flushes > 12 {
		t.Errorf("%d flushes in 100 ms", flushes)
	}
	h.stuck = nil
	h.until("the drain", func() bool { return *done && h.b.Remaining() == 0 && len(h.ops) == 0 })
	h.wantRead(5*BlockSize, fill(2, 1))
}

package cache

import (
	"slices"
	"syscall"
	"testing"
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

package cache

import "testing"

// The background looks at its work often only while somebody waits for it or it is under way.
func TestTickIntervals(t *testing.T) {
	h := small(t)
	if d := h.l.Tick(); d != idleEvery {
		t.Errorf("with nothing to do it looks every %v", d)
	}
	h.write(0, fill(1, 8))
	if d := h.l.Tick(); d <= tickEvery || d > idleEvery {
		t.Errorf("with a commit to come it looks again after %v", d)
	}
	if err := h.c.SetDrain(h.b.ID(), true); err != nil {
		t.Fatal(err)
	}
	if d := h.l.Tick(); d != tickEvery {
		t.Errorf("during a drain it looks every %v", d)
	}
	// All is written, and the flush of the backing device is what is left.
	h.until("the last write", func() bool { return h.b.dirty.Load() == 0 })
	if h.b.Remaining() == 0 {
		t.Fatal("nothing waits for the flush")
	}
	if d := h.l.Tick(); d != tickEvery {
		t.Errorf("with a flush to come it looks every %v", d)
	}
	h.until("the drain", func() bool { return h.b.Remaining() == 0 && len(h.ops) == 0 })
}

package cache

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// during runs a call of the control path while the harness does the background work for it.
func (h *harness) during(call func(ctx context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- call(context.Background()) }()
	var err error
	ended := false
	h.until("the end of the call", func() bool {
		select {
		case err = <-done:
			ended = true
		case <-time.After(time.Millisecond): // the goroutine needs the CPU too
		}
		return ended
	})
	return err
}

func TestDetach(t *testing.T) {
	h := small(t)
	id := h.b.ID()
	h.write(0, fill(1, 8))
	finish := func(force bool) error {
		return h.during(func(ctx context.Context) error { return h.c.FinishDetach(ctx, id, force) })
	}
	if err := finish(false); !errors.Is(err, ErrNotFinished) {
		t.Fatalf("detach with dirty data: %v", err)
	}
	if err := h.c.BeginDetach(id); err != nil {
		t.Fatal(err)
	}
	if s := h.c.Status().Backings[0]; s.State != "detaching" {
		t.Errorf("state %q", s.State)
	}
	h.until("the drain", func() bool { return h.b.Remaining() == 0 && len(h.ops) == 0 })
	if !bytes.Equal(h.back[:8*BlockSize], fill(1, 8)) {
		t.Error("the backing device lacks the data")
	}
	if err := finish(false); err != nil {
		t.Fatal(err)
	}
	if n := len(h.c.Super().Backings); n != 0 {
		t.Errorf("%d backing devices are left", n)
	}
	// A start finds nothing of it, whether or not the summaries were written since.
	h.flushControl()
	h.c.Abandon()
	h.ops = nil
	h.open()
	if s := h.c.Status(); s.CachedBytes != 0 || len(s.Backings) != 0 {
		t.Errorf("after a start %d bytes are cached, %d devices attached", s.CachedBytes, len(s.Backings))
	}
}

// flushControl makes everything durable from the control path.
func (h *harness) flushControl() {
	h.t.Helper()
	if err := h.during(h.c.Sync); err != nil {
		h.t.Fatal(err)
	}
}

func TestDetachGoesOnAfterARestartAndCanBeCancelled(t *testing.T) {
	h := small(t)
	id := h.b.ID()
	h.write(0, fill(1, 8))
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			return errMedium // nothing is written back before the restart
		}
		return nil
	}
	if err := h.c.BeginDetach(id); err != nil {
		t.Fatal(err)
	}
	h.flushControl()
	h.c.Abandon()
	h.ops, h.fail = nil, nil
	h.open()
	b, err := h.c.Backing(id)
	if err != nil {
		t.Fatal(err)
	}
	h.b = b
	if b.Mode() != None || b.Remaining() == 0 {
		t.Fatalf("after a restart the mode is %v, %d blocks remain", b.Mode(), b.Remaining())
	}
	h.until("the drain", func() bool { return b.Remaining() == 0 && len(h.ops) == 0 })
	if err := h.c.CancelDetach(id); err != nil {
		t.Fatal(err)
	}
	if b.Mode() != Writeback {
		t.Errorf("after the cancellation the mode is %v", b.Mode())
	}
	h.write(0, fill(2, 1))
	if b.dirty.Load() != 1 {
		t.Error("a write after the cancellation is not cached")
	}
}

func TestForcedDetachDropsDirtyData(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 8))
	err := h.during(func(ctx context.Context) error { return h.c.FinishDetach(ctx, h.b.ID(), true) })
	if err != nil {
		t.Fatal(err)
	}
	if s := h.c.Status(); s.CachedBytes != 0 || s.DirtyBytes != 0 {
		t.Errorf("%d bytes are cached, %d dirty", s.CachedBytes, s.DirtyBytes)
	}
}

func TestAttachRefuses(t *testing.T) {
	h := small(t)
	ok := AttachOptions{
		Name: "other", LBS: 512, Identity: Identity{Size: 1 << 20}, Tunables: DefaultTunables(),
	}
	for name, change := range map[string]func(*AttachOptions){
		"the name of another": func(o *AttachOptions) { o.Name = "disk" },
		"an odd block size":   func(o *AttachOptions) { o.LBS = 1024 },
		"no size":             func(o *AttachOptions) { o.Identity.Size = 0 },
		"more than 256 TiB":   func(o *AttachOptions) { o.Identity.Size = 1 << 49 },
		"a target over max":   func(o *AttachOptions) { o.Tunables.DirtyTarget = 90 },
	} {
		o := ok
		change(&o)
		if _, err := h.c.Attach(o); err == nil {
			t.Errorf("%s was attached", name)
		}
	}
	if n := len(h.c.Super().Backings); n != 1 {
		t.Errorf("%d backing devices", n)
	}
	for i := range MaxBackings - 1 {
		o := ok
		o.Name = string(rune('A' + i))
		if _, err := h.c.Attach(o); err != nil {
			t.Fatalf("device %d: %v", i, err)
		}
	}
	o := ok
	if _, err := h.c.Attach(o); !errors.Is(err, ErrTooMany) {
		t.Errorf("one too many: %v", err)
	}
}

// TestCrashAfterDetach: the summaries still have blocks of a device that was detached when the daemon dies. The start is
// as any other, and what other devices have is there.
func TestCrashAfterDetach(t *testing.T) {
	for _, again := range []bool{false, true} {
		h := pressed(t)
		other := h.attachSecond(8 << 20)
		first := h.b
		h.flush()
		h.flood(0, 512)
		h.settle() // the summaries have them
		h.b = other
		h.write(0, fill(9, 8)) // dirty
		h.flush()
		h.b = first
		if err := h.c.BeginDetach(first.ID()); err != nil {
			t.Fatal(err)
		}
		h.until("the drain", func() bool { return first.Remaining() == 0 && len(h.ops) == 0 })
		if err := h.during(func(ctx context.Context) error { return h.c.FinishDetach(ctx, first.ID(), false) }); err != nil {
			t.Fatal(err)
		}
		if again { // the journal goes round, and takes the record of the detach with it
			h.c.Abandon()
			h.ops = nil
			h.open()
			other, _ = h.c.Backing(other.ID())
			other.SetAbilities(true, true)
			h.b = other
			for i := range int64(300) {
				h.write((100+i%50)*BlockSize, fill(byte(i), 1))
				h.flush()
				h.tick()
			}
			if h.c.Stats().Checkpoints == 0 {
				t.Fatal("the journal did not go round")
			}
		}
		h.c.Abandon()
		h.ops = nil
		h.open()
		if s := h.c.Repaired(); s != "" {
			t.Errorf("the start says: %s", s)
		}
		b, err := h.c.Backing(other.ID())
		if err != nil {
			t.Fatal(err)
		}
		b.SetAbilities(true, true)
		if h.b = b; b.dirty.Load() == 0 {
			t.Error("the dirty data of the other device is gone")
		}
		h.wantRead(0, fill(9, 8))
	}
}

// TestColdStartAfterDetach: the journal is damaged, and with it goes the record that a device was detached of which the
// summaries have blocks. The cache starts cold, and later starts know all the same what those are.
func TestColdStartAfterDetach(t *testing.T) {
	h := pressed(t)
	other := h.attachSecond(8 << 20)
	if err := h.c.SetMode(other.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	first := h.b
	h.flood(0, 512)
	h.settle() // the summaries have them
	if err := h.c.BeginDetach(first.ID()); err != nil {
		t.Fatal(err)
	}
	h.until("the drain", func() bool { return first.Remaining() == 0 && len(h.ops) == 0 })
	if err := h.during(func(ctx context.Context) error { return h.c.FinishDetach(ctx, first.ID(), false) }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h.b = other
		h.write(0, fill(8, 8))
		h.flush()
	}
	h.until("cleaning", func() bool { return other.Remaining() == 0 && len(h.ops) == 0 })
	reopen := func() {
		h.c.Abandon()
		h.ops = nil
		clear(h.opts.Pending)
		h.open()
		b, err := h.c.Backing(other.ID())
		if err != nil {
			t.Fatal(err)
		}
		b.SetAbilities(true, true)
		other, h.b = b, b
	}
	h.ssd[h.c.geo.journalPageOff(h.c.journal.mu.pageSeq-2)+100] ^= 1
	reopen()
	if s := h.c.Repaired(); !strings.Contains(s, "starts cold") {
		t.Fatalf("the start says: %q", s)
	}
	reopen()
	if s := h.c.Repaired(); s != "" {
		t.Fatalf("the next start says: %q", s)
	}
	if err := h.c.SetMode(other.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.write(0, fill(9, 8)) // dirty
	h.flush()
	reopen()
	h.wantRead(0, fill(9, 8))
}

// TestColdStartWithoutDevices: a journal that is damaged is begun anew, also if no device is attached.
func TestColdStartWithoutDevices(t *testing.T) {
	h := small(t)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.write(0, fill(1, 8))
	h.flush()
	h.drain()
	h.flush()
	if err := h.during(func(ctx context.Context) error { return h.c.FinishDetach(ctx, h.b.ID(), false) }); err != nil {
		t.Fatal(err)
	}
	ssd := slices.Clone(h.ssd)
	ssd[h.c.geo.journalPageOff(h.c.journal.mu.pageSeq-2)+100] ^= 1
	for _, want := range []string{"starts cold", ""} {
		c, err := Open(ssd, Options{})
		if err != nil {
			t.Fatal(err)
		}
		c.Abandon()
		if s := c.Repaired(); s != want && (want == "" || !strings.Contains(s, want)) {
			t.Fatalf("the start says: %q", s)
		}
	}
}

// TestReusedNumberOfASmallerDevice: the number of a device that was detached is given to a smaller one, and the daemon dies
// before the summaries are written.
func TestReusedNumberOfASmallerDevice(t *testing.T) {
	dev := make(memStorage, 16<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 8<<20)
	h.write(1500*BlockSize, fill(1, 8))
	h.drain()
	h.settle()
	h.c.Abandon()
	h.ops = nil
	h.open() // summaries have the blocks
	b, err := h.c.Backing(h.b.ID())
	if err != nil {
		t.Fatal(err)
	}
	b.SetAbilities(true, true)
	h.b = b
	id := b.ID()
	done := make(chan error, 1)
	go func() { done <- h.c.FinishDetach(context.Background(), id, false) }()
	for end := false; !end; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			end = true
		default:
			h.tick()
			for len(h.ops) > 0 {
				h.step()
			}
		}
	}
	h.c.sb.NextID = id // as after 63 others
	tun := DefaultTunables()
	nb, err := h.c.Attach(AttachOptions{
		Name: "small", Mode: Writeback, LBS: 512,
		Identity: Identity{Size: 1 << 20}, Tunables: tun, UUID: UUID{0xe},
	})
	if err != nil || nb.ID() != id {
		t.Fatal(err, nb.ID())
	}
	h.c.Abandon()
	c, err := Open(dev, Options{})
	if err != nil {
		t.Fatalf("the start is refused: %v", err)
	}
	if s := c.Repaired(); s != "" {
		t.Errorf("repaired: %s", s)
	}
	c.Abandon()
}

// TestForcedDetachLeavesNothing: what is under way on a device when a detach is forced ends first, and nothing is begun any
// more. If it does not end the detach fails, and can be tried again.
func TestForcedDetachLeavesNothing(t *testing.T) {
	write := func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite }
	begin := func(h *harness) { h.write(0, fill(1, 8)); h.write(100*BlockSize, fill(1, 8)); h.b.draining.Store(true) }
	for _, c := range []struct {
		what    string
		ordered bool
		begin   func(h *harness)
		is      func(op *Op) bool
	}{
		{"writeback", false, begin, write},
		{"writeback in order", true, func(h *harness) { begin(h); h.flush() }, write},
		{"a flush", false, func(h *harness) {
			if err := h.c.SetMode(h.b.id, Writethrough); err != nil {
				t.Fatal(err)
			}
			h.write(0, fill(1, 8))
		}, func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }},
		{"a scrub", false, func(h *harness) {
			h.write(0, fill(1, 8))
			h.drain()
			if _, err := h.l.StartScrub(h.b.id, ScrubOptions{}); err != nil {
				t.Fatal(err)
			}
		}, func(op *Op) bool { return op.Dev != SSD && op.Kind == OpRead }},
	} {
		t.Run(c.what, func(t *testing.T) {
			var h *harness
			if c.ordered {
				h = newOrderHarness(t, nil).harness
			} else {
				h = small(t)
			}
			hung := false
			h.stuck = func(op *Op) bool { return hung && op.Dev != SSD }
			c.begin(h)
			hung = true
			underWay := func() bool { return slices.ContainsFunc(h.ops, func(op *Op) bool { return op.Dev != SSD }) }
			h.until(c.what, func() bool { return slices.ContainsFunc(h.ops, c.is) })
			forced := func(d time.Duration) (ended bool, err error) {
				step, err := h.l.StartDetach(h.b.ID(), true)
				if err != nil {
					t.Fatal(err)
				}
				h.within(d, func() bool {
					ended, err = step()
					return ended
				})
				return ended, err
			}
			if ended, err := forced(2 * detachPatience); !ended || !errors.Is(err, ErrBusy) {
				t.Fatalf("the detach of a device that does not answer: %v", err)
			}
			hung = false
			if ended, err := forced(detachPatience); !ended || err != nil {
				t.Fatalf("it answers again: ended %v, %v", ended, err)
			}
			if underWay() {
				t.Error("something is under way after the detach")
			}
		})
	}
}

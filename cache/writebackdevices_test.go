package cache

import (
	"testing"
	"time"
)

// attachSecond adds a device whose data begins at off of the harness's memory.
func (h *harness) attachSecond(off int64) *Backing {
	h.t.Helper()
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.WritebackDelay = 0, time.Hour
	b, err := h.c.Attach(AttachOptions{
		Name: "other", Mode: Writeback, LBS: 512, DataOff: off, Identity: Identity{Size: int64(len(h.back))},
		Tunables: tun, UUID: UUID{0xc},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	b.SetAbilities(true, true)
	return b
}

// within lets that much time pass and reports whether ok became true in it.
func (h *harness) within(d time.Duration, ok func() bool) bool {
	for end := h.now + int64(d); h.now < end; {
		if ok() {
			return true
		}
		h.tick()
		h.l.Run()
		for h.runnable() >= 0 {
			h.step()
		}
	}
	return ok()
}

// TestWritebackKeepsItsRate: a device that may write back n blocks a second does.
func TestWritebackKeepsItsRate(t *testing.T) {
	h := pressedBy(t, 64<<20)
	for i := range int64(8) {
		h.write(i*regionBytes, fill(1, regionBlocks))
	}
	h.b.delay.Store(int64(time.Second))
	h.now += int64(10 * time.Second) // older than 4 times the delay
	wrote := func() int64 { return h.c.Stats().Backings[h.b.ID()].WritebackBlocks }
	before := wrote()
	for range 100 { // 5 s, busy
		h.now += int64(50 * time.Millisecond)
		h.b.lastIO.Store(h.now)
		h.l.Tick()
		for len(h.ops) > 0 {
			h.step()
		}
	}
	if n := wrote() - before; n < 3*256 || n > 8*256 {
		t.Errorf("%d blocks in 5 s, want 256 a second", n)
	}
}

// TestSlowWritebackDoesNotStopOthers: of two devices one has much that is to be written back slowly, the other one is drained.
func TestSlowWritebackDoesNotStopOthers(t *testing.T) {
	h := pressedBy(t, 128<<20)
	other := h.attachSecond(8 << 20)
	for i := range int64(8) {
		h.write(i*regionBytes, fill(1, regionBlocks))
	}
	slow := h.b
	h.b = other
	h.write(0, fill(2, 8))
	slow.delay.Store(int64(time.Second))
	h.now += int64(10 * time.Second)
	if err := h.c.SetDrain(other.ID(), true); err != nil {
		t.Fatal(err)
	}
	begun := h.now
	for other.Remaining() > 0 {
		h.now += int64(50 * time.Millisecond)
		slow.lastIO.Store(h.now) // busy
		h.l.Tick()
		for len(h.ops) > 0 {
			h.step()
		}
		if took := time.Duration(h.now - begun); took > 5*time.Second {
			t.Fatalf("8 blocks are not drained in %s: the other device has %d dirty blocks left", took, slow.dirty.Load())
		}
	}
}

// TestHangingDeviceDoesNotStopOthers: a backing device that does not answer keeps its own writeback waiting only.
func TestHangingDeviceDoesNotStopOthers(t *testing.T) {
	h := pressedBy(t, 64<<20)
	other := h.attachSecond(8 << 20)
	for i := range int64(8) {
		h.write(i*regionBytes, fill(1, 4))
	}
	hangs := h.b
	h.stuck = func(op *Op) bool { return op.Dev == hangs.ID() && op.Kind == OpWrite }
	_ = h.c.SetDrain(hangs.ID(), true)
	h.within(time.Second, func() bool { return false })
	h.b = other
	h.write(0, fill(2, 8))
	_ = h.c.SetDrain(other.ID(), true)
	if !h.within(30*time.Second, func() bool { return other.Remaining() == 0 }) {
		t.Errorf("the drain of a device that is well does not end: %d blocks are left, %d operations of the other one hang",
			other.Remaining(), len(h.ops))
	}
	h.stuck = nil
	h.within(30*time.Second, func() bool { return hangs.Remaining() == 0 })
}

// TestTogetherAboveTheLimit: devices none of which is above its target, but together at the limit, write back.
func TestTogetherAboveTheLimit(t *testing.T) {
	h := pressedBy(t, 64<<20)
	other := h.attachSecond(8 << 20)
	for _, b := range []*Backing{h.b, other} { // as it would be with 8 devices at the defaults of 10 and 70
		b.dirtyTarget.Store(300)
		b.dirtyMax.Store(500)
	}
	first := h.b
	for i := range int64(25) {
		h.b = first
		h.write(i*10*BlockSize, fill(1, 10))
		h.b = other
		h.write(i*10*BlockSize, fill(2, 10))
	}
	if !h.l.full(other) {
		t.Fatalf("not full: %d", h.c.dirty.Load())
	}
	direct := 0
	for range 200 { // 10 s of a write each 50 ms
		h.now += int64(50 * time.Millisecond)
		r := &Request{Op: ReqWrite, Off: 1000 * BlockSize, Len: BlockSize, Data: fill(3, 1)}
		if err := h.do(r); err != nil {
			t.Fatal(err)
		}
		if r.reached&reachedBacking != 0 {
			direct++
		}
		first.lastIO.Store(h.now)
		h.l.Tick()
		for len(h.ops) > 0 {
			h.step()
		}
	}
	if direct > 100 {
		t.Errorf("%d of 200 writes went past the cache, and nothing is written back to make room: %d and %d are dirty",
			direct, first.dirty.Load(), other.dirty.Load())
	}
}

// TestScansAreFew: a device with little to write back does not make writeback look through all that another one has, and
// cannot write, again and again.
func TestScansAreFew(t *testing.T) {
	h := pressedBy(t, 64<<20)
	other := h.attachSecond(8 << 20)
	for i := range int64(8) {
		h.write(i*regionBytes, fill(1, regionBlocks))
	}
	h.c.SetPresence(h.b.ID(), Holding)
	big := h.b
	h.b = other
	for _, b := range []*Backing{big, other} {
		b.dirtyTarget.Store(10)
		b.dirtyMax.Store(4000)
	}
	h.l.bg.wb.scans = 0
	for i := range 200 {
		h.now += int64(10 * time.Millisecond)
		other.lastIO.Store(h.now)
		h.write(int64(i%100)*BlockSize, page(byte(i)))
		h.l.Tick()
		for len(h.ops) > 0 {
			h.step()
		}
	}
	if n := h.l.bg.wb.scans; n == 0 || n > 100 {
		t.Errorf("%d scans in 2 s, with %d dirty blocks", n, h.c.dirty.Load())
	}
}

package cache

import (
	"syscall"
	"testing"
	"time"
)

// TestParkedChangesLeaveRoom: changes of a device that goes away are parked as long as it is waited for, with the journal room
// that they were promised. Other devices have some left.
func TestParkedChangesLeaveRoom(t *testing.T) {
	ssd := make(memStorage, 32<<20)
	if _, err := Format(ssd, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, ssd: ssd, back: make(memStorage, 32<<20), now: 1, count: map[OpKind]int{}}
	h.opts = Options{Suspect: func(BackingID) {}}
	h.open()
	tun := DefaultTunables()
	tun.BackingHold, tun.SequentialCutoff = HoldForever, 0
	first, err := h.c.Attach(AttachOptions{
		Name: "first", Mode: Writethrough, LBS: 512, Identity: Identity{Size: 16 << 20}, Tunables: tun, UUID: UUID{1},
	})
	if err != nil {
		t.Fatal(err)
	}
	other, err := h.c.Attach(AttachOptions{
		Name: "other", Mode: Writeback, LBS: 512, DataOff: 16 << 20, Identity: Identity{Size: 32 << 20}, Tunables: tun, UUID: UUID{2},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.fail = func(op *Op) error {
		if op.Dev == first.ID() {
			return syscall.ENODEV
		}
		return nil
	}
	for i := range 12 {
		h.l.Submit(&Request{Op: ReqWrite, Off: int64(i) << 20, Len: 1 << 20, Data: make([]byte, 1<<20), Backing: first.ID()})
	}
	for i := range 12 {
		h.l.Submit(&Request{Op: ReqWrite, Off: int64(i) << 20, Len: 1 << 12, Data: make([]byte, 1<<12), Backing: first.ID()})
	}
	h.within(time.Second, func() bool { return false })
	h.c.SetPresence(first.ID(), Holding) // a probe says so
	h.b = other
	ended := false
	h.finish = func(*Request) { ended = true }
	h.l.Submit(&Request{Op: ReqWrite, Len: 16 * BlockSize, Data: fill(1, 16), Backing: other.ID()})
	if !h.within(10*time.Minute, func() bool { return ended }) {
		t.Errorf("a write to another device has not ended for 10 minutes: %d of %d records are reserved, %d operations parked",
			h.c.journal.mu.reserved, h.c.journal.mu.ring.cap, h.l.io[first.ID()].Held.Load())
	}
	h.fail = nil
	h.c.SetPresence(first.ID(), Present)
	h.until("the changes", func() bool { return len(h.ops) == 0 && h.l.parked.head == nil })
	if n := first.share.held; n != 0 {
		t.Errorf("%d records are still promised to the device", n)
	}
	h.c.Abandon()
}

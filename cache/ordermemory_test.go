package cache

import (
	"errors"
	"strings"
	"syscall"
	"testing"
)

// TestNoMemoryForAnOrder: the queue of an ordered device gets no memory, when it is set, attached, and at a start.
func TestNoMemoryForAnOrder(t *testing.T) {
	h := small(t)
	noMemory.Store(true)
	defer noMemory.Store(false)
	tun := DefaultTunables()
	tun.Ordered = true
	if err := h.c.SetTunables(h.b.ID(), tun); !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("an order without memory: %v", err)
	}
	if h.c.Super().Backings[0].Tunables.Ordered {
		t.Error("it is on record")
	}
	noMemory.Store(false)
	if err := h.c.SetTunables(h.b.ID(), tun); err != nil {
		t.Error(err)
	}
	h.write(0, fill(1, 8))
	h.drain()

	noMemory.Store(true)
	_, err := h.c.Attach(AttachOptions{Name: "more", LBS: 512, Identity: Identity{Size: 1 << 20}, Tunables: tun})
	if !errors.Is(err, syscall.ENOMEM) || len(h.c.Super().Backings) != 1 {
		t.Errorf("an ordered device without memory: %v", err)
	}
	h.c.Abandon()
	if _, err := Open(h.ssd, Options{}); !errors.Is(err, syscall.ENOMEM) || !strings.Contains(err.Error(), "order") {
		t.Errorf("a start without memory: %v", err)
	}
	noMemory.Store(false)
	h.start()
	h.wantRead(0, fill(1, 8))
}

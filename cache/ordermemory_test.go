package cache

import (
	"errors"
	"syscall"
	"testing"
)

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
}

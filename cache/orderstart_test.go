package cache

import (
	"bytes"
	"testing"
)

// lose takes from the ordered device what it was not flushed for, and gives it back.
func (h *orderHarness) lose(before []byte) {
	h.c.SetPresence(h.b.ID(), Holding)
	copy(h.back, before)
	h.c.Lost(h.b.ID())
	h.c.SetPresence(h.b.ID(), Present)
}

// TestOrderedStartWritesAgainFirst: what an ordered device has lost, and a FLUSH has promised since the SSD has it, is
// there before anything that came later, also if the power goes in between.
func TestOrderedStartWritesAgainFirst(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.settle()
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(2)) // not flushed
	h.lose(before)
	h.flush() // the SSD has it
	h.reopen()
	h.log = nil
	if n := h.status().UnsettledBytes; n != BlockSize {
		t.Errorf("%d bytes are said to be lacking, a block is", n)
	}
	h.write(9*BlockSize, page(3))
	h.drain()
	h.wantLog("write 5+1 2", "flush", "write 9+1 3", "flush")
	h.wantSound()
}

// TestOrderedOverLost: the same if it is overwritten before it is there again.
func TestOrderedOverLost(t *testing.T) {
	h := newOrderHarness(t, nil)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.settle()
	before := bytes.Clone(h.back)
	h.write(5*BlockSize, page(2)) // not flushed
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.lose(before)
	h.flush() // the SSD has it
	h.write(9*BlockSize, page(3))
	h.flush()
	h.log = nil
	h.write(5*BlockSize, page(4))
	h.wantRead(5*BlockSize, page(4))
	h.drain()
	h.wantLog("write 5+1 2", "flush", "write 9+1 3", "flush", "write 5+1 4", "flush")
	h.wantSound()
}

package cache

import (
	"testing"
	"time"

	"ubcache/policy"
)

// TestBlockFoundTwice gives writeback a block in its old slot and in its new one, as a scan beside
// writers may find it: a batch then has no more keys than a region has blocks.
func TestBlockFoundTwice(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, regionBlocks))
	wb := &h.l.bg.wb
	var keys []dirtyKey
	for i := range Block(regionBlocks) {
		k := makeKey(h.b.id, i)
		e, _ := h.c.index.find(k)
		keys = append(keys, dirtyKey{k, e.slot}, dirtyKey{k, e.slot + 1})
	}
	wb.keys[h.b.id] = sortKeys(keys)
	if len(wb.keys[h.b.id]) != regionBlocks {
		t.Fatalf("%d keys for %d blocks", len(wb.keys[h.b.id]), regionBlocks)
	}
	h.drain()
	if string(h.back[:regionBytes]) != string(fill(1, regionBlocks)) {
		t.Error("the backing device lacks data")
	}
}

// Beside requests of class rt writeback goes in small pieces, at either device, and in large ones
// without them.
func TestWritebackInPieces(t *testing.T) {
	for _, prio := range []string{"prio=rt/0", "prio=be/0"} {
		g := newRig(t, 2)
		for first := Block(0); first < 256; first += 16 {
			g.send(0, request(t, ReqWrite, first, 16, "hint=default"))
		}
		g.untilAll("the data", 16)
		g.b.dirtyTarget.Store(1)
		largest := [2]int64{}
		wrote := func() int64 { return g.c.Stats().Backings[g.b.ID()].WritebackBlocks }
		for n := 0; wrote() < 128; n++ {
			if n > 1_000_000 {
				t.Fatalf("beside %s: only %d blocks are written back", prio, wrote())
			}
			if n%20 == 0 {
				g.send(0, request(t, ReqRead, 3000, 1, prio+",hint=bypass"))
			}
			g.tick()
			for i := range g.queue {
				sum := int64(0)
				for _, o := range g.queue[i] {
					if o.l == g.lanes[1].l && o.op.Kind == [2]OpKind{OpRead, OpWrite}[i] {
						sum += o.op.Len
					}
				}
				largest[i] = max(largest[i], sum)
			}
		}
		rt := prio == "prio=rt/0"
		for i, n := range largest {
			if small := n <= batchBesideRT*BlockSize; n == 0 || small != rt {
				t.Errorf("beside %s writeback has %d bytes under way at device %d", prio, n, i)
			}
		}
		g.untilAll("the rest", len(g.begun))
	}
}

// TestWritebackBesideAnOrder: writeback begins nothing on an ordered device whose queue is being written back, though
// it was to when it last looked, and goes on because another device has ended something.
func TestWritebackBesideAnOrder(t *testing.T) {
	h := newOrderHarness(t, nil)
	ordered := h.b
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.WritebackDelay, tun.Ordered = 0, time.Hour, true
	b, err := h.c.Attach(AttachOptions{
		Name: "other", Mode: Writethrough, LBS: 512, Identity: Identity{Size: int64(len(h.back))},
		Tunables: tun, UUID: UUID{0xc},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("the orders", func() bool { return !ordered.order.on.Load() && b.order.sound.Load() })
	first := h.b
	h.b = b
	b.mu.pending = make([]pendingSlot, maxPendingSlots) // no more fit, so that the block stays dirty
	h.write(5*BlockSize, page(1))
	b.mu.pending = nil
	if err := h.c.SetMode(b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite }
	h.write(9*BlockSize, page(3))
	h.b = first
	for i := range int64(maxBatches + 1) {
		h.write((i+1)*regionBytes, page(4))
	}
	h.flush()
	if b.loose() != 1 || !b.order.based.Load() {
		t.Fatalf("%d blocks are dirty and not in the queue", b.loose())
	}
	for _, id := range []BackingID{first.ID(), b.ID()} {
		if err := h.c.SetDrain(id, true); err != nil {
			t.Fatal(err)
		}
	}
	wb, busy := &h.l.bg.wb, false
	h.stuck = func(op *Op) bool { return op.Dev == b.ID() && op.Kind == OpWrite }
	wb.filling = true // it looks at the devices, and begins nothing yet
	h.until("the order", func() bool { return h.l.bg.orders[b.ID()].busy })
	wb.filling = false
	wb.rates[b.ID()], wb.tokens[b.ID()] = policy.Full, regionBlocks
	wb.fill(h.now)
	for i := range 200 {
		if i%20 == 0 {
			h.tick()
		}
		h.step()
		busy = busy || h.l.bg.orders[b.ID()].busy
		if h.l.bg.orders[b.ID()].busy && wb.flyingOf[b.ID()] > 0 {
			t.Fatal("both are at work")
		}
	}
	if !busy {
		t.Error("the queue was not written back")
	}
	h.stuck, h.b = nil, b
	h.drain()
	if h.back[9*BlockSize] != 3 || h.back[5*BlockSize] != 1 {
		t.Errorf("the device has %d and %d", h.back[9*BlockSize], h.back[5*BlockSize])
	}
}

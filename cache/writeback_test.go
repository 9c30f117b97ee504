package cache

import "testing"

// TestBlockFoundTwice gives writeback a block in its old slot and in its new one, as a scan beside
// writers may find it: a batch then has no more keys than a region has blocks.
func TestBlockFoundTwice(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, regionBlocks))
	wb := &h.l.bg.wb
	for i := range Block(regionBlocks) {
		k := makeKey(h.b.id, i)
		e, _ := h.c.index.find(k)
		wb.keys = append(wb.keys, dirtyKey{k, e.slot}, dirtyKey{k, e.slot + 1})
	}
	wb.keys = sortKeys(wb.keys)
	if len(wb.keys) != regionBlocks {
		t.Fatalf("%d keys for %d blocks", len(wb.keys), regionBlocks)
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

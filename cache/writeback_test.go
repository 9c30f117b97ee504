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

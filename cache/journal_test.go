package cache

import "testing"

// TestFullPendingRing fills the pending ring when the journal is nearly half full: the commit does
// not fit in front of the pages that are kept for checkpoints, and only a checkpoint makes room.
func TestFullPendingRing(t *testing.T) {
	for used := range 40 {
		dev := make(memStorage, 32<<20)
		if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, dev, 16<<20)
		for range used {
			h.write(0, fill(1, 1))
			h.flush()
		}
		_, limit := h.c.journal.pendingRecords()
		for i := range limit/16 + 8 {
			h.write(int64(i%200)*16*BlockSize, fill(byte(i), 16))
		}
		h.flush()
		h.c.Abandon()
	}
}

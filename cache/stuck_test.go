package cache

import (
	"slices"
	"testing"
	"time"
)

// TestStuckWriteback: an operation of writeback on the SSD does not end, and the SSD is lost for it. Writes go on on the
// backing device, also those beside what was to be written back.
func TestStuckWriteback(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{})
	v.write(0, fill(1, 1))
	v.write(40*BlockSize, fill(1, 1))
	v.flush()
	v.settle()
	v.stall()
	_ = v.c.SetDrain(v.b.id, true)
	v.until("writeback", func() bool {
		return slices.ContainsFunc(v.ops, func(op *Op) bool { return op.Dev == SSD && op.Kind == OpRead })
	})
	v.until("the loss", v.c.ssdHealth.settled.Load)
	answered := map[*Request]bool{}
	v.finish = func(f *Request) { answered[f] = true }
	over := v.start(writeOf(0, fill(2, 1)))
	beside := v.start(writeOf(20*BlockSize, fill(2, 1)))
	elsewhere := v.start(writeOf(200*BlockSize, fill(2, 1)))
	v.pass(time.Hour)
	if !answered[elsewhere] || !answered[over] || !answered[beside] {
		t.Errorf("the SSD is %v for an hour; a write over what was to be written back has ended: %v, one beside it: %v",
			v.c.health(), answered[over], answered[beside])
	}
	v.stuck = nil
	v.pass(time.Second)
}

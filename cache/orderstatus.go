package cache

import "time"

// orderStatus fills in what concerns the order of the device.
func (c *Cache) orderStatus(b *Backing, t *BackingStatus) {
	o := &b.order
	t.Ordered = "off"
	switch {
	case !o.want.Load():
	case o.on.Load() && o.sound.Load():
		t.Ordered = "on"
	default:
		t.Ordered = "starting"
	}
	if !o.live() {
		return
	}
	var now int64
	if l := c.bgLane.Load(); l != nil {
		now = l.bg.seen.Load()
	}
	lacking := b.lacking()
	o.mu.Lock()
	defer o.mu.Unlock()
	t.UnsettledBytes, t.UnsettledMs = o.mu.ring.len()*BlockSize, o.ageLocked(now)/int64(time.Millisecond)
	if lacking > 0 { // of unknown age
		t.UnsettledBytes += lacking * BlockSize
		t.UnsettledMs = max(t.UnsettledMs, o.age.Load()/2/int64(time.Millisecond))
	}
	t.OrderedLimit, t.OrderedLost, t.OrderedBroken = o.mu.allowed*BlockSize, o.lost.Load(), o.broken.Load()
}

// bytes is the memory of the queue.
func (o *order) bytes() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int64(len(o.mu.ring.mem))
}

// verifyOrders compares the queues with what their slots hold. Nothing else may use the cache.
func (c *Cache) verifyOrders(r *Report, shadows int64) {
	counted := int64(0)
	for _, b := range c.backings.Load() {
		if b == nil {
			continue
		}
		o := &b.order
		counted += o.shadows.Load()
		old, current := int64(0), int64(0)
		for i := o.mu.ring.head; i != o.mu.ring.tail; i++ {
			v := o.mu.ring.at(i)
			k, st := c.index.at(v.slot)
			switch {
			case k != v.k || st&stQueued == 0:
				r.wrong("slot %d should have block %d of %s, which is to be written back in its turn",
					v.slot, v.k.block(), b.name)
			case st.shadow():
				old++
			case st&stBad == 0:
				current++
			}
		}
		if o.shadows.Load() != old || o.queued.Load() != current {
			r.wrong("%s counts %d blocks and %d shadows to be written back in order, has %d and %d",
				b.name, o.queued.Load(), o.shadows.Load(), current, old)
		}
		r.UnsettledBlocks += old + current
	}
	if counted != shadows {
		r.wrong("%d shadows are counted, %d slots have one", counted, shadows)
	}
}

package cache

import "fmt"

// A start finds the queues of ordered devices again: all map records with the flag, in their order,
// that no settled record covers, whatever the summaries say. Their slots were not reused. The batches
// end where a commit ended, since a flush may have been acknowledged there and nowhere else; so they
// may be smaller than they were, which is right, too.

// requeue takes a version up, if its device is ordered.
func (r *recovery) requeue(l LSN, rec *record) {
	b := r.c.backing(rec.backing)
	if rec.flags&recOrdered == 0 || b == nil || !b.order.on.Load() || l < b.order.from {
		return
	}
	b.order.mu.ring.put(queued{
		k: makeKey(rec.backing, rec.block), mask: rec.mask, slot: Slot(rec.slot), sum: rec.sum, lsn: l,
	})
}

// settled takes off what the backing device has.
func (r *recovery) settled(id BackingID, before LSN) {
	if b := r.c.backing(id); b != nil {
		q := &b.order.mu.ring
		for q.len() != 0 && q.lsn(q.head) < before {
			q.head++
		}
	}
}

// endBatches makes a batch of each device end here.
func (r *recovery) endBatches() {
	for _, b := range r.c.backings.Load() {
		if b != nil && b.order.mu.ring.len() != 0 {
			b.order.mu.ring.endAt(b.order.mu.ring.tail - 1)
		}
	}
}

// askEvery is after how many versions it is asked whether to go on.
const askEvery = 64 << 10

// rebuildOrders says of each slot with a queued version what it is: the block's present place or a
// shadow.
func (r *recovery) rebuildOrders() error {
	c := r.c
	if r.cold || r.renew || r.lenient && !r.ordersFit() {
		r.forgetOrders()
		return r.ended()
	}
	r.forgetDoubted()
	for _, b := range c.backings.Load() {
		if b == nil {
			continue
		}
		q := &b.order.mu.ring
		for i := q.head; i != q.tail; i++ {
			if i%askEvery == 0 && r.ended() != nil {
				return r.ended()
			}
			v := q.at(i)
			held, st := c.index.at(v.slot)
			switch {
			case held == 0:
				c.countShadow(b, v.slot, 1)
				c.index.fill(v.slot, v.k, v.sum, state(v.mask)|stShadow)
			case held == v.k && st&stDirty != 0 && st&stQueued == 0:
				c.setState(b, entry{slot: v.slot, st: st}, st|stQueued)
			default:
				return fmt.Errorf("%w: slot %d should have block %d of %s, which is to be written back",
					ErrCorrupt, v.slot, v.k.block(), b.name)
			}
		}
	}
	return nil
}

// ordersFit reports whether what the queues say can be. Where the journal is damaged it need not.
func (r *recovery) ordersFit() bool {
	seen := map[Slot]bool{}
	for _, b := range r.c.backings.Load() {
		if b == nil {
			continue
		}
		q := &b.order.mu.ring
		for i := q.head; i != q.tail; i++ {
			if i%askEvery == 0 && r.ended() != nil {
				return false
			}
			v := q.at(i)
			held, st := r.c.index.at(v.slot)
			if seen[v.slot] || held != 0 && (held != v.k || st&stDirty == 0) {
				return false
			}
			seen[v.slot] = true
		}
	}
	return true
}

// recallImages notes which devices were images by the last page, unless that is from before their order.
func (r *recovery) recallImages() {
	images := uint64(0)
	for _, b := range r.c.backings.Load() {
		if b == nil {
			continue
		}
		p := &r.last
		noted := b.order.on.Load() && p.images&b.bit() != 0 && p.first+LSN(p.count) > b.order.from
		if b.order.noted.Store(noted); noted {
			images |= b.bit()
		}
	}
	r.c.journal.images.Store(images)
}

// forgetOrders is for a journal that cannot be trusted: what is dirty is there in its newest version.
func (r *recovery) forgetOrders() {
	for i := range r.c.sb.Backings {
		r.forgetOrder(&r.c.sb.Backings[i])
	}
}

func (r *recovery) forgetOrder(rec *BackingRecord) {
	if b := r.c.backing(rec.ID); b != nil {
		r.last.images &^= b.bit()
		b.order.mu.ring.head = b.order.mu.ring.tail
		rec.OrderedFrom = r.next
	}
}

// forgetDoubted forgets the queues with a version of which nobody knows whether the SSD still has it: without checksums
// whatever is in its slot would be written to the device. Its newest version is bad (verifyPending).
func (r *recovery) forgetDoubted() {
	if r.c.checksums {
		return
	}
	recs := r.doubted // by an earlier start
	if r.doubtful {
		recs = append(recs, r.ringRecs...)
	}
	for i := range recs {
		m := &recs[i]
		b := r.c.backing(m.backing)
		if m.kind != recMap || m.flags&recOrdered == 0 || b == nil || b.order.mu.ring.len() == 0 {
			continue
		}
		if rec, err := r.c.record(b.id); err == nil {
			r.forgetOrder(rec)
			b.order.broken.Add(1)
		}
	}
}

// dropQueue takes all out of the queue of a device whose contents are dropped next.
func (c *Cache) dropQueue(b *Backing) {
	q := &b.order.mu.ring
	for ; q.head != q.tail; q.head++ {
		c.unqueue(b, q.at(q.head))
	}
}

package cache

import (
	"fmt"
	"slices"
)

// verifyPending looks at the data that records of the pending ring speak of, after the SSD was lost and
// came back: it may have lost what it had not been flushed for. A block that is not what it was is
// dropped if the backing device has it; else it is bad: an error until it is overwritten, not something older. So is one that the
// backing device has, but was not flushed for, if there was dirty data before: that was durable, and is gone from
// the index, so a power cut of the backing device would show something older than that. Without
// checksums nothing can be known of any of them. One that was bad before and is right is bad no more: it has been
// written again.
func (r *recovery) verifyPending(recs []record) error {
	drop, turned := r.lacking(recs)
	if err := r.appendRecords(drop); err != nil {
		return err
	}
	return r.saveBuckets(turned)
}

// lacking makes bad what the SSD lacks of these records, and good what was bad and is there. It returns what is to be
// dropped, and the buckets of what has turned bad or good.
func (r *recovery) lacking(recs []record) (drop []record, turned []BucketID) {
	c := r.c
	page := alignedBytes(BlockSize)
	for i := range recs {
		m := &recs[i]
		k, e, ok := r.current(m)
		if !ok || !r.fresh[e.slot] && e.st&stBad == 0 {
			continue
		}
		right := false
		if c.checksums {
			_, err := c.ssd.ReadAt(page, c.geo.slotOff(e.slot))
			if err != nil { // errors may pass
				_, err = c.ssd.ReadAt(page, c.geo.slotOff(e.slot))
			}
			right = err == nil && dataSum(page, uint64(k)) == e.sum
		}
		switch bad := e.st&stBad != 0; {
		case right != bad:
			continue
		case right:
			c.setState(c.backing(m.backing), e, e.st&^stBad)
		case e.st&stDirty == 0 || m.flags&recPending != 0 && !r.before[k]:
			drop = append(drop, record{kind: recUnmap, backing: m.backing, block: m.block, sum: 1})
			continue
		default:
			c.setState(c.backing(m.backing), e, e.st|stBad)
			r.lost++
		}
		if id := c.bucketOf(e.slot); !slices.Contains(turned, id) {
			turned = append(turned, id)
		}
	}
	return drop, turned
}

// dropMissed drops what the SSD has of backing devices that have changed without it (Options.Drop).
func (r *recovery) dropMissed() error {
	if r.readOnly || mutated(mutMissedKept) {
		return nil
	}
	var drop []BackingID
	for _, b := range r.c.backings.Load() {
		if b != nil && slices.Contains(r.c.opts.Drop, b.uuid) {
			drop = append(drop, b.id)
		}
	}
	if len(drop) == 0 {
		return nil
	}
	return r.dropContents(drop)
}

// appendRecords applies new records and makes them durable.
func (r *recovery) appendRecords(recs []record) error {
	from := r.next
	for i := range recs {
		r.apply(r.next, &recs[i])
		r.next++
	}
	if len(recs) == 0 {
		return nil
	}
	return r.c.commitBlocking(&r.c.journal, from, recs)
}

// saveBuckets writes the summaries of buckets, first all of one copy, then all of the other: only they
// say which blocks are bad. The journal has all that they know.
func (r *recovery) saveBuckets(ids []BucketID) error {
	c := r.c
	per := c.geo.summaryPages() * pageSize
	p := alignedBytes(int(per))
	for copyNo := range 2 {
		for _, id := range ids {
			c.snapshot(id, r.next, p)
			off := c.geo.summaryOff(copyNo, id)
			for at := int64(0); at < per; at += pageSize {
				sealSummary(p[at:at+pageSize], off+at)
			}
			if _, err := c.ssd.WriteAt(p, off); err != nil {
				return fmt.Errorf("write summaries: %w", err)
			}
		}
		if len(ids) == 0 {
			return nil
		}
		if err := c.ssd.Sync(); err != nil {
			return fmt.Errorf("flush summaries: %w", err)
		}
	}
	return nil
}

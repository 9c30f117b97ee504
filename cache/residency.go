package cache

import "fmt"

// Residency is what the cache holds of a range, in blocks.
type Residency struct {
	Blocks int64 // of the range
	Cached int64 // all or some of their sectors
	Dirty  int64 // what the backing device does not have, or may lose
	Pinned int64
	// Leaving blocks are dirty and leave the cache as soon as they are written back.
	Leaving int64
	bad     int64
}

// Residency looks up a range of bytes of a backing device. It takes time in proportion to the
// length, and others may change what it looks at.
func (c *Cache) Residency(id BackingID, off, length int64) (Residency, error) {
	b, err := c.Backing(id)
	if err != nil {
		return Residency{}, err
	}
	if off < 0 || length <= 0 || off > b.size-length {
		return Residency{}, fmt.Errorf("range %d+%d is empty or outside the device", off, length)
	}
	return c.survey(b, span{off, length}), nil
}

// survey looks at the blocks of a span, region by region.
func (c *Cache) survey(b *Backing, s span) (n Residency) {
	for s.len > 0 {
		var part span
		part, s = s.cut()
		first, last := part.first(), part.last()
		n.Blocks += int64(last-first) + 1
		st := c.index.stripeOf(b.id, first)
		st.mu.Lock()
		for blk := first; blk <= last; blk++ {
			if e, ok := c.index.find(makeKey(b.id, blk)); ok {
				n.add(e.st)
			}
		}
		st.mu.Unlock()
	}
	return n
}

func (n *Residency) add(st state) {
	n.Cached++
	for _, c := range [...]struct {
		bit state
		n   *int64
	}{{stDirty, &n.Dirty}, {stPinned, &n.Pinned}, {stLeave, &n.Leaving}, {stBad, &n.bad}} {
		if st&c.bit != 0 {
			*c.n++
		}
	}
}

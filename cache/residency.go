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

// Place is where the SSD has a block, and what that is worth.
type Place struct {
	Off     int64 // bytes on the SSD
	Sectors uint8 // which of its sectors are valid, the first in bit 0
	Dirty   bool  // the backing device does not have it, or may lose it
	Pending bool  // dirty, but the backing device has it and was not flushed since
	Bad     bool  // dirty, and the SSD could not return it
}

// Locate looks up the block at a byte of a backing device; false if it is not cached.
func (c *Cache) Locate(id BackingID, off int64) (Place, bool) {
	blk := Block(off / BlockSize)
	st := c.index.stripeOf(id, blk)
	st.mu.Lock()
	e, ok := c.index.find(makeKey(id, blk))
	st.mu.Unlock()
	if !ok {
		return Place{}, false
	}
	return Place{
		Off: c.geo.slotOff(e.slot), Sectors: uint8(e.st & stMask), Dirty: e.st&stDirty != 0,
		Pending: e.st&stPending != 0, Bad: e.st&stBad != 0,
	}, true
}

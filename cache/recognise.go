package cache

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

// Recognise compares up to limit clean blocks of an absent backing device with what dev has of them,
// chosen at random: the device that returns must have them as they are here. It returns how many it has
// compared; where there is nothing clean, that is none. The error is ErrIdentity if one differs: then dev
// is another device, or was written to without the cache.
//
// A clean block was flushed for on the backing device, so that no loss of a volatile cache explains a
// difference. It may be overwritten on the SSD meanwhile; on an absent device it stays as it was.
func (c *Cache) Recognise(id BackingID, dev Storage, limit int) (compared int, err error) {
	b, err := c.Backing(id)
	if err != nil {
		return 0, err
	}
	here, there := alignedBytes(BlockSize), alignedBytes(BlockSize)
	start := rand.IntN(len(c.buckets))
	for i := range c.buckets {
		if compared >= limit {
			break
		}
		for _, s := range c.samples(b, BucketID((start+i)%len(c.buckets)), limit-compared) {
			if err == nil {
				err = c.compare(b, s, dev, here, there)
				compared++
			}
			c.unpin(s.e.slot)
		}
		if err != nil {
			return compared, err
		}
	}
	return compared, nil
}

// sample is a clean block and where it is.
type sample struct {
	k key
	e entry
}

// samples picks some of the bucket's whole, clean blocks of b and pins their slots.
func (c *Cache) samples(b *Backing, id BucketID, limit int) (list []sample) {
	const perBucket = 8 // so that not all are neighbours
	limit = min(limit, perBucket)
	c.locked(id, func(_ *stripe, k key, e entry) {
		whole := e.st.full() && b.blockBytes(k.block()) == BlockSize
		if k.backing() != b.id || !whole || e.st&(stDirty|stBad|stLeave) != 0 || len(list) == limit {
			return
		}
		c.buckets[id].pins.Add(1)
		list = append(list, sample{k, e})
	})
	return list
}

func (c *Cache) compare(b *Backing, s sample, dev Storage, here, there []byte) error {
	off := b.dataOff + int64(s.k.block())*BlockSize
	if _, err := dev.ReadAt(there, off); err != nil {
		return fmt.Errorf("read block %d: %w", s.k.block(), err)
	}
	same := false
	if c.checksums {
		same = dataSum(there, uint64(s.k)) == s.e.sum
	} else {
		if _, err := c.ssd.ReadAt(here, c.geo.slotOff(s.e.slot)); err != nil {
			return nil // the SSD's fault says nothing about the device
		}
		same = bytes.Equal(here, there)
	}
	if !same {
		return fmt.Errorf("%w: block %d of %s is not what the cache has of it", ErrIdentity,
			s.k.block(), b.name)
	}
	return nil
}

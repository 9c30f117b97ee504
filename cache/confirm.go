package cache

import "bytes"

// confirm asks whether what was loaded may be used, and returns the backing devices of which nothing
// may.
func (r *recovery) confirm() (drop []BackingID, err error) {
	c := r.c
	for i := range c.sb.Backings {
		if !c.sb.Clean {
			c.sb.Backings[i].Print = Fingerprint{} // it was perhaps used since
		}
	}
	if c.opts.Confirm == nil {
		return nil, nil
	}
	return c.opts.Confirm(c)
}

// DirtyBlocks is how many blocks of a backing device are dirty on record, for Options.Confirm.
func (c *Cache) DirtyBlocks(id BackingID) int64 {
	if b := c.backing(id); b != nil {
		return b.dirty.Load()
	}
	return 0
}

// Sample is a clean block in the cache: what the backing device must have, too.
type Sample struct {
	Off     int64 // in bytes, on the backing device
	Data    []byte
	Sectors uint8 // which sectors of Data are valid
}

// sampleHeads is where Samples looks first, as blocks: at the start of the device, where the superblock of
// a filesystem is, and at 1 MiB, where the first partition has it.
var sampleHeads = [...]Block{0, 256}

// Samples returns clean blocks of a backing device that the SSD returns right: those among the first 4n
// blocks, up to 256, of the device and of its second MiB, and up to n others, from buckets spread over the
// cache. A block whose data fails its checksum is left out; without checksums there are none. It is for
// Options.Confirm, for Salvage, and for while the backing device is not in use.
func (c *Cache) Samples(id BackingID, n int) (list []Sample) {
	b := c.backing(id)
	if b == nil || !c.checksums || b.cached.Load() == b.dirty.Load() {
		return nil
	}
	add := func(k key, e entry) {
		p := alignedBytes(BlockSize)
		if _, err := c.ssd.ReadAt(p, c.geo.slotOff(e.slot)); err != nil ||
			dataSum(p, uint64(k)) != e.sum {
			return
		}
		list = append(list, Sample{
			Off: b.dataOff + int64(k.block())*BlockSize, Data: p[:b.blockBytes(k.block())],
			Sectors: uint8(e.st & stMask),
		})
	}
	for _, head := range sampleHeads {
		for blk := head; blk < head+Block(min(4*n, regionBlocks)); blk++ {
			k := makeKey(id, blk)
			s := c.index.stripeOf(id, blk)
			s.mu.Lock()
			e, ok := c.index.find(k)
			s.mu.Unlock()
			if ok && e.st&stDirty == 0 {
				add(k, e)
			}
		}
	}
	var clean []BucketID
	for i := range c.buckets {
		if k := &c.buckets[i]; k.live.Load() > k.dirty.Load() {
			clean = append(clean, BucketID(i))
		}
	}
	for i := range min(n, len(clean)) {
		first := Slot(int64(clean[i*len(clean)/min(n, len(clean))]) * c.geo.slotsPerBucket())
		for s := first; s < first+Slot(c.geo.slotsPerBucket()); s++ {
			k, st := c.index.at(s)
			if k.backing() != id || st&stDirty != 0 || k.block() < 2*regionBlocks {
				continue
			}
			p := c.index.stripeOf(id, k.block())
			p.mu.Lock()
			e, ok := c.index.find(k)
			p.mu.Unlock()
			if ok && e.st&stDirty == 0 {
				add(k, e)
				break
			}
		}
	}
	return list
}

// Differs reports whether p, read at the sample's place, has other data.
func (s *Sample) Differs(p []byte) bool {
	for i := 0; i+SectorSize <= len(s.Data); i += SectorSize {
		if s.Sectors&(1<<(i/SectorSize)) != 0 &&
			!bytes.Equal(p[i:i+SectorSize], s.Data[i:i+SectorSize]) {
			return true
		}
	}
	return false
}

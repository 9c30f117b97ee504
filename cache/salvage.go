package cache

import (
	"context"
	"slices"
)

// Certainty says how far a dirty block that was found can be believed.
type Certainty uint8

// From the best to the worst.
const (
	// Proved: it is the newest version, and its checksum says that the data is right.
	Proved Certainty = iota
	// Unverified: it is the newest version; the cache has no data checksums.
	Unverified
	// Uncertain: the data is right (or there are no checksums), but a newer version may be lost, or the
	// backing device may have one. Without checksums also: the SSD has failed, and may not have the data.
	Uncertain
	// Unreadable: the SSD does not return it, or not as it was.
	Unreadable
)

var certaintyNames = [...]string{"proved", "unverified", "uncertain", "unreadable"}

func (c Certainty) String() string { return certaintyNames[c] }

// SalvageBlock is a dirty block.
type SalvageBlock struct {
	Off       int64 // in bytes, on the cached device
	Data      []byte
	Sectors   uint8 // which sectors of Data are valid
	Certainty Certainty
}

// Salvage is a stopped cache of which as much has been loaded as damage leaves. It changes nothing.
type Salvage struct {
	c   *Cache
	rec *recovery
}

// OpenSalvage loads a cache for its dirty data, also where Open refuses and where the superblocks are
// lost; then backing devices have made-up names, and no sizes. pending is the pending ring of a killed
// daemon, if there is one. progress, if it is not nil, is told the share that is loaded, from 0 to 1.
func OpenSalvage(ctx context.Context, dev Storage, pending []byte, progress func(share float64)) (*Salvage, error) {
	if mutated(mutSalvageRing) {
		pending = nil
	}
	c, rec, err := inspect(ctx, dev, pending, true, progress)
	if err != nil {
		return nil, err
	}
	return &Salvage{c, rec}, nil
}

// Close gives the memory back.
func (s *Salvage) Close() { s.c.release() }

// Nameless reports whether the superblocks are lost.
func (s *Salvage) Nameless() bool { return s.c.sb.Seq == 0 }

// Checksums reports whether the cache has data checksums.
func (s *Salvage) Checksums() bool { return s.c.checksums }

// Damage is what is wrong with the metadata.
func (s *Salvage) Damage() *Report {
	r := &Report{Super: s.c.sb, PendingRecords: s.rec.pending}
	s.rec.report(r)
	return r
}

// UnknownBlocks is how many dirty blocks may be lost without a trace, at most; -1 if that is not known
// because changes are lost.
func (s *Salvage) UnknownBlocks() int64 {
	if s.rec.dmg.journalDamaged() {
		return -1
	}
	return int64(s.rec.unknownSlots())
}

// Backings are the backing devices; without superblocks those of which something is cached.
func (s *Salvage) Backings() (list []BackingRecord) {
	for _, r := range s.c.sb.Backings {
		if b := s.c.backing(r.ID); !s.Nameless() || b.cached.Load() > 0 {
			list = append(list, r)
		}
	}
	return list
}

// DirtyBlocks is how many dirty blocks of a backing device are known.
func (s *Salvage) DirtyBlocks(id BackingID) int64 { return s.c.DirtyBlocks(id) }

// Samples are clean blocks, as Cache.Samples has them, of which none may be older than the dirty data:
// a device that has other data was changed without the cache.
func (s *Salvage) Samples(id BackingID, n int) []Sample {
	if s.rec.dmg.journalDamaged() {
		return nil // what is clean may be old
	}
	return s.c.Samples(id, n)
}

// certainFrom is the first record after the last that are lost: only what was recorded from there on is
// certainly the newest.
func (r *recovery) certainFrom() LSN {
	d := &r.dmg
	from := max(d.after, d.end)
	if n := len(d.gaps); n > 0 && d.gaps[n-1].to == r.c.journal.mu.pageSeq {
		from = max(from, r.next+1) // the lost pages are the last ones
	}
	return from
}

// salvageKeys is how many blocks Walk sorts at a time.
const salvageKeys = 1 << 20

// Walk calls f with every dirty block of a backing device, in order of their addresses. Data is good
// until f returns.
func (s *Salvage) Walk(ctx context.Context, id BackingID, f func(*SalvageBlock) error) error {
	c := s.c
	b := c.backing(id)
	if b == nil {
		return ErrNoBacking
	}
	from := s.rec.certainFrom()
	page := alignedBytes(BlockSize)
	dirty := func(k key, st state) bool { return k.backing() == id && st&stDirty != 0 }
	if mutated(mutSalvageCertain) {
		from = 0
	}
	var keys []dirtyKey
	for at := makeKey(id, 0); ; {
		var err error
		if keys, err = c.nextKeys(ctx, keys, at, salvageKeys, dirty); err != nil || len(keys) == 0 {
			return err
		}
		for _, d := range keys {
			if err := ctx.Err(); err != nil {
				return err
			}
			_, st := c.index.at(d.slot)
			blk := SalvageBlock{
				Off: int64(d.k.block()) * BlockSize, Sectors: uint8(st & stMask),
				Data: page[:b.blockBytes(d.k.block())],
			}
			_, err := c.ssd.ReadAt(page, c.geo.slotOff(d.slot))
			switch {
			case err != nil, c.checksums && dataSum(page, uint64(d.k)) != c.index.sumAt(d.slot):
				blk.Certainty = Unreadable
			case !c.checksums && st&stBad != 0, max(s.rec.setBy[d.slot], s.rec.lsnOf(d.slot)) < from:
				blk.Certainty = Uncertain
			case !c.checksums:
				blk.Certainty = Unverified
			}
			if err := f(&blk); err != nil {
				return err
			}
		}
		at = keys[len(keys)-1].k + 1
	}
}

// Range is a run of bytes of a cached device.
type Range struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// Ranges are runs of bytes in order.
type Ranges []Range

// AddBlock adds the valid sectors of a block, which must not lie before what is there.
func (r *Ranges) AddBlock(off int64, sectors uint8) {
	for i := range int64(sectorsPerBlock) {
		if sectors&(1<<i) != 0 {
			r.add(off+i*SectorSize, SectorSize)
		}
	}
}

func (r *Ranges) add(off, n int64) {
	if l := len(*r); l > 0 && (*r)[l-1].Off+(*r)[l-1].Len == off {
		(*r)[l-1].Len += n
		return
	}
	*r = append(*r, Range{off, n})
}

// Bytes is the length of all.
func (r Ranges) Bytes() (n int64) {
	for _, x := range r {
		n += x.Len
	}
	return n
}

// maxBadBlocks bounds what BadRanges returns.
const maxBadBlocks = 1 << 20

// BadRanges are the sectors of dirty data that the SSD has failed to return: reads of them fail until
// they are written or discarded. They are known once a read, the writeback or a scrub has met them.
// Others may change what it looks at. more reports that there are more than are returned.
func (c *Cache) BadRanges(id BackingID) (list Ranges, more bool, err error) {
	b, err := c.Backing(id)
	if err != nil {
		return nil, false, err
	}
	if b.bad.Load() == 0 {
		return nil, false, nil
	}
	keys, err := c.nextKeys(context.Background(), nil, makeKey(id, 0), maxBadBlocks, func(k key, st state) bool {
		return k.backing() == id && st&stBad != 0
	})
	if err != nil {
		return nil, false, err
	}
	for _, d := range keys {
		s := c.index.stripeOf(id, d.k.block())
		s.mu.Lock()
		e, ok := c.index.find(d.k)
		s.mu.Unlock()
		if ok && e.st&stBad != 0 {
			list.AddBlock(int64(d.k.block())*BlockSize, uint8(e.st&stMask))
		}
	}
	list = slices.Clip(list)
	return list, len(keys) == maxBadBlocks, nil
}

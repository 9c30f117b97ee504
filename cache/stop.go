package cache

import (
	"encoding/binary"
	"slices"
)

// stopRecord is what the superblock of a cache that was stopped in order says besides, so that the next
// start need not load all of the index before it serves I/O. It holds until anything is written to the
// journal: who does that takes it off the superblock first.
type stopRecord struct {
	// seq is the journal's next page. No record before it is needed: the summaries have them all.
	seq uint64
	// free are some of the buckets that hold nothing.
	free []BucketID
	// first are buckets to load before the first request: all those with dirty or pinned blocks, and those
	// with what Samples looks at first. Where these are many there are others among them.
	first []BucketID
}

// Places in the superblock page, and how much fits.
const (
	supStop      = 200 // kind (4): 0 none, 1 a list of buckets, 2 a bitmap
	supStopFree  = 204 // count (2)
	supStopFirst = 206 // count (2), of a list
	supStopSeq   = 208
	supFree      = 216
	supFirst     = supFree + maxStopFree*4
	maxStopFree  = 256
	maxStopFirst = (pageSize - supFirst) / 4

	stopList, stopBitmap = 1, 2
)

// stopGroup is how many buckets one bit of the bitmap stands for.
func (g *Geometry) stopGroup() int {
	const bits = (pageSize - supFirst) * 8
	return (int(g.Buckets) + bits - 1) / bits
}

func (s *stopRecord) encode(p []byte, g *Geometry) {
	le := binary.LittleEndian
	le.PutUint64(p[supStopSeq:], s.seq)
	le.PutUint16(p[supStopFree:], uint16(len(s.free)))
	for i, b := range s.free {
		le.PutUint32(p[supFree+4*i:], uint32(b))
	}
	if len(s.first) <= maxStopFirst {
		le.PutUint32(p[supStop:], stopList)
		le.PutUint16(p[supStopFirst:], uint16(len(s.first)))
		for i, b := range s.first {
			le.PutUint32(p[supFirst+4*i:], uint32(b))
		}
		return
	}
	le.PutUint32(p[supStop:], stopBitmap)
	for _, b := range s.first {
		bit := int(b) / g.stopGroup()
		p[supFirst+bit/8] |= 1 << (bit % 8)
	}
}

// decodeStop reads the record; nil if there is none, or if it makes no sense.
func decodeStop(p []byte, g *Geometry) *stopRecord {
	le := binary.LittleEndian
	kind, n := le.Uint32(p[supStop:]), int(le.Uint16(p[supStopFree:]))
	if kind != stopList && kind != stopBitmap || n > maxStopFree {
		return nil
	}
	s := &stopRecord{seq: le.Uint64(p[supStopSeq:])}
	for i := range n {
		s.free = append(s.free, BucketID(le.Uint32(p[supFree+4*i:])))
	}
	if kind == stopList {
		n = int(le.Uint16(p[supStopFirst:]))
		if n > maxStopFirst {
			return nil
		}
		for i := range n {
			s.first = append(s.first, BucketID(le.Uint32(p[supFirst+4*i:])))
		}
	} else {
		group := g.stopGroup()
		for b := range int(g.Buckets) {
			if bit := b / group; p[supFirst+bit/8]>>(bit%8)&1 != 0 {
				s.first = append(s.first, BucketID(b))
			}
		}
	}
	slices.Sort(s.free)
	slices.Sort(s.first)
	for _, list := range [][]BucketID{s.free, s.first} {
		if len(list) > 0 && uint32(list[len(list)-1]) >= g.Buckets {
			return nil
		}
	}
	s.free, s.first = slices.Compact(s.free), slices.Compact(s.first)
	return s
}

// stopHeads bounds the buckets that are loaded first for the sake of each place that Samples looks at.
const stopHeads = 8

// noteStop makes the record, where one is possible. Nothing else may use the cache, and all summaries
// are written.
func (c *Cache) noteStop() {
	c.sb.stop = nil
	for i := range c.sb.Backings {
		if c.sb.Backings[i].Tunables.Ordered {
			return // its queue is in the journal
		}
	}
	s := &stopRecord{seq: c.journal.mu.pageSeq}
	s.free = slices.Clone(c.alloc.mu.free[:min(len(c.alloc.mu.free), maxStopFree)])
	first := make([]bool, len(c.buckets))
	for i := range c.buckets {
		k := &c.buckets[i]
		first[i] = k.dirty.Load() > 0 || k.pinned.Load() > 0
	}
	for _, b := range c.backings.Load() {
		if b == nil || b.cached.Load() == 0 || c.opts.Load.NoSamples {
			continue
		}
		for _, head := range sampleHeads {
			n := 0
			for blk := head; blk < head+regionBlocks && n < stopHeads; blk++ {
				e, ok := c.index.find(makeKey(b.id, blk))
				if id := c.bucketOf(e.slot); ok && !first[id] {
					first[id] = true
					n++
				}
			}
		}
	}
	for i, yes := range first {
		if yes {
			s.first = append(s.first, BucketID(i))
		}
	}
	c.sb.stop = s
}

// endStop takes the record off the superblock, before a start writes to the journal.
func (c *Cache) endStop() error {
	if c.sb.stop == nil {
		return nil
	}
	c.sb.stop = nil
	return writeSuper(c.ssd, c.sb)
}

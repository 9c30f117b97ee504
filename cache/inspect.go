package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// inspect loads as much of a cache as there is, without changing it. With rebuild it does without a
// superblock, too, if pages of the journal or of summaries tell where things are. progress, if it is not
// nil, is told the share that is done.
func inspect(ctx context.Context, dev Storage, pending []byte, rebuild bool, progress func(float64)) (
	*Cache, *recovery, error,
) {
	sb, err := ReadSuper(dev)
	if err != nil && rebuild && (errors.Is(err, ErrNotCache) || errors.Is(err, ErrCorrupt)) {
		if found, ferr := findSuper(ctx, dev); ferr == nil {
			sb, err = found, nil
		}
		if e := ctx.Err(); e != nil {
			return nil, nil, e
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if pending == nil {
		pending = alignedBytes(PendingBytes)
	}
	c, err := newCache(dev, sb, Options{Pending: pending, Progress: progress})
	if err != nil {
		return nil, nil, err
	}
	rec := &recovery{c: c, ctx: ctx, readOnly: true, lenient: true}
	if err := rec.run(); err != nil {
		c.release()
		return nil, nil, err
	}
	c.sortBuckets(rec.lastLSN)
	return c, rec, nil
}

// findSuper makes up a superblock from the other metadata: the geometry is the one, of all that are
// possible on the device, by which the most pages are where they say that they are. Of the backing
// devices only the numbers are known, of the UUID one half.
func findSuper(ctx context.Context, dev Storage) (*Superblock, error) {
	best := &Superblock{}
	most := 0
	for size := int64(minBucketBytes); size <= maxBucketBytes; size *= 2 {
		g, err := planGeometry(dev.Size(), size)
		if err != nil {
			continue
		}
		if v := g.poll(ctx, dev); v.pages > most {
			most = v.pages
			*best = Superblock{Checksums: v.sums, Geometry: g, damaged: []string{"both copies are lost"}}
			binary.LittleEndian.PutUint64(best.UUID[:], v.id)
		}
	}
	if most == 0 {
		return nil, ErrNotCache
	}
	for id := range BackingID(MaxBackings) {
		best.Backings = append(best.Backings, BackingRecord{
			ID: id + 1, Name: fmt.Sprintf("backing-%d", id+1), LBS: SectorSize,
			Size: (maxBlock + 1) * BlockSize, Tunables: DefaultTunables(), Mode: Writeback,
		})
	}
	return best, nil
}

// ballot is how many pages are right by a geometry, of the cache that has the most.
type ballot struct {
	id    uint64
	pages int
	sums  bool // there are data checksums
}

// pollPages bounds what is looked at of each kind.
const pollPages = 8 << 10

// poll looks at the journal and at the summaries, until ctx ends.
func (g *Geometry) poll(ctx context.Context, dev Storage) (b ballot) {
	le := binary.LittleEndian
	votes, sums := map[uint64]int{}, map[uint64]bool{}
	each := func(off, pages int64, sumAt int, f func(p []byte, at int64) (id uint64, ok bool)) {
		const chunk = 1024
		buf := alignedBytes(chunk * pageSize)
		for at := int64(0); at < pages && ctx.Err() == nil; at += chunk {
			n := min(chunk, pages-at)
			readPages(dev, buf[:n*pageSize], off+at*pageSize)
			for i := range n {
				p := buf[i*pageSize:][:pageSize]
				id, ok := f(p, at+i)
				want := le.Uint64(p[sumAt:])
				le.PutUint64(p[sumAt:], 0)
				if ok && metaSum(p, off+(at+i)*pageSize) == want {
					votes[id]++
				}
			}
		}
	}
	each(journalOff, min(int64(g.JournalPages), pollPages), jpSum, func(p []byte, at int64) (uint64, bool) {
		id := le.Uint64(p[jpCache:])
		for i := range min(int(le.Uint16(p[jpCount:])), pageRecords) {
			rec := decodeRecord(p[journalHeader+i*recordBytes:])
			sums[id] = sums[id] || rec.kind == recMap && rec.sum != 0
		}
		return id, le.Uint32(p) == journalMagic &&
			int64(le.Uint64(p[jpSeq:])%uint64(g.JournalPages)) == at
	})
	// Where the second copies are tells buckets of different sizes apart, that of the first does not.
	for _, off := range g.SummaryOff {
		each(off, min(int64(g.Buckets)*g.summaryPages(), pollPages), smSum, func(p []byte, at int64) (uint64, bool) {
			id := le.Uint64(p[smCache:])
			ok := le.Uint32(p) == summaryMagic && int64(le.Uint32(p[smBucket:])) == at/g.summaryPages() &&
				int64(le.Uint32(p[smPage:])) == at%g.summaryPages()
			for q := p[summaryHeader:]; ok && len(q) >= summaryEntry; q = q[summaryEntry:] {
				sums[id] = sums[id] || le.Uint32(q[8:]) != 0
			}
			return id, ok
		})
	}
	for id, n := range votes {
		if n > b.pages {
			b = ballot{id: id, pages: n, sums: sums[id]}
		}
	}
	return b
}

// nextKeys finds the next blocks from a key on, in order, that are wanted, up to limit of them. It
// appends to keys[:0]. Others may change what it looks at.
func (c *Cache) nextKeys(ctx context.Context, keys []dirtyKey, from key, limit int,
	want func(key, state) bool,
) ([]dirtyKey, error) {
	keys = keys[:0]
	for b := range c.buckets {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if c.buckets[b].live.Load() == 0 {
			continue
		}
		c.slotsOf(BucketID(b), func(s Slot) {
			if k, st := c.index.at(s); k != 0 && !st.shadow() && k >= from && want(k, st) {
				keys = append(keys, dirtyKey{k, s})
			}
		})
		if len(keys) >= 2*limit {
			keys = sortKeys(keys)
			keys = keys[:min(len(keys), limit)]
		}
	}
	keys = sortKeys(keys)
	return keys[:min(len(keys), limit)], nil
}

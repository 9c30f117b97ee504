package cache

import (
	"context"
	"fmt"
	"io"
)

// CheckOptions are for Check. The zero value checks the metadata.
type CheckOptions struct {
	// Data also reads every cached block and compares it with its checksum.
	Data bool
	// Pending is the pending ring of a killed daemon, if there is one.
	Pending []byte
	// Progress is told the share that is done, from 0 to 1.
	Progress func(share float64)
}

// Report is what Check found. A cache without problems is consistent.
type Report struct {
	Super        *Superblock
	CachedBlocks int64
	DirtyBlocks  int64
	// UnsettledBlocks are those that ordered devices have to write back, of each all versions.
	UnsettledBlocks int64
	FreeBuckets     int
	PendingRecords  int
	ReadBlocks      int64
	Problems        []string
}

// maxProblems bounds Report.Problems.
const maxProblems = 100

func (r *Report) add(format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Check examines a cache that is not running, and changes nothing.
func Check(ctx context.Context, dev Storage, o CheckOptions) (*Report, error) {
	c, rec, err := inspect(dev, o.Pending)
	if err != nil {
		return nil, err
	}
	defer c.release()
	r := &Report{Super: c.sb, PendingRecords: rec.pending}
	c.verifyIndex(r)
	if o.Data && c.checksums {
		if err := c.verifyData(ctx, r, o.Progress); err != nil {
			return r, err
		}
	}
	return r, nil
}

// inspect loads a cache without changing it.
func inspect(dev Storage, pending []byte) (*Cache, *recovery, error) {
	sb, err := ReadSuper(dev)
	if err != nil {
		return nil, nil, err
	}
	if pending == nil {
		pending = alignedBytes(PendingBytes)
	}
	c, err := newCache(dev, sb, Options{Pending: pending})
	if err != nil {
		return nil, nil, err
	}
	rec := &recovery{c: c, readOnly: true}
	if err := rec.run(); err != nil {
		c.release()
		return nil, nil, err
	}
	c.sortBuckets(rec.lastLSN)
	return c, rec, nil
}

// verifyIndex compares what is counted with what is there. Nothing else may use the cache.
func (c *Cache) verifyIndex(r *Report) {
	var cached, dirty, pins [MaxBackings + 1]int64
	var owned [tenantRows + 1]int64
	var shadows int64
	for i := range c.buckets {
		live, dirtyHere, pinnedHere := int32(0), int32(0), int32(0)
		c.slotsOf(BucketID(i), func(s Slot) {
			k, st := c.index.at(s)
			owner := c.index.ownerOf(s)
			owned[owner]++
			if k == 0 {
				if owner != 0 {
					r.add("slot %d is empty, but counts for tenant %d", s, owner)
				}
				return
			}
			live++
			if st.shadow() {
				dirtyHere++
				shadows++
				return
			}
			b := c.backing(k.backing())
			if b == nil || int64(k.block())*BlockSize >= b.size || st&stMask == 0 {
				r.add("slot %d holds block %d of backing device %d, which cannot be",
					s, k.block(), k.backing())
				return
			}
			if e, ok := c.index.find(k); !ok || e.slot != s {
				r.add("slot %d holds block %d of %s, but the index has it in slot %d",
					s, k.block(), b.name, e.slot)
			}
			cached[b.id]++
			if st&stPinned != 0 {
				pinnedHere++
				pins[b.id]++
			}
			if st&stDirty != 0 {
				dirtyHere++
				if st&stPending == 0 {
					dirty[b.id]++
				}
			}
		})
		k := &c.buckets[i]
		if k.live.Load() != live || k.dirty.Load() != dirtyHere {
			r.add("bucket %d counts %d live and %d dirty slots, has %d and %d",
				i, k.live.Load(), k.dirty.Load(), live, dirtyHere)
		}
		if k.pinned.Load() != pinnedHere {
			r.add("bucket %d counts %d pinned slots, has %d", i, k.pinned.Load(), pinnedHere)
		}
		if k.state == bucketFree && live != 0 {
			r.add("free bucket %d holds %d blocks", i, live)
		}
	}
	for _, b := range c.backings.Load() {
		if b == nil {
			continue
		}
		if b.cached.Load() != cached[b.id] || b.dirty.Load() != dirty[b.id] {
			r.add("%s counts %d cached and %d dirty blocks, has %d and %d", b.name,
				b.cached.Load(), b.dirty.Load(), cached[b.id], dirty[b.id])
		}
		if b.pinned.Load() != pins[b.id] {
			r.add("%s counts %d pinned blocks, has %d", b.name, b.pinned.Load(), pins[b.id])
		}
		r.CachedBlocks += cached[b.id]
		r.DirtyBlocks += dirty[b.id]
	}
	c.verifyOrders(r, shadows)
	r.FreeBuckets = int(c.alloc.freeCount.Load())
	for i := 1; i < len(owned); i++ {
		if n := c.tenants.rows[i].cached.Load(); n != owned[i] {
			r.add("tenant %d counts %d cached blocks, has %d", i, n, owned[i])
		}
	}
}

// verifyData reads every bucket that holds something.
func (c *Cache) verifyData(ctx context.Context, r *Report, progress func(float64)) error {
	buf := alignedBytes(int(c.geo.BucketBytes))
	for i := range c.buckets {
		if err := ctx.Err(); err != nil {
			return err
		}
		if progress != nil {
			progress(float64(i) / float64(len(c.buckets)))
		}
		if c.buckets[i].live.Load() == 0 {
			continue
		}
		first := Slot(int64(i) * c.geo.slotsPerBucket())
		if _, err := c.ssd.ReadAt(buf, c.geo.slotOff(first)); err != nil {
			r.add("bucket %d cannot be read: %v", i, err)
			continue
		}
		c.locked(BucketID(i), func(_ *stripe, k key, e entry) {
			r.ReadBlocks++
			if dataSum(buf[int64(e.slot-first)*BlockSize:][:BlockSize], uint64(k)) == e.sum {
				return
			}
			kind := "clean (will be healed)"
			if e.st&stDirty != 0 {
				kind = "dirty (its data is lost)"
			}
			r.add("block %d of %s in slot %d fails its checksum; it is %s",
				k.block(), c.backing(k.backing()).name, e.slot, kind)
		})
	}
	return nil
}

// DumpOptions are for Dump.
type DumpOptions struct {
	Journal bool // the records that replay would read
	Blocks  bool // every cached block
	Pending []byte
}

// Dump describes a cache that is not running, for people and for golden tests.
func Dump(dev Storage, w io.Writer, o DumpOptions) error {
	sb, err := ReadSuper(dev)
	if err != nil {
		return err
	}
	dumpSuper(w, sb)
	c, rec, err := inspect(dev, o.Pending)
	if err != nil {
		return err
	}
	defer c.release()
	_, _ = fmt.Fprintf(w, "state: next record %d, pending records %d, free buckets %d of %d\n",
		c.journal.mu.next, rec.pending, c.alloc.freeCount.Load(), len(c.buckets))
	if o.Journal {
		if err := c.dumpJournal(w); err != nil {
			return err
		}
	}
	if o.Blocks {
		c.dumpBlocks(w)
	}
	return nil
}

func dumpSuper(w io.Writer, sb *Superblock) {
	g := &sb.Geometry
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("cache %s label=%q sequence=%d epoch=%d clean=%v checksums=%v created=%s\n", sb.UUID, sb.Label,
		sb.Seq, sb.Epoch, sb.Clean, sb.Checksums, sb.Created.Format("2006-01-02T15:04:05Z"))
	p("device: %d bytes, %d buckets of %d bytes from %d on\n",
		g.DeviceBytes, g.Buckets, g.BucketBytes, g.DataOff)
	p("journal: %d pages at %d; summaries: %d pages at %d and at %d\n", g.JournalPages, journalOff,
		int64(g.Buckets)*g.summaryPages(), g.SummaryOff[0], g.SummaryOff[1])
	for i := range sb.Backings {
		r := &sb.Backings[i]
		p("backing %d %s name=%q mode=%s size=%d offset=%d block=%d detaching=%v serial=%q fs=%s %s\n",
			r.ID, r.UUID, r.Name, r.Mode, r.Size, r.DataOff, r.LBS, r.Detaching, r.Identity.Serial,
			r.Identity.FSType, r.Identity.FSUUID)
		if r.Tunables.Ordered {
			p("  ordered from record %d on\n", r.OrderedFrom)
		}
	}
}

func (c *Cache) dumpJournal(w io.Writer) error {
	rec := &recovery{c: c}
	if err := rec.loadJournal(); err != nil {
		return err
	}
	from, to, err := rec.chain()
	if err != nil {
		return err
	}
	return rec.eachPage(from, to, func(p journalPage, data []byte) error {
		_, _ = fmt.Fprintf(w, "page %d epoch=%d first=%d tail=%d durable=%d\n",
			p.seq, p.epoch, p.first, p.tail, p.durable)
		for i := range p.count {
			r, err := c.pageRecord(data, i)
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(w, "  %d %s\n", p.first+LSN(i), r.String())
		}
		return nil
	})
}

func (c *Cache) dumpBlocks(w io.Writer) {
	for i := range c.buckets {
		if c.buckets[i].live.Load() == 0 {
			continue
		}
		_, _ = fmt.Fprintf(w, "bucket %d live=%d dirty=%d\n",
			i, c.buckets[i].live.Load(), c.buckets[i].dirty.Load())
		c.locked(BucketID(i), func(_ *stripe, k key, e entry) {
			pinned := ""
			if e.st&stPinned != 0 {
				pinned = " pinned"
			}
			switch {
			case e.st.shadow():
				pinned += " shadow"
			case e.st&stQueued != 0:
				pinned += " queued"
			}
			_, _ = fmt.Fprintf(w, "  slot %d backing=%d block=%d mask=%02x dirty=%v sum=%08x%s\n",
				e.slot, k.backing(), k.block(), uint16(e.st&stMask), e.st&stDirty != 0, e.sum, pinned)
		})
	}
}

// Verify compares the counters of a cache with its index; for tests, while no request runs.
func (c *Cache) Verify() []string {
	r := &Report{}
	c.verifyIndex(r)
	return r.Problems
}

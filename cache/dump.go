package cache

import (
	"fmt"
	"io"
)

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
	c, rec, err := inspect(dev, o.Pending, false)
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
	}
}

func (c *Cache) dumpJournal(w io.Writer) error {
	rec := &recovery{c: c}
	rec.loadJournal()
	runs, _ := rec.chain()
	for _, run := range runs {
		if err := c.dumpRun(w, rec, run); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) dumpRun(w io.Writer, rec *recovery, run journalRun) error {
	return rec.eachPage(run, func(p journalPage, data []byte) error {
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
			_, _ = fmt.Fprintf(w, "  slot %d backing=%d block=%d mask=%02x dirty=%v sum=%08x%s\n",
				e.slot, k.backing(), k.block(), uint16(e.st&stMask), e.st&stDirty != 0, e.sum, pinned)
		})
	}
}

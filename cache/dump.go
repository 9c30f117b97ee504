package cache

import (
	"context"
	"fmt"
	"io"
	"time"
)

// DumpOptions are for Dump.
type DumpOptions struct {
	Journal   bool // the records that replay would read, and those of the pending ring
	Summaries bool // the state of both copies of every summary page that was written
	Blocks    bool // every cached block, for EachBucket
	Pending   []byte
	// Progress is told the share that is done, from 0 to 1.
	Progress func(share float64)
}

// Dumped is what is on the SSD of a cache, but for the cached blocks: all of those would not fit in memory.
type Dumped struct {
	UUID         string          `json:"uuid"`
	Label        string          `json:"label"`
	Sequence     uint64          `json:"sequence"`
	Epoch        uint64          `json:"epoch"`
	Clean        bool            `json:"clean"` // stopped in order
	Checksums    bool            `json:"checksums"`
	Created      time.Time       `json:"created"`
	LSN          LSN             `json:"lsn"` // of the next record when the superblock was written
	DeviceBytes  int64           `json:"device_bytes"`
	BucketBytes  int64           `json:"bucket_bytes"`
	Buckets      uint32          `json:"buckets"`
	DataOff      int64           `json:"data_offset_bytes"`
	JournalPages uint32          `json:"journal_pages"`
	SummaryPages int64           `json:"summary_pages"` // of each copy
	SummaryOff   [2]int64        `json:"summary_offset_bytes"`
	Supers       [2]DumpedSuper  `json:"superblocks"`
	Backings     []DumpedBacking `json:"backings"`

	NextRecord  LSN             `json:"next_record"`
	Pending     int             `json:"pending_records"`
	FreeBuckets int             `json:"free_buckets"`
	Journal     []DumpedPage    `json:"journal,omitempty"`
	Ring        []DumpedRecord  `json:"pending_ring,omitempty"`
	Summaries   []DumpedSummary `json:"summaries,omitempty"`
	Problems    []Problem       `json:"problems,omitempty"`

	c *Cache // nil if the blocks are not asked for
}

// DumpedSuper is one copy of the superblock.
type DumpedSuper struct {
	Off      int64  `json:"offset_bytes"`
	Sequence uint64 `json:"sequence,omitempty"`
	Problem  string `json:"problem,omitempty"`
}

// DumpedBacking is the record of a backing device.
type DumpedBacking struct {
	ID        BackingID `json:"id"`
	Name      string    `json:"name"`
	UUID      string    `json:"uuid"`
	Mode      string    `json:"mode"`
	Detaching bool      `json:"detaching"`
	SizeBytes int64     `json:"size_bytes"`
	DataOff   int64     `json:"data_offset_bytes"`
	LBS       int32     `json:"logical_block_bytes"`
	Device    int64     `json:"device_bytes"`
	Serial    string    `json:"serial,omitempty"`
	FSType    string    `json:"fs_type,omitempty"`
	FSUUID    string    `json:"fs_uuid,omitempty"`
	// Dirty is how many blocks were dirty at the last stop in order or else start; nil: not known.
	Dirty    *uint64 `json:"dirty_blocks,omitempty"`
	Print    string  `json:"fingerprint,omitempty"`
	Head     uint64  `json:"header_epoch,omitempty"`
	Settings string  `json:"settings"`
}

// DumpedPage is a page of the journal.
type DumpedPage struct {
	Seq     uint64         `json:"seq"`
	Epoch   uint64         `json:"epoch"`
	First   LSN            `json:"first"`
	Tail    uint64         `json:"tail"`
	Durable uint64         `json:"durable"`
	Dirty   string         `json:"dirty,omitempty"`  // mask of the backing devices; empty: not noted
	Images  string         `json:"images,omitempty"` // mask of the ordered devices that are images
	Lost    bool           `json:"lost,omitempty"`
	Records []DumpedRecord `json:"records,omitempty"`
}

// DumpedRecord is a record in words.
type DumpedRecord struct {
	LSN  LSN    `json:"lsn"`
	Text string `json:"text"`
}

// DumpedSummary is a summary page: the LSN of each copy, or what is wrong with it.
type DumpedSummary struct {
	Page   int64     `json:"page"`
	Bucket int64     `json:"bucket"`
	Copies [2]string `json:"copies"`
}

// DumpedBlock is a cached block.
type DumpedBlock struct {
	Slot    Slot      `json:"slot"`
	Bucket  BucketID  `json:"bucket"`
	Backing BackingID `json:"backing"`
	Block   Block     `json:"block"`
	Sectors uint8     `json:"sectors"` // mask of the valid ones
	Dirty   bool      `json:"dirty"`
	Bad     bool      `json:"bad,omitempty"`
	Pinned  bool      `json:"pinned,omitempty"`
	// Queued is to be written back in its turn, of an ordered device; Shadow is an older version of such a
	// block, in another slot.
	Queued bool   `json:"queued,omitempty"`
	Shadow bool   `json:"shadow,omitempty"`
	Sum    uint32 `json:"checksum"`
}

// Dump describes a cache that is not running. It goes on past damage. With o.Blocks it is to be closed.
func Dump(ctx context.Context, dev Storage, o DumpOptions) (*Dumped, error) {
	share := func(from, to float64) func(float64) {
		return func(done float64) {
			if o.Progress != nil {
				o.Progress(from + (to-from)*done)
			}
		}
	}
	load := 1.0
	if o.Summaries {
		load = 0.5 // they are read once more
	}
	c, rec, err := inspect(ctx, dev, o.Pending, false, share(0, load))
	if err != nil {
		return nil, err
	}
	d := c.dumpSuper(dev)
	d.c = c
	if err = d.fill(ctx, rec, o, share(load, 1)); err != nil || !o.Blocks {
		d.Close()
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// fill adds what was loaded, and what is asked for besides.
func (d *Dumped) fill(ctx context.Context, rec *recovery, o DumpOptions, progress func(float64)) error {
	d.NextRecord, d.Pending = rec.next-LSN(rec.pending), rec.pending
	d.FreeBuckets = int(d.c.alloc.freeCount.Load())
	r := &Report{}
	rec.report(r)
	d.Problems = r.Problems
	if o.Journal {
		if err := d.c.dumpJournal(d, rec); err != nil {
			return err
		}
	}
	if !o.Summaries {
		return nil
	}
	return d.c.dumpSummaries(ctx, d, progress)
}

// Close gives the memory back that the blocks need.
func (d *Dumped) Close() {
	if d.c != nil {
		d.c.release()
		d.c = nil
	}
}

func (c *Cache) dumpSuper(dev Storage) *Dumped {
	sb, g := c.sb, &c.geo
	d := &Dumped{
		UUID: sb.UUID.String(), Label: sb.Label, Sequence: sb.Seq, Epoch: sb.Epoch, Clean: sb.Clean,
		Checksums: sb.Checksums, Created: sb.Created, LSN: sb.LSN, DeviceBytes: g.DeviceBytes,
		BucketBytes: g.BucketBytes, Buckets: g.Buckets, DataOff: g.DataOff, JournalPages: g.JournalPages,
		SummaryPages: int64(g.Buckets) * g.summaryPages(), SummaryOff: g.SummaryOff,
		Backings: []DumpedBacking{},
	}
	for i, k := range readSupers(dev) {
		d.Supers[i].Off = k.off
		if d.Supers[i].Sequence = 0; k.err != nil {
			d.Supers[i].Problem = k.err.Error()
		} else {
			d.Supers[i].Sequence = k.sb.Seq
		}
	}
	for _, r := range sb.Backings {
		b := DumpedBacking{
			ID: r.ID, Name: r.Name, UUID: r.UUID.String(), Mode: r.Mode.String(), Detaching: r.Detaching,
			SizeBytes: r.Size, DataOff: r.DataOff, LBS: r.LBS, Device: r.Identity.Size,
			Serial: r.Identity.Serial, FSType: r.Identity.FSType, FSUUID: r.Identity.FSUUID,
			Settings: settingsText(&r.Tunables), Head: r.Head,
		}
		if r.Dirty > 0 {
			n := r.Dirty - 1
			b.Dirty = &n
		}
		if r.Print.Kind != 0 {
			b.Print = fmt.Sprintf("%d:%016x", r.Print.Kind, r.Print.Sum)
		}
		d.Backings = append(d.Backings, b)
	}
	return d
}

func (c *Cache) dumpJournal(d *Dumped, loaded *recovery) error {
	rec := &recovery{c: c, ctx: loaded.ctx}
	if err := rec.loadJournal(); err != nil {
		return err
	}
	runs, _ := rec.chain()
	for _, run := range runs {
		for _, g := range rec.dmg.gaps {
			if g.to == run.from {
				for seq := g.from; seq < g.to; seq++ {
					d.Journal = append(d.Journal, DumpedPage{Seq: seq, Lost: true})
				}
			}
		}
		err := rec.eachPage(run, func(p journalPage, data []byte) error {
			out := DumpedPage{Seq: p.seq, Epoch: p.epoch, First: p.first, Tail: p.tail, Durable: p.durable}
			if p.noted {
				out.Dirty = fmt.Sprintf("%#x", p.dirty)
			}
			if p.images != 0 {
				out.Images = fmt.Sprintf("%#x", p.images)
			}
			for i := range p.count {
				r, _ := c.pageRecord(data, i)
				out.Records = append(out.Records, DumpedRecord{p.first + LSN(i), r.String()})
			}
			d.Journal = append(d.Journal, out)
			return nil
		})
		if err != nil {
			return err
		}
	}
	left, _ := loadPending(c.opts.Pending, c.sb.UUID, c.epoch)
	for i := range left.list {
		d.Ring = append(d.Ring, DumpedRecord{loaded.ringFirst + LSN(i), left.list[i].String()})
	}
	return nil
}

func (c *Cache) dumpSummaries(ctx context.Context, d *Dumped, progress func(float64)) error {
	var buf [2][]byte
	for i := range buf {
		buf[i] = alignedBytes(pageSize)
	}
	for page := range d.SummaryPages {
		if err := ctx.Err(); err != nil {
			return err
		}
		if page%1024 == 0 {
			progress(float64(page) / float64(d.SummaryPages))
		}
		out := DumpedSummary{Page: page, Bucket: page / c.geo.summaryPages()}
		seen := false
		for i := range buf {
			bad := readPages(c.ssd, buf[i], c.geo.SummaryOff[i]+page*pageSize)
			k := c.checkSummary(buf[i], i, page)
			switch {
			case bad != nil:
				out.Copies[i] = "unreadable"
			case k.state == summaryBad:
				out.Copies[i] = "damaged"
			case k.state == summaryGood:
				out.Copies[i] = fmt.Sprint(k.lsn)
			}
			seen = seen || out.Copies[i] != ""
		}
		if seen {
			d.Summaries = append(d.Summaries, out)
		}
	}
	return nil
}

// EachBucket calls f with the blocks of every bucket that has some, if they were asked for. The list is
// good until f returns.
func (d *Dumped) EachBucket(ctx context.Context, f func([]DumpedBlock) error) error {
	c := d.c
	if c == nil {
		return nil
	}
	var list []DumpedBlock
	for i := range c.buckets {
		if err := ctx.Err(); err != nil {
			return err
		}
		list = list[:0]
		c.locked(BucketID(i), func(_ *stripe, k key, e entry) {
			list = append(list, DumpedBlock{
				Slot: e.slot, Bucket: BucketID(i), Backing: k.backing(), Block: k.block(),
				Sectors: uint8(e.st & stMask), Dirty: e.st&stDirty != 0, Bad: e.st&stBad != 0,
				Pinned: e.st&stPinned != 0, Sum: e.sum,
				Queued: e.st&stQueued != 0 && !e.st.shadow(), Shadow: e.st.shadow(),
			})
		})
		if len(list) == 0 {
			continue
		}
		if err := f(list); err != nil {
			return err
		}
	}
	return nil
}

// Print writes it for people and for golden tests, until ctx ends.
func (d *Dumped) Print(ctx context.Context, w io.Writer) error {
	var failed error
	p := func(format string, args ...any) {
		if _, err := fmt.Fprintf(w, format, args...); err != nil && failed == nil {
			failed = err
		}
	}
	p("cache %s label=%q sequence=%d epoch=%d clean=%v checksums=%v created=%s lsn=%d\n", d.UUID, d.Label,
		d.Sequence, d.Epoch, d.Clean, d.Checksums, d.Created.Format("2006-01-02T15:04:05Z"), d.LSN)
	for _, s := range d.Supers {
		if s.Problem != "" {
			p("superblock at %d: %s\n", s.Off, s.Problem)
		} else {
			p("superblock at %d: sequence=%d\n", s.Off, s.Sequence)
		}
	}
	p("device: %d bytes, %d buckets of %d bytes from %d on\n", d.DeviceBytes, d.Buckets, d.BucketBytes,
		d.DataOff)
	p("journal: %d pages at %d; summaries: %d pages at %d and at %d\n", d.JournalPages, journalOff,
		d.SummaryPages, d.SummaryOff[0], d.SummaryOff[1])
	for i := range d.Backings {
		d.Backings[i].print(p)
	}
	p("state: next record %d, pending records %d, free buckets %d of %d\n", d.NextRecord, d.Pending,
		d.FreeBuckets, d.Buckets)
	for _, x := range d.Problems {
		p("problem: %s\n", x.Text)
	}
	for _, g := range d.Journal {
		if g.Lost {
			p("page %d lost\n", g.Seq)
			continue
		}
		p("page %d epoch=%d first=%d tail=%d durable=%d", g.Seq, g.Epoch, g.First, g.Tail, g.Durable)
		if g.Dirty != "" {
			p(" dirty=%s", g.Dirty)
		}
		if g.Images != "" {
			p(" images=%s", g.Images)
		}
		p("\n")
		for _, r := range g.Records {
			p("  %d %s\n", r.LSN, r.Text)
		}
	}
	for _, r := range d.Ring {
		p("pending %d %s\n", r.LSN, r.Text)
	}
	for _, s := range d.Summaries {
		p("summary %d bucket=%d A=%s B=%s\n", s.Page, s.Bucket, s.Copies[0], s.Copies[1])
	}
	err := d.EachBucket(ctx, func(list []DumpedBlock) error {
		printBucket(p, list)
		return failed
	})
	if err == nil {
		err = failed
	}
	return err
}

func (b *DumpedBacking) print(p func(string, ...any)) {
	p("backing %d %s name=%q mode=%s size=%d offset=%d block=%d detaching=%v serial=%q fs=%s %s\n", b.ID,
		b.UUID, b.Name, b.Mode, b.SizeBytes, b.DataOff, b.LBS, b.Detaching, b.Serial, b.FSType, b.FSUUID)
	p("  device=%d %s", b.Device, b.Settings)
	if b.Dirty != nil {
		p(" dirty=%d", *b.Dirty)
	}
	if b.Print != "" {
		p(" fingerprint=%s", b.Print)
	}
	if b.Head != 0 {
		p(" header-epoch=%d", b.Head)
	}
	p("\n")
}

func settingsText(t *Tunables) string {
	return fmt.Sprintf("cutoff=%d dirty-target=%d dirty-max=%d delay=%v pin-quota=%d", t.SequentialCutoff,
		t.DirtyTarget, t.DirtyMax, t.WritebackDelay, t.PinQuota)
}

func printBucket(p func(string, ...any), list []DumpedBlock) {
	dirty := 0
	for i := range list {
		if list[i].Dirty {
			dirty++
		}
	}
	p("bucket %d live=%d dirty=%d\n", list[0].Bucket, len(list), dirty)
	for i := range list {
		b := &list[i]
		p("  slot %d backing=%d block=%d mask=%02x dirty=%v sum=%08x", b.Slot, b.Backing, b.Block, b.Sectors,
			b.Dirty, b.Sum)
		if b.Pinned {
			p(" pinned")
		}
		if b.Bad {
			p(" bad")
		}
		if b.Queued {
			p(" queued")
		}
		if b.Shadow {
			p(" shadow")
		}
		p("\n")
	}
}

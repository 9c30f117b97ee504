package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
)

// CheckOptions are for Check. The zero value checks the metadata.
type CheckOptions struct {
	// Data also reads every cached block and compares it with its checksum.
	Data bool
	// Backing, if it is not nil, returns the backing device that the clean blocks of one are compared
	// with; nil: not this one.
	Backing func(r *BackingRecord) io.ReaderAt
	// Pending is the pending ring of a killed daemon, if there is one.
	Pending []byte
	// Scan looks for a cache whose superblocks are both lost.
	Scan bool
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
	ComparedBlocks  int64 // with their backing devices
	Problems        []Problem
	// MoreProblems is how many there are beyond those in Problems.
	MoreProblems int
	// Startable says whether a start takes the cache as it is, and Refusal why it does not.
	Startable bool
	Refusal   string
}

// maxProblems bounds Report.Problems.
const maxProblems = 1000

func (r *Report) add(p Problem) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, p)
	} else {
		r.MoreProblems++
	}
}

func (r *Report) wrong(format string, args ...any) {
	r.add(newProblem(ProblemIndex, DirtyLost, format, args...))
}

// Worst is the severest of the problems, empty if there are none.
func (r *Report) Worst() (worst Severity) {
	rank := map[Severity]int{Harmless: 1, CleanLost: 2, DirtyLost: 3}
	for _, p := range r.Problems {
		if rank[p.Severity] > rank[worst] {
			worst = p.Severity
		}
	}
	return worst
}

// Check examines a cache that is not running, and changes nothing. It goes on past damage, so that all
// of it is found; it fails only if there is nothing to go by. If ctx ends it returns the error, and once
// it is through with the metadata also what it has found so far.
func Check(ctx context.Context, dev Storage, o CheckOptions) (*Report, error) {
	share := func(from, to float64) func(float64) {
		return func(done float64) {
			if o.Progress != nil {
				o.Progress(from + (to-from)*done)
			}
		}
	}
	meta, data := 1.0, 1.0 // where each of them ends
	if o.Data || o.Backing != nil {
		meta = metaShare
	}
	switch {
	case o.Backing != nil && o.Data:
		data = (1 + meta) / 2
	case o.Backing != nil:
		data = meta
	}
	c, rec, err := inspect(ctx, dev, o.Pending, o.Scan, share(0, meta*loadShare))
	if err != nil {
		return nil, err
	}
	defer c.release()
	r := &Report{Super: c.sb, PendingRecords: rec.pending}
	rec.report(r)
	if err := c.verifyIndex(ctx, r, share(meta*loadShare, meta)); err != nil {
		return nil, err // what it counts is not counted
	}
	c.verifyStop(r)
	if o.Data {
		if err := c.verifyData(ctx, r, share(meta, data)); err != nil {
			return r, err
		}
	}
	if o.Backing != nil {
		if err := c.verifyBackings(ctx, r, o.Backing, share(data, 1)); err != nil {
			return r, err
		}
	}
	return r, nil
}

// The metadata takes about metaShare of a check of all, and to load it loadShare of that.
const (
	metaShare = 0.05
	loadShare = 0.7
)

// report says what recovery met.
func (r *recovery) report(out *Report) {
	c, d := r.c, &r.dmg
	sev := DirtyLost
	why, proven := r.provenClean()
	if proven {
		sev, why = CleanLost, "nothing was dirty"
	}
	for _, s := range c.sb.damaged {
		if c.sb.Seq == 0 {
			out.add(newProblem(ProblemSupers, DirtyLost, "superblock: %s", s))
			continue
		}
		out.add(newProblem(ProblemSuper, Harmless, "%s", s))
	}
	for _, k := range d.copies {
		first, n := c.geo.pageSlots(k.page)
		out.add(newProblem(ProblemSummaryCopy, Harmless, "copy %c of summary page %d (slots %d+%d) is damaged",
			'A'+rune(k.copyNo), k.page, first, n))
	}
	for page := range d.lost {
		first, n := c.geo.pageSlots(page)
		if u := r.unknown(page); u > 0 {
			out.add(newProblem(ProblemSummary, sev, "both copies of summary page %d (slots %d+%d) are damaged, "+
				"%d slots are unknown; %s", page, first, n, u, why))
		} else {
			out.add(newProblem(ProblemSummaryBuilt, Harmless,
				"both copies of summary page %d (slots %d+%d) are damaged", page, first, n))
		}
	}
	for _, g := range d.gaps {
		out.add(newProblem(ProblemJournal, sev, "journal pages %d to %d are lost; %s", g.from, g.to-1, why))
	}
	if len(d.gaps) == 0 && d.after != 0 && d.wrong == 0 {
		out.add(newProblem(ProblemJournal, sev, "records before %d of the journal are lost; %s", d.after, why))
	}
	if d.end != 0 {
		out.add(newProblem(ProblemJournalEnd, sev, "the journal ends at record %d, it once had those before %d; %s",
			r.topEnd(), d.end, why))
	}
	if r.renew {
		out.add(newProblem(ProblemJournal, Harmless, "pages of the journal are lost that are not needed after a stop "+
			"in order"))
	}
	for _, s := range d.missing {
		out.add(newProblem(ProblemCount, DirtyLost, "%s", s))
	}
	for _, p := range d.problems {
		p.Severity = sev
		out.add(p)
	}
	out.Startable = true
	if (d.journalDamaged() || r.unknownSlots() > 0) && !proven {
		out.Startable, out.Refusal = false, r.summary()+", and "+why
	}
	if c.sb.Seq == 0 {
		out.Startable, out.Refusal = false, "both copies of the superblock are lost"
	}
}

// topEnd is the record behind the newest page.
func (r *recovery) topEnd() LSN { return r.top.first + LSN(r.top.count) }

// verifyBuckets is how many buckets verifyIndex looks at before it tells how far it is.
const verifyBuckets = 1024

// verifyIndex compares what is counted with what is there. Nothing else may use the cache.
func (c *Cache) verifyIndex(ctx context.Context, r *Report, progress func(float64)) error {
	var cached, dirty, pins [MaxBackings + 1]int64
	var owned [tenantRows + 1]int64
	var shadows int64
	for i := range c.buckets {
		if err := ctx.Err(); err != nil {
			return err
		}
		if i%verifyBuckets == 0 {
			progress(float64(i) / float64(len(c.buckets)))
		}
		live, dirtyHere, pinnedHere := int32(0), int32(0), int32(0)
		c.slotsOf(BucketID(i), func(s Slot) {
			k, st := c.index.at(s)
			owner := c.index.ownerOf(s)
			owned[owner]++
			if k == 0 {
				if owner != 0 {
					r.wrong("slot %d is empty, but counts for tenant %d", s, owner)
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
				r.wrong("slot %d holds block %d of backing device %d, which cannot be",
					s, k.block(), k.backing())
				return
			}
			if e, ok := c.index.find(k); !ok || e.slot != s {
				r.wrong("slot %d holds block %d of %s, but the index has it in slot %d",
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
			r.wrong("bucket %d counts %d live and %d dirty slots, has %d and %d",
				i, k.live.Load(), k.dirty.Load(), live, dirtyHere)
		}
		if k.pinned.Load() != pinnedHere {
			r.wrong("bucket %d counts %d pinned slots, has %d", i, k.pinned.Load(), pinnedHere)
		}
		if k.state == bucketFree && live != 0 {
			r.wrong("free bucket %d holds %d blocks", i, live)
		}
	}
	for _, b := range c.backings.Load() {
		if b == nil {
			continue
		}
		if b.cached.Load() != cached[b.id] || b.dirty.Load() != dirty[b.id] {
			r.wrong("%s counts %d cached and %d dirty blocks, has %d and %d", b.name,
				b.cached.Load(), b.dirty.Load(), cached[b.id], dirty[b.id])
		}
		if b.pinned.Load() != pins[b.id] {
			r.wrong("%s counts %d pinned blocks, has %d", b.name, b.pinned.Load(), pins[b.id])
		}
		r.CachedBlocks += cached[b.id]
		r.DirtyBlocks += dirty[b.id]
	}
	c.verifyOrders(r, shadows)
	r.FreeBuckets = int(c.alloc.freeCount.Load())
	for i := 1; i < len(owned); i++ {
		if n := c.tenants.rows[i].cached.Load(); n != owned[i] {
			r.wrong("tenant %d counts %d cached blocks, has %d", i, n, owned[i])
		}
	}
	progress(1)
	return nil
}

// verifyStop compares what the last stop said that has to be loaded first with what there is.
func (c *Cache) verifyStop(r *Report) {
	s := c.sb.stop
	if s == nil {
		return
	}
	for i := range c.buckets {
		k, b := &c.buckets[i], BucketID(i)
		if _, ok := slices.BinarySearch(s.first, b); !ok && (k.dirty.Load() > 0 || k.pinned.Load() > 0) {
			r.wrong("bucket %d has %d dirty and %d pinned slots, but the superblock does not have it loaded first",
				i, k.dirty.Load(), k.pinned.Load())
		}
		if _, ok := slices.BinarySearch(s.free, b); ok && k.live.Load() > 0 {
			r.wrong("bucket %d holds %d blocks, but the superblock calls it free", i, k.live.Load())
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
		progress(float64(i) / float64(len(c.buckets)))
		if c.buckets[i].live.Load() == 0 {
			continue
		}
		first := Slot(int64(i) * c.geo.slotsPerBucket())
		bad := readPages(c.ssd, buf, c.geo.slotOff(first))
		if bad != nil {
			sev := CleanLost
			if c.buckets[i].dirty.Load() > 0 {
				sev = DirtyLost
			}
			r.add(newProblem(ProblemRead, sev, "the SSD fails to read %d of the %d slots of bucket %d",
				len(bad), c.geo.slotsPerBucket(), i))
		}
		c.locked(BucketID(i), func(_ *stripe, k key, e entry) {
			r.ReadBlocks++
			at := int64(e.slot - first)
			why := "cannot be read"
			if !bad[at] {
				if !c.checksums || dataSum(buf[at*BlockSize:][:BlockSize], uint64(k)) == e.sum {
					return
				}
				why = "fails its checksum"
			}
			kind, sev, what := ProblemClean, CleanLost, "clean"
			if e.st&stDirty != 0 {
				kind, sev, what = ProblemDirty, DirtyLost, "dirty"
			}
			b := c.backing(k.backing())
			r.add(newProblem(kind, sev, "block %d of %s (bytes %s) in slot %d %s; it is %s",
				k.block(), b.name, maskRanges(k.block(), e.st), e.slot, why, what))
		})
	}
	return nil
}

// compareKeys is how many blocks verifyBackings sorts at a time.
const compareKeys = 1 << 20

// verifyBackings compares clean blocks with their backing devices, in the order of these.
func (c *Cache) verifyBackings(ctx context.Context, r *Report, open func(*BackingRecord) io.ReaderAt,
	progress func(float64),
) error {
	page, under := alignedBytes(BlockSize), alignedBytes(regionBytes)
	for i := range c.sb.Backings {
		rec := &c.sb.Backings[i]
		dev := open(rec)
		b := c.backing(rec.ID)
		if dev == nil || b == nil {
			continue
		}
		total, done := max(b.cached.Load()-b.dirty.Load(), 1), int64(0)
		clean := func(k key, st state) bool { return k.backing() == rec.ID && st&stDirty == 0 }
		keys, err := c.nextKeys(ctx, nil, makeKey(rec.ID, 0), compareKeys, clean)
		for err == nil && len(keys) > 0 {
			next := keys[len(keys)-1].k + 1
			for len(keys) > 0 {
				if err := ctx.Err(); err != nil {
					return err
				}
				n := 1
				for n < len(keys) && n < regionBlocks && keys[n].k == keys[0].k+key(n) {
					n++
				}
				c.compareRun(r, b, dev, keys[:n], page, under)
				keys, done = keys[n:], done+int64(n)
				progress((float64(i) + float64(done)/float64(total)) / float64(len(c.sb.Backings)))
			}
			keys, err = c.nextKeys(ctx, keys, next, compareKeys, clean)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compareRun compares blocks that lie side by side on the backing device.
func (c *Cache) compareRun(r *Report, b *Backing, dev io.ReaderAt, keys []dirtyKey, page, under []byte) {
	first := keys[0].k.block()
	last := keys[len(keys)-1].k.block()
	n := int64(last-first)*BlockSize + int64(b.blockBytes(last))
	if _, err := dev.ReadAt(under[:n], b.dataOff+int64(first)*BlockSize); err != nil {
		r.add(newProblem(ProblemDiffers, CleanLost, "%s cannot be read at %d+%d: %v", b.name,
			int64(first)*BlockSize, n, err))
		return
	}
	for i, d := range keys {
		_, st := c.index.at(d.slot)
		if _, err := c.ssd.ReadAt(page, c.geo.slotOff(d.slot)); err != nil ||
			c.checksums && dataSum(page, uint64(d.k)) != c.index.sumAt(d.slot) {
			continue // verifyData reports it
		}
		r.ComparedBlocks++
		if gone := differing(page, under[i*BlockSize:min(n, int64(i+1)*BlockSize)], st); gone != 0 {
			r.add(newProblem(ProblemDiffers, CleanLost, "%s differs from its cached copy in block %d (bytes %s)",
				b.name, d.k.block(), maskRanges(d.k.block(), gone)))
		}
	}
}

// differing is which of the valid sectors of a and b are not the same; b may be shorter.
func differing(a, b []byte, valid state) (gone state) {
	for i := 0; i+SectorSize <= len(b); i += SectorSize {
		if bit := state(1) << (i / SectorSize); valid&bit != 0 &&
			!bytes.Equal(a[i:i+SectorSize], b[i:i+SectorSize]) {
			gone |= bit
		}
	}
	return gone
}

// maskRanges says in bytes of the cached device which sectors a mask has: 4096+512.
func maskRanges(blk Block, mask state) string {
	text := ""
	for i := 0; i < sectorsPerBlock; i++ {
		n := 0
		for ; i+n < sectorsPerBlock && mask&(1<<(i+n)) != 0; n++ {
		}
		if n > 0 {
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("%d+%d", int64(blk)*BlockSize+int64(i)*SectorSize, n*SectorSize)
			i += n
		}
	}
	return text
}

// Verify compares the counters of a cache with its index; for tests, while no request runs.
func (c *Cache) Verify() []string {
	r := &Report{}
	_ = c.verifyIndex(context.Background(), r, func(float64) {})
	var list []string
	for _, p := range r.Problems {
		list = append(list, p.Text)
	}
	return list
}

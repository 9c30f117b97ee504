package cache

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
)

// recovery rebuilds the index: summaries first, then the journal from its tail, then the pending
// ring. A record changes only what no summary page newer than it has described: page LSNs say
// so, one per summarySlots slots.
type recovery struct {
	c *Cache
	// ctx, if it is not nil, ends the loading of what is only looked at. A start goes on to its end.
	ctx     context.Context
	loaded  int64      // pages that step was told of, of those that run counts
	pageLSN []LSN      // per summary page
	lastLSN []LSN      // per bucket: newest change seen, for its age
	stale   []BucketID // buckets whose summary has to be written again
	next    LSN        // of the next record to replay
	pages   map[uint64]journalPage
	epoch   uint64          // of the page replayed last
	top     journalPage     // the newest; seq 0: there is none
	last    journalPage     // the last of those that are replayed
	torn    map[uint64]bool // places in the ring whose pages are neither whole nor empty
	doubt   bool            // the page behind the end is one of them, so it is not known what it said
	pending int             // records that came from the pending ring
	// ringRecs are all that the ring has, also those that are in the journal.
	ringRecs []record
	// fresh are the slots that they speak of and that the journal did not have for the same block before:
	// what those hold has been flushed.
	fresh map[Slot]bool
	left  int // how many of them the journal has
	// before says of the blocks that they map whether the cache had dirty data of it.
	before map[key]bool
	lost   int // dirty blocks of them that the SSD does not have
	// doubtful says that the SSD was lost: it may lack data that the pending ring speaks of. doubted are the
	// records that speak of such, also those that an earlier start has brought to the journal.
	doubtful bool
	doubted  []record
	// readOnly leaves the SSD as it is, lenient loads what damage leaves.
	readOnly, lenient bool
	cold              bool // nothing of what was loaded may be used
	renew             bool // the journal is damaged, and not needed

	dmg       damage
	ringFirst LSN          // the first record of the pending ring, 0 if there is none
	ringDirty uint64       // the backing devices of which it has dirty blocks
	setBy     map[Slot]LSN // lenient: the record that put a slot's block there
	// strangers are entries of the index of devices that the superblock does not have, and dropped are the newest drop
	// records. That of a device which was detached explains them: it is in the journal until the summaries are written.
	strangers map[BackingID]*strangers
	dropped   map[BackingID]LSN
	detached  []BackingID       // those of strangers that are no device's any more: a new journal has to explain them
	keys      [summarySlots]key // of the page that is being loaded
	fetched   uint64
}

// journalPage is the header of a journal page.
type journalPage struct {
	seq, epoch, tail, durable uint64
	first                     LSN
	count                     int
	ends                      bool   // what was durable may have ended with it
	noted                     bool   // dirty is there
	dirty                     uint64 // which backing devices may have dirty data
	images                    uint64 // which ordered devices are images
}

func (r *recovery) run() error {
	c := r.c
	r.pageLSN = make([]LSN, int64(c.geo.Buckets)*c.geo.summaryPages())
	r.lastLSN = make([]LSN, c.geo.Buckets)
	r.dmg.lost = map[int64]*lostPage{}
	if r.lenient {
		r.setBy = map[Slot]LSN{}
	}
	if err := r.loadSummaries(); err != nil {
		return err
	}
	if err := r.loadJournal(); err != nil {
		return err
	}
	r.loadRing()
	if err := r.replay(); err != nil {
		return err
	}
	r.endBatches()
	recs, err := r.replayPending()
	if err != nil {
		return err
	}
	r.endBatches()
	if err := r.step(r.allPages() - r.loaded); err != nil { // whatever of the journal needed no replay
		return err
	}
	if err := r.judge(); err != nil {
		return err
	}
	if err := r.rebuildOrders(); err != nil {
		return err
	}
	r.recallImages()
	defer func() { r.pages = nil }()
	if r.doubtful && len(r.ringRecs) > 0 {
		// They include those that the journal has of them, but for what a failed commit has left there: that may be
		// older (journal.rewrite).
		r.doubted = r.ringRecs
	}
	if r.readOnly {
		if !c.checksums { // else who reads the data finds out
			drop, _ := r.lacking(r.doubted)
			for i := range drop {
				r.apply(r.next, &drop[i])
			}
		}
		return nil
	}
	if r.doubtful && !r.cold && !r.renew {
		if err := r.writeAgain(); err != nil {
			return fmt.Errorf("write again what a failed flush was to cover: %w", err)
		}
	}
	if !r.cold && !r.renew {
		if err := r.clearTorn(); err != nil {
			return fmt.Errorf("clear a torn page of the journal: %w", err)
		}
	}
	switch {
	case r.cold:
		err = r.startCold()
	case r.renew:
		r.renewJournal()
		err = r.commitNew(r.detached)
	case len(recs) > 0:
		if r.doubtful {
			if err = r.noteDoubt(len(recs)); err != nil {
				return fmt.Errorf("write superblock: %w", err)
			}
		}
		err = c.commitBlocking(&c.journal, r.next-LSN(len(recs)), recs)
	case !c.sb.Clean:
		// A page of which the write was under way when the daemon was killed may be in the SSD's volatile
		// cache only. From here on the superblock, and each FLUSH, counts on it.
		if err = c.ssd.Sync(); err != nil {
			err = fmt.Errorf("flush journal: %w", err)
		}
	}
	if err != nil {
		return err
	}
	c.repaired = r.repairs()
	if err := r.repair(); err != nil {
		return err
	}
	if len(r.doubted) > 0 && !r.cold && !mutated(mutPendingTrusted) {
		if err := r.verifyPending(r.doubted); err != nil {
			return err
		}
	}
	if mutated(mutColdAfterCrash) && !c.sb.Clean && r.ringRecs == nil {
		if err := r.dropClean(); err != nil {
			return err
		}
	}
	return r.dropMissed()
}

// allPages is what run goes through, at most: summaries, the ring of the journal, and what of it is replayed.
func (r *recovery) allPages() int64 { return int64(len(r.pageLSN)) + 2*int64(r.c.geo.JournalPages) }

// step is told that so many more pages have been gone through. Its error says not to go on.
func (r *recovery) step(pages int64) error {
	r.loaded += pages
	if tell := r.c.opts.Progress; tell != nil && r.pageLSN != nil { // else only the journal is read, by Dump
		tell(min(1, float64(r.loaded)/float64(r.allPages())))
	}
	return r.ended()
}

// ended is the error of ctx.
func (r *recovery) ended() error {
	if r.ctx == nil {
		return nil
	}
	return r.ctx.Err()
}

// readPages reads n pages, and where that fails page by page; bad says which cannot be read.
func readPages(dev Storage, p []byte, off int64) (bad map[int64]bool) {
	if _, err := dev.ReadAt(p, off); err == nil {
		return nil
	}
	bad = map[int64]bool{}
	for at := int64(0); at < int64(len(p)); at += pageSize {
		if _, err := dev.ReadAt(p[at:at+pageSize], off+at); err != nil {
			clear(p[at : at+pageSize])
			bad[at/pageSize] = true
		}
	}
	return bad
}

// loadSummaries reads both copies side by side, and of each page the newer valid one.
func (r *recovery) loadSummaries() error {
	c := r.c
	const chunk = 1024
	var buf [2][]byte
	total := int64(len(r.pageLSN))
	for i := range buf {
		buf[i] = alignedBytes(int(min(chunk, total)) * pageSize)
	}
	for at := int64(0); at < total; at += chunk {
		n := min(chunk, total-at)
		var bad [2]map[int64]bool
		for i := range buf {
			bad[i] = readPages(c.ssd, buf[i][:n*pageSize], c.geo.SummaryOff[i]+at*pageSize)
		}
		for j := range n {
			var k [2]copyFound
			for i := range k {
				k[i] = c.checkSummary(buf[i][j*pageSize:][:pageSize], i, at+j)
				if bad[i][j] {
					k[i].state = summaryBad
				}
			}
			r.loadPage(k, at+j)
		}
		if err := r.step(n); err != nil {
			return err
		}
	}
	return nil
}

// summaryState is what is at the place of a summary page.
type summaryState uint8

const (
	summaryNone summaryState = iota // never written by this cache
	summaryBad
	summaryGood
)

// copyFound is what is at the place of one copy of a summary page.
type copyFound struct {
	state summaryState
	lsn   LSN
	p     []byte
}

func (c *Cache) checkSummary(p []byte, copyNo int, page int64) copyFound {
	le := binary.LittleEndian
	off := c.geo.SummaryOff[copyNo] + page*pageSize
	if le.Uint32(p) != summaryMagic || le.Uint64(p[smCache:]) != cacheID(c.sb.UUID) {
		return copyFound{}
	}
	var q [pageSize]byte
	copy(q[:], p)
	le.PutUint64(q[smSum:], 0)
	if metaSum(q[:], off) != le.Uint64(p[smSum:]) || le.Uint64(p[smOff:]) != uint64(off) {
		return copyFound{state: summaryBad}
	}
	return copyFound{summaryGood, LSN(le.Uint64(p[smLSN:])), p}
}

// newerCopy is the copy to go by; its state is not summaryGood if there is none.
func newerCopy(k [2]copyFound) copyFound {
	if k[0].state != summaryGood || k[1].state == summaryGood && k[1].lsn > k[0].lsn {
		return k[1]
	}
	return k[0]
}

func (r *recovery) loadPage(k [2]copyFound, page int64) {
	good := newerCopy(k)
	if good.state != summaryGood {
		if k[0].state == summaryBad && k[1].state == summaryBad {
			r.dmg.lost[page] = &lostPage{known: map[Slot]bool{}}
		}
		return // or never written, or torn at the first time: the journal has it all
	}
	for i := range k {
		if k[i].state == summaryBad {
			r.dmg.copies = append(r.dmg.copies, summaryCopy{page, i})
		}
	}
	r.pageLSN[page] = good.lsn
	bucket := page / r.c.geo.summaryPages()
	if k[0].state != k[1].state || k[0].lsn != k[1].lsn {
		// One copy is all there is: both are written anew before the journal's tail moves.
		r.stale = append(r.stale, BucketID(bucket))
	}
	r.lastLSN[bucket] = max(r.lastLSN[bucket], good.lsn)
	le := binary.LittleEndian
	first, n := r.c.geo.pageSlots(page)
	keys := r.keys[:0]
	for i := range n {
		if w := le.Uint64(good.p[summaryHeader+i*summaryEntry:]); w != 0 {
			keys = append(keys, key(w>>16))
		}
	}
	r.fetched += r.c.index.fetch(keys)
	for i := range n {
		q := good.p[summaryHeader+i*summaryEntry:]
		if w := le.Uint64(q); w != 0 {
			e := entry{slot: first + Slot(i), st: state(w) & stStored, sum: le.Uint32(q[8:])}
			r.install(key(w>>16), e, good.lsn)
		}
	}
}

func (r *recovery) lsnOf(s Slot) LSN { return r.pageLSN[r.c.geo.pageOf(s)] }

// install adds an entry of a summary page. Of two slots for one block the one whose page is newer
// is right, as far as the summaries can tell; the journal has what came after.
func (r *recovery) install(k key, e entry, lsn LSN) {
	c := r.c
	b := c.backing(k.backing())
	if e.st&stMask == 0 {
		r.misplaced(k, e.slot)
		return
	}
	if b == nil || int64(k.block())*BlockSize >= b.size { // the number may have been a larger device's
		r.estrange(k, e.slot, lsn)
		return
	}
	if old, ok := c.index.find(k); ok {
		loser := e.slot
		if r.lsnOf(old.slot) < lsn {
			loser = old.slot
			c.unmapEntry(b, k, old)
		}
		r.stale = append(r.stale, c.bucketOf(loser))
		if loser == e.slot {
			return
		}
	}
	c.index.insert(k, e)
	c.account(b, e.st, 1, e.slot)
}

// strangers are entries of a device that is not there, or that is smaller than it was.
type strangers struct {
	n    int
	lsn  LSN // of the newest page with one
	k    key // which is this
	slot Slot
}

// estrange notes one. Its bucket's summary is written anew before the record that explains it may go.
func (r *recovery) estrange(k key, slot Slot, lsn LSN) {
	s := r.strangers[k.backing()]
	if s == nil {
		if r.strangers == nil {
			r.strangers = map[BackingID]*strangers{}
		}
		s = &strangers{}
		r.strangers[k.backing()] = s
	}
	if s.n++; lsn >= s.lsn {
		s.lsn, s.k, s.slot = lsn, k, slot
	}
	if b := r.c.bucketOf(slot); len(r.stale) == 0 || r.stale[len(r.stale)-1] != b {
		r.stale = append(r.stale, b)
	}
}

// checkStrangers finds those of no device that was detached since.
func (r *recovery) checkStrangers() {
	for id, s := range r.strangers {
		if r.dropped[id] < s.lsn {
			r.misplaced(s.k, s.slot)
			r.dmg.wrong += s.n - 1
		}
		if r.c.backing(id) == nil {
			r.detached = append(r.detached, id)
		}
	}
	slices.Sort(r.detached)
	r.strangers = nil
}

func (r *recovery) misplaced(k key, slot Slot) {
	r.impossible("the index has block %d of backing device %d in slot %d, which cannot be", k.block(),
		k.backing(), slot)
}

// impossible notes an entry or a record that no ubcache writes.
func (r *recovery) impossible(format string, args ...any) {
	r.dmg.wrong++
	if r.dmg.wrong <= maxProblems {
		r.dmg.problems = append(r.dmg.problems, newProblem(ProblemRecord, DirtyLost, format, args...))
	}
}

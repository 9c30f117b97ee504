package cache

import (
	"encoding/binary"
	"fmt"
)

// recovery rebuilds the index: summaries first, then the journal from its tail, then the pending
// ring. A record changes only what no summary page newer than it has described: page LSNs say
// so, one per summarySlots slots.
type recovery struct {
	c       *Cache
	pageLSN []LSN      // per summary page
	lastLSN []LSN      // per bucket: newest change seen, for its age
	stale   []BucketID // buckets whose summary has to be written again
	next    LSN        // of the next record to replay
	pages   map[uint64]journalPage
	epoch   uint64          // of the page replayed last
	top     journalPage     // the newest; seq 0: there is none
	torn    map[uint64]bool // places in the ring whose pages are neither whole nor empty
	doubt   bool            // the page behind the end is one of them, so it is not known what it said
	pending int             // records that came from the pending ring
	lost    int             // dirty blocks of them that the SSD does not have
	// doubtful says that the SSD was lost: it may lack data that the pending ring speaks of.
	doubtful bool
	// readOnly leaves the SSD as it is, lenient loads what damage leaves.
	readOnly, lenient bool
	cold              bool // nothing of what was loaded may be used
	renew             bool // the journal is damaged, and not needed

	dmg       damage
	ringFirst LSN               // the first record of the pending ring, 0 if there is none
	ringDirty uint64            // the backing devices of which it has dirty blocks
	setBy     map[Slot]LSN      // lenient: the record that put a slot's block there
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
}

func (r *recovery) run() error {
	c := r.c
	r.pageLSN = make([]LSN, int64(c.geo.Buckets)*c.geo.summaryPages())
	r.lastLSN = make([]LSN, c.geo.Buckets)
	r.dmg.lost = map[int64]*lostPage{}
	if r.lenient {
		r.setBy = map[Slot]LSN{}
	}
	r.loadSummaries()
	r.loadJournal()
	if err := r.replay(); err != nil {
		return err
	}
	r.endBatches()
	recs, err := r.replayPending()
	if err != nil {
		return err
	}
	r.endBatches()
	if err := r.judge(); err != nil {
		return err
	}
	if err := r.rebuildOrders(); err != nil {
		return err
	}
	defer func() { r.pages = nil }()
	if r.readOnly {
		return nil
	}
	switch {
	case r.cold:
		err = r.startCold()
	case r.renew:
		// A record without effect, so that the journal has what comes before it.
		r.renewJournal()
		r.next++
		err = c.commitBlocking(&c.journal, r.next-1, []record{{kind: recUnmap, backing: 1}})
	case len(recs) > 0:
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
	if r.doubtful && !r.cold && !mutated(mutPendingTrusted) {
		if err := r.verifyPending(recs); err != nil {
			return err
		}
	}
	return r.dropMissed()
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
func (r *recovery) loadSummaries() {
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
		if c.opts.Progress != nil {
			c.opts.Progress(float64(at+n) / float64(total))
		}
	}
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
	if b == nil || e.st&stMask == 0 || int64(k.block())*BlockSize >= b.size {
		r.impossible("the index has block %d of backing device %d in slot %d, which cannot be", k.block(),
			k.backing(), e.slot)
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

// impossible notes an entry or a record that no ubcache writes.
func (r *recovery) impossible(format string, args ...any) {
	r.dmg.wrong++
	if r.dmg.wrong <= maxProblems {
		r.dmg.problems = append(r.dmg.problems, newProblem(ProblemRecord, DirtyLost, format, args...))
	}
}

// loadJournal reads the whole ring.
func (r *recovery) loadJournal() {
	c := r.c
	r.pages, r.torn = map[uint64]journalPage{}, map[uint64]bool{}
	const chunk = 1024
	total := int64(c.geo.JournalPages)
	buf := alignedBytes(int(min(chunk, total)) * pageSize)
	for at := int64(0); at < total; at += chunk {
		n := min(chunk, total-at)
		bad := readPages(c.ssd, buf[:n*pageSize], journalOff+at*pageSize)
		for i := range n {
			p, state := c.decodeJournalPage(buf[i*pageSize:][:pageSize], at+i)
			switch {
			case state == pageBad || bad[i]:
				r.torn[uint64(at+i)] = true
			case state == pageGood:
				r.pages[p.seq] = p
				if r.top.seq == 0 || p.epoch > r.top.epoch ||
					p.epoch == r.top.epoch && p.seq > r.top.seq {
					r.top = p
				}
			}
		}
	}
	// A superblock that is older than the journal has an older epoch.
	c.epoch = max(c.epoch, r.top.epoch)
}

// pageState is what is at the place of a journal page.
type pageState uint8

const (
	pageNone pageState = iota // nothing that this cache wrote
	pageBad                   // torn or damaged
	pageGood
)

// decodeJournalPage reads a page's header.
func (c *Cache) decodeJournalPage(p []byte, index int64) (jp journalPage, state pageState) {
	le := binary.LittleEndian
	if le.Uint32(p) != journalMagic || le.Uint64(p[jpCache:]) != cacheID(c.sb.UUID) {
		return jp, pageNone
	}
	var q [pageSize]byte
	copy(q[:], p)
	le.PutUint64(q[jpSum:], 0)
	jp = journalPage{
		seq: le.Uint64(p[jpSeq:]), epoch: le.Uint64(p[jpEpoch:]), tail: le.Uint64(p[jpTail:]),
		durable: le.Uint64(p[jpDurable:]), first: LSN(le.Uint64(p[jpFirst:])),
		count: int(le.Uint16(p[jpCount:])),
		noted: le.Uint32(p[jpFlags:])&jpHasDirty != 0, dirty: le.Uint64(p[jpDirty:]),
		ends: le.Uint32(p[jpFlags:])&pageEndsCommit != 0,
	}
	if metaSum(q[:], journalOff+index*pageSize) != le.Uint64(p[jpSum:]) && !mutated(mutTornPage) ||
		jp.count > pageRecords || int64(jp.seq%uint64(c.geo.JournalPages)) != index {
		return jp, pageBad
	}
	return jp, pageGood
}

// pageRecord reads record i of a page.
func (c *Cache) pageRecord(p []byte, i int) (record, error) {
	rec := decodeRecord(p[journalHeader+i*recordBytes:])
	return rec, rec.check(&c.geo)
}

// eachPage calls f with the pages of a run of the chain, in order.
func (r *recovery) eachPage(s journalRun, f func(journalPage, []byte) error) error {
	c := r.c
	const chunk = 256
	buf := alignedBytes(int(min(chunk, s.to-s.from)) * pageSize)
	for seq := s.from; seq < s.to; {
		at := seq % uint64(c.geo.JournalPages)
		n := min(s.to-seq, chunk, uint64(c.geo.JournalPages)-at)
		readPages(c.ssd, buf[:n*pageSize], c.geo.journalPageOff(seq))
		for i := range n {
			p := buf[i*pageSize:][:pageSize]
			jp, state := c.decodeJournalPage(p, int64(at+i))
			if state != pageGood || jp != r.pages[seq] {
				return fmt.Errorf("%w: journal page %d changed while it was read", ErrCorrupt, seq)
			}
			if err := f(jp, p); err != nil {
				return err
			}
			seq++
		}
	}
	return nil
}

// journalRun is journal pages [from, to), all of them there.
type journalRun struct{ from, to uint64 }

// chain finds the pages to replay: from the tail that the newest page names to the first one that
// is missing. A page is missing, too, if an earlier epoch wrote it: it was left beyond the end
// that a recovery had found. Pages known to have been durable must be there; where they are not, the
// chain has a gap, and goes on behind it.
func (r *recovery) chain() (runs []journalRun, end uint64) {
	if r.top.seq == 0 {
		return nil, 1
	}
	durable := uint64(0)
	for _, p := range r.pages {
		if p.epoch == r.top.epoch {
			durable = max(durable, p.durable)
		}
	}
	epoch := uint64(0)
	for at := r.top.tail; ; at++ {
		p, ok := r.pages[at]
		ok = ok && (p.epoch >= epoch || mutated(mutStaleEpoch))
		switch {
		case !ok && at > durable:
			return runs, at
		case !ok && (len(r.dmg.gaps) == 0 || r.dmg.gaps[len(r.dmg.gaps)-1].to < at):
			r.dmg.gaps = append(r.dmg.gaps, journalGap{at, at + 1})
		case !ok:
			r.dmg.gaps[len(r.dmg.gaps)-1].to++
		case len(runs) > 0 && runs[len(runs)-1].to == at:
			runs[len(runs)-1].to++
			epoch = p.epoch
		default:
			runs = append(runs, journalRun{at, at + 1})
			epoch = p.epoch
		}
	}
}

// history is the pages before the first run that are not overwritten yet.
func (r *recovery) history(runs []journalRun) journalRun {
	to := r.top.tail
	if len(runs) == 0 || runs[0].from != to {
		return journalRun{to, to}
	}
	from, next := to, r.pages[to]
	for {
		p, ok := r.pages[from-1]
		if !ok || p.epoch > next.epoch || p.first+LSN(p.count) != next.first {
			return journalRun{from, to}
		}
		from, next = from-1, p
	}
}

func (r *recovery) replay() error {
	runs, end := r.chain()
	j := &r.c.journal
	r.doubt = r.torn[end%j.pages] && r.top.seq < end
	r.next = 1
	if len(runs) > 0 {
		r.next = r.pages[runs[0].from].first
	}
	// Where a block has left a bucket and its summary does not know, the record that moved it is being
	// replayed, perhaps without effect; it must not leave the journal before the summary is right.
	for _, b := range r.stale {
		j.mu.queue.note(r.c.buckets, b, r.next)
	}
	if len(r.dmg.lost) > 0 {
		if h := r.history(runs); h.from < h.to {
			r.next = r.pages[h.from].first
			runs = append([]journalRun{h}, runs...)
		}
		for _, p := range r.dmg.lost {
			p.whole = r.next == 1 && len(runs) > 0
		}
	}
	for _, run := range runs {
		if err := r.eachPage(run, r.replayPage); err != nil {
			return err
		}
	}
	j.mu.tailSeq, j.mu.pageSeq, j.mu.durSeq = max(r.top.tail, 1), end, end-1
	j.mu.next = r.next
	j.durableLSN.Store(uint64(r.next))
	return nil
}

// replayPage applies the records of a page that were not applied before.
func (r *recovery) replayPage(p journalPage, data []byte) error {
	j := &r.c.journal
	if p.first > r.next { // what is between them is lost
		r.next, r.dmg.after = p.first, p.first
	}
	j.firstLSN[p.seq%j.pages] = p.first
	if p.epoch != r.epoch {
		r.endBatches() // a flush at the start had nothing to write
		r.epoch = p.epoch
	}
	for i := range p.count {
		l := p.first + LSN(i)
		if l != r.next {
			continue
		}
		r.next++
		rec, err := r.c.pageRecord(data, i)
		if err != nil {
			r.impossible("record %d of the journal: %v", l, err)
			r.dmg.after = l + 1
			continue
		}
		if mutated(mutSkipRecord) && i == p.count-1 {
			continue
		}
		r.apply(l, &rec)
	}
	if p.ends {
		r.endBatches()
	}
	return nil
}

// touch notes that a bucket's summary is behind.
func (r *recovery) touch(s Slot, l LSN) {
	c := r.c
	b := c.bucketOf(s)
	c.journal.mu.queue.note(c.buckets, b, l)
	r.lastLSN[b] = max(r.lastLSN[b], l)
}

// drop takes an entry out if the record is news to its summary page.
func (r *recovery) drop(k key, e entry, l LSN) {
	if l < r.lsnOf(e.slot) {
		return
	}
	r.c.unmapEntry(r.c.backing(k.backing()), k, e)
	r.touch(e.slot, l)
}

// apply carries out a record that was checked.
func (r *recovery) apply(l LSN, rec *record) {
	c := r.c
	switch rec.kind {
	case recMap:
		r.requeue(l, rec)
		r.applyMap(l, rec)
	case recSettled:
		r.settled(rec.backing, LSN(rec.block))
	case recUnmap:
		for i := range Block(rec.sum) {
			k := makeKey(rec.backing, rec.block+i)
			e, ok := c.index.find(k)
			if ok && (rec.flags&recCleanOnly == 0 || e.st&stDirty == 0) {
				r.drop(k, e, l)
			}
		}
	case recClean:
		k := makeKey(rec.backing, rec.block)
		e, ok := c.index.find(k)
		if ok && uint32(e.slot) == rec.slot && l >= r.lsnOf(e.slot) {
			c.setState(c.backing(rec.backing), e, e.st&^(stDirty|stBad))
			r.touch(e.slot, l)
		}
	case recFree:
		for i := range c.geo.summaryPages() {
			if p := r.dmg.lost[int64(rec.slot)*c.geo.summaryPages()+i]; p != nil {
				p.whole = true
			}
		}
		c.locked(BucketID(rec.slot), func(_ *stripe, k key, e entry) { r.drop(k, e, l) })
		if first := Slot(int64(rec.slot) * c.geo.slotsPerBucket()); l >= r.lsnOf(first) {
			r.touch(first, l)
		}
	case recDrop:
		r.settled(rec.backing, l)
		for b := range c.buckets {
			c.locked(BucketID(b), func(_ *stripe, k key, e entry) {
				if k.backing() == rec.backing {
					r.drop(k, e, l)
				}
			})
		}
	}
}

func (r *recovery) applyMap(l LSN, rec *record) {
	c := r.c
	slot, k := Slot(rec.slot), makeKey(rec.backing, rec.block)
	old, ok := c.index.find(k)
	if ok {
		if l < r.lsnOf(old.slot) {
			return // a newer summary knows better
		}
		r.drop(k, old, l)
	}
	if l < r.lsnOf(slot) {
		return // mapped and unmapped again before the slot's summary was written
	}
	b := c.backing(rec.backing)
	if b == nil {
		// The device was detached later; its drop record follows.
		return
	}
	if p := r.dmg.lost[c.geo.pageOf(slot)]; p != nil {
		p.known[slot] = true
	}
	if r.setBy != nil {
		r.setBy[slot] = l
	}
	if was, st := c.index.at(slot); was != 0 {
		r.drop(was, entry{slot: slot, st: st}, l)
	}
	e := entry{slot: slot, st: state(rec.mask), sum: rec.sum}
	if rec.flags&recDirty != 0 {
		e.st |= stDirty
		if rec.flags&recBad != 0 {
			e.st |= stBad
		}
	}
	if rec.flags&recPinned != 0 && !mutated(mutPinForgotten) {
		e.st |= stPinned
	}
	c.index.insert(k, e)
	c.account(b, e.st, 1, slot)
	r.touch(slot, l)
}

// replayPending applies what a killed daemon left in the pending ring, and returns the records, which
// are to be written to the journal, so that from there on the SSD has everything.
func (r *recovery) replayPending() ([]record, error) {
	c := r.c
	epoch := c.epoch
	left, err := loadPending(c.opts.Pending, c.sb.UUID, epoch)
	if err == nil && len(left.list) == 0 && c.sb.damaged != nil {
		// The copy of the superblock that is lost was perhaps the one of the last start.
		if left, err = loadPending(c.opts.Pending, c.sb.UUID, epoch+1); len(left.list) > 0 {
			c.epoch++
		}
	}
	if err != nil {
		r.dmg.missing = append(r.dmg.missing, "the pending ring is damaged")
		r.dmg.problems = append(r.dmg.problems, newProblem(ProblemPending, DirtyLost, "%v", err))
		return nil, nil
	}
	first, recs := left.first, left.list
	r.doubtful = left.lost
	if len(recs) == 0 {
		return nil, nil
	}
	r.ringFirst = first
	for i := range recs {
		if recs[i].kind == recMap && recs[i].flags&recDirty != 0 {
			r.ringDirty |= 1 << ((recs[i].backing - 1) % MaxBackings)
		}
	}
	if first > r.next {
		if !r.lenient {
			return nil, nil // judge finds it
		}
		r.checkEnd()
		r.next = first
	}
	skip := min(int(r.next-first), len(recs))
	recs = recs[skip:]
	for i := range recs {
		if err := recs[i].check(&c.geo); err != nil {
			return nil, fmt.Errorf("pending ring: %w", err)
		}
		r.apply(r.next, &recs[i])
		r.next++
	}
	r.pending = len(recs)
	return recs, nil
}

// commitBlocking is a commit before there are lanes.
func (c *Cache) commitBlocking(j *journal, from LSN, recs []record) error {
	if err := c.endStop(); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	if err := c.ssd.Sync(); err != nil {
		return fmt.Errorf("flush data: %w", err)
	}
	k := &j.commit
	ring := pendingRing{mem: alignedBytes(pageSize + len(recs)*recordBytes), cap: uint64(len(recs))}
	for i := range recs {
		recs[i].encode(ring.at(from + LSN(i)))
	}
	saved := j.mu.ring
	j.mu.ring = ring
	defer func() { j.mu.ring = saved }()
	k.target = from + LSN(len(recs))
	for l := from; l < k.target; {
		if j.mu.pageSeq-j.mu.tailSeq+1 >= j.pages {
			return fmt.Errorf("%w: journal has no room for %d pending records", ErrCorrupt, len(recs))
		}
		j.durableLSN.Store(uint64(l)) // pack numbers pages from here
		p := alignedBytes(pageSize)
		off := c.geo.journalPageOff(j.mu.pageSeq)
		next := k.pack(p, l, l+pageRecords >= k.target)
		if _, err := c.ssd.WriteAt(p, off); err != nil {
			return fmt.Errorf("write journal: %w", err)
		}
		j.mu.pageSeq++
		l = next
	}
	if err := c.ssd.Sync(); err != nil {
		return fmt.Errorf("flush journal: %w", err)
	}
	j.mu.durSeq = j.mu.pageSeq - 1
	j.mu.next = k.target
	j.durableLSN.Store(uint64(k.target))
	return nil
}

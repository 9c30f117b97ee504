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
	stale   []BucketID // buckets whose summary has blocks that are elsewhere by now
	next    LSN        // of the next record to replay
	pages   map[uint64]journalPage
	pending int // records that came from the pending ring
	lost    int // dirty blocks of them that the SSD does not have
	// readOnly leaves the SSD as it is.
	readOnly bool
}

// journalPage is the header of a journal page.
type journalPage struct {
	seq, epoch, tail, durable uint64
	first                     LSN
	count                     int
}

func (r *recovery) run() error {
	c := r.c
	r.pageLSN = make([]LSN, int64(c.geo.Buckets)*c.geo.summaryPages())
	r.lastLSN = make([]LSN, c.geo.Buckets)
	if err := r.loadSummaries(); err != nil {
		return err
	}
	if err := r.loadJournal(); err != nil {
		return err
	}
	if err := r.replay(); err != nil {
		return err
	}
	if err := r.replayPending(); err != nil {
		return err
	}
	return r.dropMissed()
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
		for i := range buf {
			off := c.geo.SummaryOff[i] + at*pageSize
			if _, err := c.ssd.ReadAt(buf[i][:n*pageSize], off); err != nil {
				return fmt.Errorf("read summaries: %w", err)
			}
		}
		for j := range n {
			if err := r.loadPage(buf[0][j*pageSize:][:pageSize], buf[1][j*pageSize:][:pageSize],
				at+j); err != nil {
				return err
			}
		}
		if c.opts.Progress != nil {
			c.opts.Progress(float64(at+n) / float64(total))
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

func (c *Cache) checkSummary(p []byte, copyNo int, page int64) (summaryState, LSN) {
	le := binary.LittleEndian
	off := c.geo.SummaryOff[copyNo] + page*pageSize
	if le.Uint32(p) != summaryMagic || le.Uint64(p[smCache:]) != cacheID(c.sb.UUID) {
		return summaryNone, 0
	}
	var q [pageSize]byte
	copy(q[:], p)
	le.PutUint64(q[smSum:], 0)
	if metaSum(q[:], off) != le.Uint64(p[smSum:]) || le.Uint64(p[smOff:]) != uint64(off) {
		return summaryBad, 0
	}
	return summaryGood, LSN(le.Uint64(p[smLSN:]))
}

func (r *recovery) loadPage(a, b []byte, page int64) error {
	sa, la := r.c.checkSummary(a, 0, page)
	sb, lb := r.c.checkSummary(b, 1, page)
	p, lsn := a, la
	switch {
	case sa == summaryGood && (sb != summaryGood || la >= lb):
	case sb == summaryGood:
		p, lsn = b, lb
	case sa == summaryBad && sb == summaryBad:
		return fmt.Errorf("%w: both copies of summary page %d fail their checksums", ErrCorrupt, page)
	default:
		return nil
	}
	r.pageLSN[page] = lsn
	bucket := page / r.c.geo.summaryPages()
	r.lastLSN[bucket] = max(r.lastLSN[bucket], lsn)
	le := binary.LittleEndian
	first, n := r.c.geo.pageSlots(page)
	for i := range n {
		q := p[summaryHeader+i*summaryEntry:]
		if w := le.Uint64(q); w != 0 {
			e := entry{slot: first + Slot(i), st: state(w) & stStored, sum: le.Uint32(q[8:])}
			if err := r.install(key(w>>16), e, lsn); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *recovery) lsnOf(s Slot) LSN { return r.pageLSN[r.c.geo.pageOf(s)] }

// install adds an entry of a summary page. Of two slots for one block the one whose page is newer
// is right, as far as the summaries can tell; the journal has what came after.
func (r *recovery) install(k key, e entry, lsn LSN) error {
	c := r.c
	b := c.backing(k.backing())
	if b == nil || e.st&stMask == 0 || int64(k.block())*BlockSize >= b.size {
		return fmt.Errorf("%w: summary has block %d of backing device %d, which cannot be",
			ErrCorrupt, k.block(), k.backing())
	}
	if old, ok := c.index.find(k); ok {
		loser := e.slot
		if r.lsnOf(old.slot) < lsn {
			loser = old.slot
			c.unmapEntry(b, k, old)
		}
		r.stale = append(r.stale, c.bucketOf(loser))
		if loser == e.slot {
			return nil
		}
	}
	c.index.insert(k, e)
	c.account(b, e.st, 1, e.slot)
	return nil
}

// loadJournal reads the whole ring.
func (r *recovery) loadJournal() error {
	c := r.c
	r.pages = map[uint64]journalPage{}
	const chunk = 1024
	total := int64(c.geo.JournalPages)
	buf := alignedBytes(int(min(chunk, total)) * pageSize)
	for at := int64(0); at < total; at += chunk {
		n := min(chunk, total-at)
		if _, err := c.ssd.ReadAt(buf[:n*pageSize], journalOff+at*pageSize); err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
		for i := range n {
			if p, ok := c.decodeJournalPage(buf[i*pageSize:][:pageSize], at+i); ok {
				r.pages[p.seq] = p
			}
		}
	}
	return nil
}

// decodeJournalPage reads a page's header; ok is false if the page is not one of this cache, or
// torn.
func (c *Cache) decodeJournalPage(p []byte, index int64) (jp journalPage, ok bool) {
	le := binary.LittleEndian
	if le.Uint32(p) != journalMagic || le.Uint64(p[jpCache:]) != cacheID(c.sb.UUID) {
		return jp, false
	}
	var q [pageSize]byte
	copy(q[:], p)
	le.PutUint64(q[jpSum:], 0)
	jp = journalPage{
		seq: le.Uint64(p[jpSeq:]), epoch: le.Uint64(p[jpEpoch:]), tail: le.Uint64(p[jpTail:]),
		durable: le.Uint64(p[jpDurable:]), first: LSN(le.Uint64(p[jpFirst:])),
		count: int(le.Uint16(p[jpCount:])),
	}
	ok = metaSum(q[:], journalOff+index*pageSize) == le.Uint64(p[jpSum:]) &&
		jp.count <= pageRecords && int64(jp.seq%uint64(c.geo.JournalPages)) == index
	return jp, ok
}

// pageRecord reads record i of a page.
func (c *Cache) pageRecord(p []byte, i int) (record, error) {
	rec := decodeRecord(p[journalHeader+i*recordBytes:])
	return rec, rec.check(&c.geo)
}

// eachPage calls f with the pages of the chain, in order.
func (r *recovery) eachPage(from, to uint64, f func(journalPage, []byte) error) error {
	c := r.c
	const chunk = 256
	buf := alignedBytes(chunk * pageSize)
	for seq := from; seq < to; {
		at := seq % uint64(c.geo.JournalPages)
		n := min(to-seq, chunk, uint64(c.geo.JournalPages)-at)
		if _, err := c.ssd.ReadAt(buf[:n*pageSize], c.geo.journalPageOff(seq)); err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
		for i := range n {
			p := buf[i*pageSize:][:pageSize]
			jp, ok := c.decodeJournalPage(p, int64(at+i))
			if !ok || jp != r.pages[seq] {
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

// chain finds the pages to replay: from the tail that the newest page names to the first one that
// is missing. A page is missing, too, if an earlier epoch wrote it: it was left beyond the end
// that a recovery had found. Pages known to have been durable must be there.
func (r *recovery) chain() (from, to uint64, err error) {
	var top journalPage
	found := false
	durable := uint64(0)
	for _, p := range r.pages {
		if !found || p.epoch > top.epoch || (p.epoch == top.epoch && p.seq > top.seq) {
			top, found = p, true
		}
	}
	if !found {
		return 1, 1, nil
	}
	for _, p := range r.pages {
		if p.epoch == top.epoch {
			durable = max(durable, p.durable)
		}
	}
	epoch := uint64(0)
	at := top.tail
	for ; ; at++ {
		p, ok := r.pages[at]
		if !ok || p.epoch < epoch {
			break
		}
		epoch = p.epoch
	}
	if at <= durable {
		return 0, 0, fmt.Errorf("%w: journal page %d is lost (durable up to %d)", ErrCorrupt, at, durable)
	}
	return top.tail, at, nil
}

func (r *recovery) replay() error {
	from, to, err := r.chain()
	if err != nil {
		return err
	}
	j := &r.c.journal
	r.next = 1
	if p, ok := r.pages[from]; ok && from < to {
		r.next = p.first
	}
	// The record that moved those blocks is being replayed, perhaps without effect; it must not
	// leave the journal before their summaries are right.
	for _, b := range r.stale {
		j.mu.queue.note(r.c.buckets, b, r.next)
	}
	if err := r.eachPage(from, to, r.replayPage); err != nil {
		return err
	}
	j.mu.tailSeq, j.mu.pageSeq, j.mu.durSeq = from, to, to-1
	j.mu.next = r.next
	j.durableLSN.Store(uint64(r.next))
	r.pages = nil
	return nil
}

// replayPage applies the records of a page that were not applied before.
func (r *recovery) replayPage(p journalPage, data []byte) error {
	j := &r.c.journal
	if p.first > r.next {
		return fmt.Errorf("%w: journal page %d begins at record %d instead of %d",
			ErrCorrupt, p.seq, p.first, r.next)
	}
	j.firstLSN[p.seq%j.pages] = p.first
	for i := range p.count {
		l := p.first + LSN(i)
		if l != r.next {
			continue
		}
		rec, err := r.c.pageRecord(data, i)
		if err != nil {
			return err
		}
		if err := r.apply(l, &rec); err != nil {
			return err
		}
		r.next++
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

func (r *recovery) apply(l LSN, rec *record) error {
	c := r.c
	if err := rec.check(&c.geo); err != nil {
		return err
	}
	switch rec.kind {
	case recMap:
		return r.applyMap(l, rec)
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
		c.locked(BucketID(rec.slot), func(_ *stripe, k key, e entry) { r.drop(k, e, l) })
		if first := Slot(int64(rec.slot) * c.geo.slotsPerBucket()); l >= r.lsnOf(first) {
			r.touch(first, l)
		}
	case recDrop:
		for b := range c.buckets {
			c.locked(BucketID(b), func(_ *stripe, k key, e entry) {
				if k.backing() == rec.backing {
					r.drop(k, e, l)
				}
			})
		}
	}
	return nil
}

func (r *recovery) applyMap(l LSN, rec *record) error {
	c := r.c
	slot, k := Slot(rec.slot), makeKey(rec.backing, rec.block)
	old, ok := c.index.find(k)
	if ok {
		if l < r.lsnOf(old.slot) {
			return nil // a newer summary knows better
		}
		r.drop(k, old, l)
	}
	if l < r.lsnOf(slot) {
		return nil // mapped and unmapped again before the slot's summary was written
	}
	b := c.backing(rec.backing)
	if b == nil {
		// The device was detached later; its drop record follows.
		return nil
	}
	if was, st := c.index.at(slot); was != 0 {
		r.drop(was, entry{slot: slot, st: st}, l)
	}
	e := entry{slot: slot, st: state(rec.mask), sum: rec.sum}
	if rec.flags&recDirty != 0 {
		e.st |= stDirty
	}
	if rec.flags&recPinned != 0 {
		e.st |= stPinned
	}
	c.index.insert(k, e)
	c.account(b, e.st, 1, slot)
	r.touch(slot, l)
	return nil
}

// replayPending applies what a killed daemon left in the pending ring and writes it to the
// journal, so that from here on the SSD has everything.
func (r *recovery) replayPending() error {
	c := r.c
	j := &c.journal
	left, err := loadPending(c.opts.Pending, c.sb.UUID, c.sb.Epoch)
	if err != nil {
		return err
	}
	first, recs := left.first, left.list
	if len(recs) > 0 && first > r.next {
		return fmt.Errorf("%w: pending ring begins at record %d, the journal ends at %d",
			ErrCorrupt, first, r.next)
	}
	skip := min(int(r.next-first), len(recs))
	recs = recs[skip:]
	if len(recs) == 0 {
		return nil
	}
	from := r.next
	for i := range recs {
		if err := r.apply(r.next, &recs[i]); err != nil {
			return err
		}
		r.next++
	}
	r.pending = len(recs)
	if r.readOnly {
		return nil
	}
	if err := c.commitBlocking(j, from, recs); err != nil {
		return err
	}
	if left.lost {
		return r.verifyPending(recs)
	}
	return nil
}

// commitBlocking is a commit before there are lanes.
func (c *Cache) commitBlocking(j *journal, from LSN, recs []record) error {
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
		next := k.pack(p, l)
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

package cache

import (
	"encoding/binary"
	"fmt"
)

// loadJournal reads the whole ring.
func (r *recovery) loadJournal() error {
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
		if err := r.step(n); err != nil {
			return err
		}
	}
	// A superblock that is older than the journal has an older epoch.
	c.epoch = max(c.epoch, r.top.epoch)
	return nil
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
		ends: le.Uint32(p[jpFlags:])&pageEndsCommit != 0, images: le.Uint64(p[jpImages:]),
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
		if err := r.step(int64(n)); err != nil {
			return err
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
		if n := len(runs); n > 0 && runs[n-1].to == at && at > durable && p.epoch == epoch && !mutated(mutEpochKept) {
			last := r.pages[at-1]
			ok = ok && p.first == last.first+LSN(last.count)
		}
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

// clearTorn takes away what is left of a page behind the end of the journal. The next commit goes there, and if a power
// cut tears that, too, what it has written may be just what the old page lacked: its records would be believed then,
// after all that was read and written without them.
func (r *recovery) clearTorn() error {
	j := &r.c.journal
	if !r.torn[j.mu.pageSeq%j.pages] {
		return nil
	}
	if _, err := r.c.ssd.WriteAt(alignedBytes(pageSize), r.c.geo.journalPageOff(j.mu.pageSeq)); err != nil {
		return err
	}
	return r.c.ssd.Sync()
}

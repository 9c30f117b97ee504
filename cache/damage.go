package cache

import (
	"fmt"
	"slices"
	"strings"
)

// damage is what recovery could not read or believe. Nothing of it stops the loading; judge decides
// in the end what it means.
//
// # What is lost with what
//
// A summary page of which both copies are lost is built anew from the journal, which is a history
// that reaches back beyond its tail until its pages are overwritten: a bucket that was freed in it
// is known from there on. Of other slots it is known what they hold if they were mapped in it. The
// rest is unknown; all other blocks are as certain as ever, for a newer place of theirs would be in
// the journal.
//
// Lost records of the journal may have changed anything. What is known of a slot is certain only if
// it was recorded, or its summary written, after them.
//
// # When a cache starts all the same
//
// If it is proven that nothing was dirty then only copies are lost: unknown slots are taken as
// empty, and a damaged journal makes the cache start cold. Otherwise the start is refused, for
// a block whose dirty copy is not known any more would be read from the backing device as something
// older.
type damage struct {
	copies   []summaryCopy // one copy of a page is lost
	lost     map[int64]*lostPage
	gaps     []journalGap
	after    LSN // records before this one are missing somewhere; 0: none
	end      LSN // the journal ends before this record, which it once had; 0: it does not
	wrong    int // entries and records that cannot be
	missing  []string
	problems []Problem // as far as they are of no other kind
}

// summaryCopy is a copy of a summary page that is to be written anew.
type summaryCopy struct {
	page   int64
	copyNo int
}

// lostPage is a summary page of which both copies are lost.
type lostPage struct {
	whole bool // the journal has all that was in it
	known map[Slot]bool
}

// journalGap is journal pages [from, to) that are lost.
type journalGap struct{ from, to uint64 }

// unknown is how many slots a lost page has of which nothing is known.
func (r *recovery) unknown(page int64) int {
	p := r.dmg.lost[page]
	if p.whole {
		return 0
	}
	_, n := r.c.geo.pageSlots(page)
	return n - len(p.known)
}

func (r *recovery) unknownSlots() (n int) {
	for page := range r.dmg.lost {
		n += r.unknown(page)
	}
	return n
}

// journalDamaged reports whether changes of the index may be unknown.
func (d *damage) journalDamaged() bool {
	return len(d.gaps) > 0 || d.after != 0 || d.end != 0 || d.wrong > 0 || len(d.missing) > 0
}

// judge decides whether the cache can start. With damage that may hide dirty data it is refused.
func (r *recovery) judge() error {
	d := &r.dmg
	r.checkStrangers()
	r.checkEnd()
	r.checkCounts()
	if r.unneeded() {
		r.renew = d.journalDamaged()
		d.gaps, d.after, d.end = nil, 0, 0
	}
	if r.lenient || !d.journalDamaged() && r.unknownSlots() == 0 {
		return nil
	}
	why, proven := r.provenClean()
	if !proven {
		return fmt.Errorf("%w: %s, and %s", ErrDirtyDamage, r.summary(), why)
	}
	r.cold = d.journalDamaged()
	return nil
}

// unneeded reports whether the journal is not needed: the summaries of a cache that was stopped in
// order have all that was in it.
func (r *recovery) unneeded() bool {
	sb, d := r.c.sb, &r.dmg
	return sb.Clean && sb.LSN != 0 && len(d.lost) == 0 && d.wrong == 0 && len(d.missing) == 0 &&
		d.end <= sb.LSN && d.after <= sb.LSN && r.ringFirst == 0
}

// Repaired says what was wrong with the metadata when the cache was opened and what was done about
// it; empty if nothing was.
func (c *Cache) Repaired() string { return c.repaired }

// summary is all the damage in one line.
func (r *recovery) summary() string {
	d := &r.dmg
	var list []string
	if n := r.unknownSlots(); n > 0 {
		list = append(list, fmt.Sprintf("both copies of %d summary pages are lost (up to %d blocks)",
			len(d.lost), n))
	}
	if len(d.gaps) > 0 {
		n := uint64(0)
		for _, g := range d.gaps {
			n += g.to - g.from
		}
		list = append(list, fmt.Sprintf("%d pages of the journal are lost", n))
	} else if d.after != 0 {
		list = append(list, "records of the journal are lost")
	}
	if d.end != 0 {
		list = append(list, "the newest pages of the journal are lost")
	}
	if d.wrong > 0 {
		list = append(list, fmt.Sprintf("%d entries of journal or index cannot be", d.wrong))
	}
	return strings.Join(append(list, d.missing...), ", ")
}

// checkEnd finds out whether the journal ends too early: summaries and superblocks are never ahead
// of it.
func (r *recovery) checkEnd() {
	end := r.c.sb.LSN
	for _, l := range r.pageLSN {
		end = max(end, l)
	}
	if r.ringFirst != 0 {
		end = max(end, r.ringFirst)
	}
	if end > r.next {
		r.dmg.end = end
	}
}

// checkCounts compares the dirty blocks with those that there were at a stop in order.
func (r *recovery) checkCounts() {
	c := r.c
	if !c.sb.Clean {
		return
	}
	for i := range c.sb.Backings {
		rec := &c.sb.Backings[i]
		b := c.backing(rec.ID)
		if rec.Dirty == 0 || b == nil {
			continue
		}
		if want := int64(rec.Dirty - 1); b.dirty.Load() != want {
			r.dmg.missing = append(r.dmg.missing, fmt.Sprintf("%s had %d dirty blocks when it was "+
				"stopped and has %d", rec.Name, want, b.dirty.Load()))
		}
	}
}

// provenClean reports whether it is certain that no backing device had dirty data. The evidence is
// durable: the superblock's counts, of the last stop or start, and the newest journal page's note of
// who has been dirty since then.
func (r *recovery) provenClean() (why string, proven bool) {
	c := r.c
	spared, all := uint64(0), len(c.sb.Backings) > 0
	for i := range c.sb.Backings {
		if id := c.sb.Backings[i].ID; slices.Contains(c.opts.GiveUp, id) {
			spared |= 1 << (id - 1)
		} else {
			all = false
		}
	}
	if all {
		return "", true
	}
	counts := func(when string) (string, bool) {
		for i := range c.sb.Backings {
			b := &c.sb.Backings[i]
			if spared&(1<<(b.ID-1)) != 0 {
				continue
			}
			switch b.Dirty {
			case 0:
				return "it is not recorded whether dirty data was there", false
			case 1:
			default:
				return fmt.Sprintf("%s had %d dirty blocks at the last %s", b.Name, b.Dirty-1, when), false
			}
		}
		return "", true
	}
	if r.ringDirty&^spared != 0 {
		return "the pending ring has dirty blocks", false
	}
	if c.sb.damaged == nil {
		if c.sb.Clean {
			return counts("stop")
		}
		if why, ok := counts("start"); !ok {
			return why, false
		}
	}
	top := &r.top
	switch {
	case r.dmg.end > top.first+LSN(top.count) || r.doubt:
		return "the newest pages of the journal are not there to say whether there was dirty data", false
	case top.epoch < c.sb.Epoch && c.sb.damaged == nil && top.seq != 0:
		return "", true // nothing was committed since the start
	case top.epoch < c.sb.Epoch || top.seq == 0:
		return "it is not recorded whether there was dirty data", false
	case !top.noted:
		return "an older ubcache ran it, which does not record whether there is dirty data", false
	case top.dirty&^spared != 0:
		return "there may have been dirty data", false
	}
	return "", true
}

// renewJournal begins the journal anew, behind all that was ever written of it.
func (r *recovery) renewJournal() {
	c := r.c
	j := &c.journal
	next, seq := max(r.next, r.dmg.end, r.dmg.after, c.sb.LSN), max(j.mu.pageSeq, 1)
	for _, p := range r.pages {
		next, seq = max(next, p.first+LSN(p.count)), max(seq, p.seq+1, p.durable+1)
	}
	r.next = next
	j.mu.tailSeq, j.mu.pageSeq, j.mu.durSeq = seq, seq, seq-1
	j.mu.next = next
	j.durableLSN.Store(uint64(next))
	j.mu.queue = bucketQueue{head: noBucket, tail: noBucket}
	for i := range c.buckets {
		c.buckets[i].dirtyLSN = 0
	}
}

// startCold empties the index and makes that durable, with records at the start of a new journal that
// drop every backing device.
func (r *recovery) startCold() error {
	c := r.c
	r.renewJournal()
	next := r.next
	for i := range c.buckets {
		c.locked(BucketID(i), func(_ *stripe, k key, e entry) {
			c.unmapEntry(c.backing(k.backing()), k, e)
		})
	}
	ids := r.detached
	for i := range c.sb.Backings {
		ids = append(ids, c.sb.Backings[i].ID)
	}
	for page, l := range r.pageLSN {
		if l != 0 {
			r.noteBucket(BucketID(int64(page)/c.geo.summaryPages()), next)
		}
	}
	return r.commitNew(ids)
}

// commitNew begins the journal, from which on nothing is cached of these devices. Some record has to be there: the journal has
// what comes before it.
func (r *recovery) commitNew(ids []BackingID) error {
	if len(ids) > 0 {
		return r.commitDrops(ids)
	}
	r.next++
	return r.c.commitBlocking(&r.c.journal, r.next-1, []record{{kind: recUnmap, backing: 1}})
}

func (r *recovery) noteBucket(b BucketID, l LSN) {
	r.c.journal.mu.queue.note(r.c.buckets, b, l)
	r.lastLSN[b] = max(r.lastLSN[b], l)
}

// dropContents takes everything of a backing device out of the cache, before there are lanes.
func (r *recovery) dropContents(ids []BackingID) error {
	c := r.c
	for _, id := range ids {
		if b := c.backing(id); b != nil {
			c.dropQueue(b)
		}
	}
	for i := range c.buckets {
		c.locked(BucketID(i), func(_ *stripe, k key, e entry) {
			if slices.Contains(ids, k.backing()) {
				c.unmapEntry(c.backing(k.backing()), k, e)
				r.noteBucket(BucketID(i), r.next)
			}
		})
	}
	return r.commitDrops(ids)
}

func dropRecords(ids []BackingID) (recs []record) {
	for _, id := range ids {
		recs = append(recs, record{kind: recDrop, backing: id})
	}
	return recs
}

func (r *recovery) commitDrops(ids []BackingID) error {
	recs := dropRecords(ids)
	if len(recs) == 0 {
		return nil
	}
	from := r.next
	r.next += LSN(len(recs))
	return r.c.commitBlocking(&r.c.journal, from, recs)
}

// repair writes anew what was lost of the summaries. The journal has all that goes into them. A copy
// that cannot be written does no harm as long as there is another.
func (r *recovery) repair() error {
	c, d := r.c, &r.dmg
	buckets := map[BucketID]bool{} // true: nothing of it must fail
	for _, k := range d.copies {
		buckets[BucketID(k.page/c.geo.summaryPages())] = false
	}
	for page := range d.lost {
		buckets[BucketID(page/c.geo.summaryPages())] = true
	}
	if len(buckets) == 0 {
		return nil
	}
	per := c.geo.summaryPages() * pageSize
	buf := alignedBytes(int(per))
	for copyNo := range 2 {
		for b, must := range buckets {
			c.snapshot(b, r.next, buf)
			off := c.geo.summaryOff(copyNo, b)
			for at := int64(0); at < per; at += pageSize {
				sealSummary(buf[at:at+pageSize], off+at)
			}
			if _, err := c.ssd.WriteAt(buf, off); err != nil && must && copyNo == 0 {
				return fmt.Errorf("write summary: %w", err)
			}
		}
		if err := c.ssd.Sync(); err != nil {
			return fmt.Errorf("flush summaries: %w", err)
		}
	}
	return nil
}

// repairs says in one line what repair and startCold did.
func (r *recovery) repairs() string {
	var list []string
	if n := len(r.c.sb.damaged); n > 0 {
		list = append(list, "one copy of the superblock was damaged")
	}
	if n := len(r.dmg.copies); n > 0 {
		list = append(list, fmt.Sprintf("%d summary pages had one damaged copy", n))
	}
	if r.cold {
		list = append(list, r.summary()+"; the cache starts cold")
	} else if r.renew {
		list = append(list, "pages of the journal were lost that were not needed any more")
	} else if len(r.dmg.lost) > 0 {
		s := fmt.Sprintf("both copies of %d summary pages were lost and built anew from the journal",
			len(r.dmg.lost))
		if n := r.unknownSlots(); n > 0 {
			s += fmt.Sprintf(", but for %d slots, in which nothing was dirty", n)
		}
		list = append(list, s)
	}
	return strings.Join(list, ", ")
}

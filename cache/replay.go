package cache

import "fmt"

func (r *recovery) replay() error {
	runs, end := r.chain()
	j := &r.c.journal
	r.doubt = r.torn[end%j.pages] && r.top.seq < end
	r.next = 1
	switch {
	case len(runs) > 0:
		if r.next = r.pages[runs[0].from].first; runs[0].from != r.top.tail {
			r.dmg.after = r.next // the first pages are lost
		}
	case r.top.seq != 0 && len(r.dmg.gaps) == 0:
		// The tail was at the end, as after a stop in order, and the first commit from there was torn: of its
		// pages, all full but the last, the first is missing. So nothing from there on was ever durable.
		r.next = r.top.first - LSN((r.top.seq-r.top.tail)*pageRecords)
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
	j.firstLSN[p.seq%j.pages], r.last = p.first, p
	r.fetchPage(p, data)
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
		inRing := len(r.ringRecs) > 0 && l >= r.ringFirst // a failed commit has left it
		if r.c.sb.doubt.has(l) || inRing {
			r.noteBefore(&rec)
		}
		if inRing {
			r.noteFresh(&rec)
			r.left++
		}
		r.apply(l, &rec)
		if r.c.sb.doubt.has(l) {
			r.doubted = append(r.doubted, rec)
			if rec.kind == recMap {
				r.note(Slot(rec.slot))
			}
		}
	}
	if p.ends {
		r.endBatches()
	}
	return nil
}

// fetchPage brings what the records of a page need of the index into the CPU's caches.
func (r *recovery) fetchPage(p journalPage, data []byte) {
	keys := r.keys[:0]
	for i := range p.count {
		if rec := decodeRecord(data[journalHeader+i*recordBytes:]); rec.kind == recMap || rec.kind == recClean {
			keys = append(keys, makeKey(rec.backing, rec.block))
		}
	}
	r.fetched += r.c.index.fetch(keys)
}

// fetchBucket does so for what is in a bucket.
func (r *recovery) fetchBucket(b BucketID) {
	keys := r.keys[:0]
	r.c.slotsOf(b, func(s Slot) {
		if len(keys) == cap(keys) {
			r.fetched += r.c.index.fetch(keys)
			keys = keys[:0]
		}
		if k, _ := r.c.index.at(s); k != 0 {
			keys = append(keys, k)
		}
	})
	r.fetched += r.c.index.fetch(keys)
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
		r.fetchBucket(BucketID(rec.slot))
		c.locked(BucketID(rec.slot), func(_ *stripe, k key, e entry) { r.drop(k, e, l) })
		if first := Slot(int64(rec.slot) * c.geo.slotsPerBucket()); l >= r.lsnOf(first) {
			r.touch(first, l)
		}
	case recDrop:
		if r.dropped == nil {
			r.dropped = map[BackingID]LSN{}
		}
		r.dropped[rec.backing] = l
		r.settled(rec.backing, l)
		for b := range c.buckets {
			if r.ended() != nil {
				return // eachPage says so
			}
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

// note puts a slot into fresh.
func (r *recovery) note(s Slot) {
	if r.fresh == nil {
		r.fresh = map[Slot]bool{}
	}
	r.fresh[s] = true
}

// noteFresh notes the slot of a record that is about to be applied, if what it holds was perhaps not flushed.
func (r *recovery) noteFresh(rec *record) {
	if _, e, known := r.current(rec); rec.kind == recMap && (!known || e.st&stBad != 0) {
		r.note(Slot(rec.slot))
	}
}

// noteBefore notes, for the first of the doubtful records of a block, whether the cache has dirty data of it that was
// durable. A removal of that comes after a flush of the backing device.
func (r *recovery) noteBefore(rec *record) {
	switch k := makeKey(rec.backing, rec.block); {
	case rec.kind == recMap:
		if _, known := r.before[k]; !known {
			if r.before == nil {
				r.before = map[key]bool{}
			}
			e, ok := r.c.index.find(k)
			r.before[k] = ok && e.st&stDirty != 0
		}
	case rec.kind == recUnmap && rec.flags&recCleanOnly == 0:
		for i := range Block(rec.sum) {
			delete(r.before, makeKey(rec.backing, rec.block+i))
		}
	}
}

// loadRing reads what a killed daemon left in the pending ring.
func (r *recovery) loadRing() {
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
		return
	}
	r.doubtful = left.lost
	if len(left.list) > 0 {
		r.ringFirst, r.ringRecs = left.first, left.list
	}
}

// replayPending applies what the ring has, and returns the records that the journal has not, which
// are to be written there, so that from there on the SSD has everything.
func (r *recovery) replayPending() ([]record, error) {
	c := r.c
	first, recs := r.ringFirst, r.ringRecs
	if len(recs) == 0 {
		return nil, nil
	}
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
	for i := range recs[:skip] {
		if recs[i].kind == recMap && r.left != skip {
			r.note(Slot(recs[i].slot)) // nobody knows what the journal had before
		}
	}
	recs = recs[skip:]
	for i := range recs {
		if err := recs[i].check(&c.geo); err != nil {
			return nil, fmt.Errorf("pending ring: %w", err)
		}
		r.noteFresh(&recs[i])
		r.noteBefore(&recs[i])
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

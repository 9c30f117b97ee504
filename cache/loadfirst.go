package cache

// loadFirst loads what has to be known before the first request, if the superblock says what that is
// and nothing contradicts it. It changes nothing on the SSD. If it reports false nothing is loaded.
func (r *recovery) loadFirst(stop *stopRecord) bool {
	c, o := r.c, &r.c.opts
	least := o.Load.Blocks
	if least == 0 {
		least = defaultLoadBlocks
	}
	if stop == nil || least < 0 || c.geo.slots() < least || len(o.Drop) > 0 || len(o.GiveUp) > 0 ||
		!r.journalEnds(stop) {
		return false
	}
	left, err := loadPending(o.Pending, c.sb.UUID, c.epoch)
	if err != nil || len(left.list) > 0 || left.lost {
		return false
	}
	r.pageLSN = make([]LSN, int64(c.geo.Buckets)*c.geo.summaryPages())
	r.lastLSN = make([]LSN, c.geo.Buckets)
	r.dmg.lost = map[int64]*lostPage{}
	known := make([]bool, c.geo.Buckets)
	for _, b := range stop.free {
		known[b] = true
	}
	first := make([]bool, c.geo.Buckets)
	for _, b := range stop.first {
		first[b] = !known[b]
	}
	// Some from everywhere, for Samples and Recognise.
	for i := 0; i < loadSpread && !o.Load.NoSamples; i++ {
		b := i * int(c.geo.Buckets) / loadSpread
		first[b] = !known[b]
	}
	r.loadBuckets(first)
	r.checkCounts()
	for _, l := range r.pageLSN {
		if l > c.sb.LSN {
			r.dmg.wrong++
		}
	}
	if d := &r.dmg; len(d.lost) > 0 || len(d.copies) > 0 || len(r.stale) > 0 || d.journalDamaged() {
		c.unload() // the whole recovery knows what to do about it
		return false
	}
	for b, yes := range first {
		known[b] = known[b] || yes
	}
	c.rest = &loader{known: known, lsn: r.lastLSN}
	j := &c.journal
	r.next = c.sb.LSN
	j.mu.tailSeq, j.mu.pageSeq, j.mu.durSeq = stop.seq, stop.seq, stop.seq-1
	j.mu.next = r.next
	j.durableLSN.Store(uint64(r.next))
	return true
}

// loadSpread is how many buckets from all over the SSD are loaded first in any case.
const loadSpread = 16

// journalEnds reports whether the journal ends where the stop found it.
func (r *recovery) journalEnds(stop *stopRecord) bool {
	c := r.c
	if stop.seq == 0 || c.sb.LSN == 0 {
		return false
	}
	p := alignedBytes(pageSize)
	var pages [2]journalPage
	var state [2]pageState
	for i := range pages {
		if stop.seq == 1 && i == 0 {
			continue // nothing was ever written
		}
		seq := stop.seq - 1 + uint64(i)
		if _, err := c.ssd.ReadAt(p, c.geo.journalPageOff(seq)); err != nil {
			return false
		}
		pages[i], state[i] = c.decodeJournalPage(p, int64(seq%uint64(c.geo.JournalPages)))
	}
	last, next := &pages[0], &pages[1]
	if stop.seq == 1 {
		return c.sb.LSN == 1 && state[1] == pageNone
	}
	return state[0] == pageGood && last.seq == stop.seq-1 && last.epoch <= c.sb.Epoch &&
		last.first+LSN(last.count) == c.sb.LSN &&
		(state[1] == pageNone || state[1] == pageGood && next.seq < last.seq)
}

// loadBuckets loads the summaries of some buckets, those that lie close together with one read.
func (r *recovery) loadBuckets(want []bool) {
	c := r.c
	const gap, most = 16, 1024 // pages that are read in vain, and in all
	per := int(c.geo.summaryPages())
	var buf [2][]byte
	for i := range buf {
		buf[i] = alignedBytes(min(max(most, per), len(want)*per) * pageSize)
	}
	for b := 0; b < len(want); b++ {
		if !want[b] {
			continue
		}
		end := b + 1
		for next := end; next < len(want) && (next-end)*per <= gap && (next+1-b)*per <= most; next++ {
			if want[next] {
				end = next + 1
			}
		}
		n := (end - b) * per
		var bad [2]map[int64]bool
		for i := range buf {
			bad[i] = readPages(c.ssd, buf[i][:n*pageSize], c.geo.summaryOff(i, BucketID(b)))
		}
		for j := range n {
			if !want[b+j/per] {
				continue
			}
			page := int64(b*per + j)
			var k [2]copyFound
			for i := range k {
				k[i] = c.checkSummary(buf[i][j*pageSize:][:pageSize], i, page)
				if bad[i][int64(j)] {
					k[i].state = summaryBad
				}
			}
			r.loadPage(k, page)
		}
		b = end - 1
	}
}

// unload empties the index, before there are lanes.
func (c *Cache) unload() {
	c.rest = nil
	for i := range c.buckets {
		c.locked(BucketID(i), func(_ *stripe, k key, e entry) {
			c.unmapEntry(c.backing(k.backing()), k, e)
		})
	}
}

// leaveRest begins to serve I/O: what is loaded is there, and what the stop found to be free can be filled.
func (c *Cache) leaveRest(stop *stopRecord, r *recovery) {
	a, d := &c.alloc, c.rest
	done := 0
	free := make([]bool, len(c.buckets))
	for _, b := range stop.free {
		free[b] = true
		a.mu.free = append(a.mu.free, b)
	}
	for i := range c.buckets {
		if !free[i] {
			c.buckets[i].state = bucketLoading
		}
		switch {
		case !d.known[i]:
			continue
		case free[i]:
		case c.buckets[i].live.Load() > 0:
			d.used = append(d.used, BucketID(i))
		default:
			c.buckets[i].state = bucketFree
			a.mu.free = append(a.mu.free, BucketID(i))
		}
		done++
	}
	a.freeCount.Store(int32(len(a.mu.free)))
	per := c.geo.summaryPages()
	regions := c.opts.Load.Regions
	if regions == 0 {
		regions = int(clamp(c.geo.slots()/64, 64, defaultLoadRegions))
	}
	c.loading.begin(r.next, int64(len(c.buckets))*per, regions)
	c.loading.done.Store(int64(done) * per)
}

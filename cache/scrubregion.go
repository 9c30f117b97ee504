package cache

// take notes what is cached of a region from a block on, and pins its buckets.
func (s *scrub) take(first Block) (n int, bad bool) {
	c := s.bg.l.c
	s.from, s.first, s.tried = first, first&^(regionBlocks-1), false
	st := c.index.stripeOf(s.b.id, first)
	st.mu.Lock()
	defer st.mu.Unlock()
	for i := range Block(regionBlocks) {
		s.look[i], s.failed[i], s.unsure[i], s.unread[i], s.lost[i] = false, false, false, false, false
		e, ok := c.index.find(makeKey(s.b.id, s.first+i))
		if !ok || s.first+i < first {
			continue
		}
		if s.ents[i] = e; e.st&stBad != 0 {
			s.lost[i] = true
			bad = true
			continue
		}
		s.look[i] = true
		c.buckets[c.bucketOf(e.slot)].pins.Add(1)
		n++
	}
	return n, bad
}

// note changes the report, as long as it has room.
func (s *scrub) note(f func(*ScrubReport)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.mu.rep
	if max(len(r.Bad), len(r.Differs), len(r.BackingErrors)) < maxScrubRanges {
		f(r)
	} else {
		r.Truncated = true
	}
}

// read starts the reads from the SSD, one per run.
func (s *scrub) read(l *Lane) {
	s.step, s.waits = scrubSSD, 1
	for i := 0; i < regionBlocks; {
		n := 1
		if s.look[i] {
			for i+n < regionBlocks && s.look[i+n] && s.ents[i+n].slot == s.ents[i].slot+Slot(n) {
				n++
			}
			s.readSSD(l, i, n)
		}
		i += n
	}
	s.opsDone(l)
}

func (s *scrub) readSSD(l *Lane, i, n int) {
	s.waits++
	l.move(s, OpRead, SSD, l.c.geo.slotOff(s.ents[i].slot), s.ssd[i*BlockSize:(i+n)*BlockSize],
		uint32(i)<<16|uint32(n))
}

func (s *scrub) opDone(l *Lane, op *Op, err error) {
	i, n := int(op.arg>>16), int(op.arg&0xffff)
	mayBeBad := err != nil && ofBucket(err) && !l.c.lost() // else it says nothing about the block
	if s.step == scrubSSD && mayBeBad && n > 1 {
		// One bad sector fails them all.
		for j := i; j < i+n; j++ {
			s.readSSD(l, j, 1)
		}
		s.opsDone(l)
		return
	}
	for j := i; j < i+n; j++ {
		switch {
		case s.step == scrubBacking:
			s.unread[j] = err != nil
		case err != nil:
			if s.failed[j], s.unsure[j] = mayBeBad, true; mayBeBad {
				s.want = l.c.ssdHealth.begun.Load() + 1
			}
		case l.c.checksums:
			k := makeKey(s.b.id, s.first+Block(j))
			s.failed[j] = dataSum(s.ssd[j*BlockSize:][:BlockSize], uint64(k)) != s.ents[j].sum
		}
	}
	s.opsDone(l)
}

func (s *scrub) opsDone(l *Lane) {
	if s.waits--; s.waits > 0 {
		return
	}
	switch {
	case s.step != scrubSSD:
	case s.want != 0:
		storeMax(&l.c.ssdHealth.wanted, s.want)
		s.run(l, nil)
		return
	case s.unsure != [regionBlocks]bool{}:
		s.later(l)
		return
	default:
		s.judge(l)
		s.readBacking(l)
		return
	}
	s.compare(l)
	s.finish(l)
}

// run waits until it is known whether blocks are bad or the whole SSD, as an edge does: errors may pass.
func (s *scrub) run(l *Lane, _ error) {
	h := &l.c.ssdHealth
	switch {
	case l.c.lost() || h.bad.Load() >= s.want:
		s.later(l)
		return
	case h.good.Load() < s.want:
		s.w = waiter{lane: l, owner: s}
		h.park(l.c, &s.w)
		return
	}
	for i := range s.unsure {
		if s.tried && s.unsure[i] && !s.failed[i] { // that error was none of the block
			s.later(l)
			return
		}
	}
	s.want = 0
	if !s.tried {
		s.tried, s.waits = true, 1
		for i := range s.unsure {
			if s.unsure[i] {
				s.failed[i], s.unsure[i] = false, false
				s.readSSD(l, i, 1)
			}
		}
		s.opsDone(l)
		return
	}
	s.unsure = [regionBlocks]bool{} // they are bad
	s.judge(l)
	s.readBacking(l)
}

// later leaves the region for when the SSD is there again: of what it did not return nothing is known.
func (s *scrub) later(l *Lane) {
	for i := range s.look {
		if s.look[i] {
			l.c.unpin(s.ents[i].slot)
		}
	}
	s.want, s.at, s.flying = 0, s.from, false
	s.rest = l.d.Now() + probePause
}

// judge deals with what the SSD did not return right, as a read does.
func (s *scrub) judge(l *Lane) {
	for i := range s.look {
		if !s.look[i] || !s.failed[i] {
			continue
		}
		blk := s.first + Block(i)
		switch l.distrust(s.b, makeKey(s.b.id, blk), s.ents[i].slot, false) {
		case distrustDropped:
			s.note(func(r *ScrubReport) { r.Healed++ })
		case distrustLost:
			s.lost[i] = true
		}
	}
}

// compared reports whether a block is one to compare with the backing device.
func (s *scrub) compared(i int) bool {
	return s.look[i] && !s.failed[i] && !s.unsure[i] && s.ents[i].st&stDirty == 0 && !s.o.NoBacking
}

func (s *scrub) readBacking(l *Lane) {
	s.step, s.waits = scrubBacking, 1
	for i := 0; i < regionBlocks; {
		n := 1
		if s.compared(i) {
			for i+n < regionBlocks && s.compared(i+n) {
				n++
			}
			last := s.first + Block(i+n-1)
			end := (i+n-1)*BlockSize + s.b.blockBytes(last)
			s.waits++
			l.move(s, OpRead, s.b.id, s.b.dataOff+int64(s.first)*BlockSize+int64(i)*BlockSize,
				s.under[i*BlockSize:end], uint32(i)<<16|uint32(n))
		}
		i += n
	}
	s.opsDone(l)
}

// compare looks at what is still clean and in its place.
func (s *scrub) compare(l *Lane) {
	c := l.c
	st := c.index.stripeOf(s.b.id, s.first)
	for i := range s.look {
		if !s.compared(i) {
			continue
		}
		blk := s.first + Block(i)
		if s.unread[i] {
			s.note(func(r *ScrubReport) {
				r.BackingErrors.add(int64(blk)*BlockSize, int64(s.b.blockBytes(blk)))
			})
			continue
		}
		k := makeKey(s.b.id, blk)
		room := s.o.Fix && c.journal.reserve(1)
		st.mu.Lock()
		e, ok := c.index.find(k)
		var gone state
		if ok = ok && e.slot == s.ents[i].slot && e.st&stDirty == 0; ok {
			gone = differing(s.ssd[i*BlockSize:][:BlockSize],
				s.under[i*BlockSize:][:s.b.blockBytes(blk)], e.st)
		}
		fixed := gone != 0 && room
		if fixed {
			c.unmapEntry(s.b, k, e)
			st.lastUnmap = c.journal.append(record{
				kind: recUnmap, flags: recCleanOnly, backing: s.b.id, block: blk, sum: 1,
			}, c.bucketOf(e.slot))
		}
		st.mu.Unlock()
		if room && !fixed {
			c.journal.unreserve(1)
		}
		s.count(ok, blk, gone, fixed)
	}
}

func (s *scrub) count(compared bool, blk Block, gone state, fixed bool) {
	s.mu.Lock()
	if compared {
		s.mu.rep.Compared++
	}
	if fixed {
		s.mu.rep.Fixed++
	}
	s.mu.Unlock()
	if gone != 0 {
		s.note(func(r *ScrubReport) { r.Differs.AddBlock(int64(blk)*BlockSize, uint8(gone)) })
	}
}

// finish lets go of the region, and goes on at once where nothing else wants the devices.
func (s *scrub) finish(l *Lane) {
	n := int64(0)
	for i := range s.look {
		if s.look[i] {
			l.c.unpin(s.ents[i].slot)
			n++
		}
		if s.lost[i] {
			s.note(func(r *ScrubReport) {
				r.Bad.AddBlock(int64(s.first+Block(i))*BlockSize, uint8(s.ents[i].st&stMask))
			})
		}
	}
	now := l.d.Now()
	s.mu.Lock()
	s.mu.rep.Checked += n
	s.mu.rep.Next = min(int64(s.at)*BlockSize, s.b.size)
	s.mu.Unlock()
	s.flying = false
	if rest := s.restFor(now); rest > 0 {
		s.rest = now + rest*max(now-s.began, 1)
	} else {
		l.c.pokeBackground()
	}
}

// restFor is how many times as long as the last step took the scrub rests, for the sake of requests.
func (s *scrub) restFor(now int64) int64 {
	c := s.bg.l.c
	if s.bg.l.contention(now).RT {
		return scrubRestRT
	}
	for _, b := range c.backings.Load() {
		if b != nil && now-b.lastIO.Load() < holdFor {
			return scrubRest
		}
	}
	return 0
}

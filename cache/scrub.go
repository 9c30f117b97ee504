package cache

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

// ScrubOptions are for Cache.Scrub.
type ScrubOptions struct {
	// From is where to begin, in bytes of the cached device.
	From int64
	// Rate bounds the bytes of cached data that are looked at per second; 0: no bound.
	Rate int64
	// NoBacking leaves the backing device alone: only checksums are verified.
	NoBacking bool
	// Fix drops clean copies that differ from the backing device.
	Fix bool
}

// ScrubReport is what a scrub has found so far.
type ScrubReport struct {
	Next          int64  `json:"next"` // where to go on, in bytes of the cached device
	Size          int64  `json:"size_bytes"`
	Complete      bool   `json:"complete"` // it has come to the end of the device
	Checked       int64  `json:"checked_blocks"`
	Compared      int64  `json:"compared_blocks"` // with the backing device
	Healed        int64  `json:"healed_blocks"`   // clean copies that failed, and were dropped
	Fixed         int64  `json:"fixed_blocks"`    // copies that differed, and were dropped
	Bad           Ranges `json:"bad"`             // dirty data that the SSD has lost
	Differs       Ranges `json:"differs"`         // clean copies that the backing device does not have
	BackingErrors Ranges `json:"backing_errors"`  // that the backing device failed to read
	Truncated     bool   `json:"truncated,omitempty"`
}

const (
	// maxScrubRanges bounds each list of a report.
	maxScrubRanges = 10_000
	// scrubHop is how many regions a scrub looks through for cached blocks at a time.
	scrubHop = 2048
	// Where requests are around, a scrub rests that many times as long as its last step took.
	scrubRest   = 4
	scrubRestRT = 16
)

// scrub reads what is cached of a backing device, region by region in the order of addresses, and
// verifies it. It belongs to the background lane.
//
// A clean block is compared with the backing device without a lock on it. Whoever changes the backing
// device takes clean copies out of the index first, so a block that is still clean in the same slot
// when both have been read was not changed in between. The slot cannot have been given to another
// block meanwhile and back, since its bucket is pinned.
type scrub struct {
	bg     *background
	b      *Backing
	o      ScrubOptions
	flying bool // operations are under way
	tokens int64
	last   int64
	began  int64
	rest   int64 // until then
	at     Block

	step   scrubStep
	waits  int
	w      waiter
	want   uint64 // the probe that says whether reads that failed were of bad blocks, 0 if none did
	tried  bool   // they have failed twice, the SSD being there in between
	from   Block  // what is looked at of the region under way
	first  Block  // of the region
	ents   [regionBlocks]entry
	look   [regionBlocks]bool // the entry is there, its bucket is pinned
	failed [regionBlocks]bool // what came is not what was stored
	unsure [regionBlocks]bool // nothing came
	unread [regionBlocks]bool // the backing device failed
	lost   [regionBlocks]bool // dirty, and the SSD does not have it
	ssd    []byte
	under  []byte

	mu struct {
		sync.Mutex
		rep  ScrubReport
		stop bool
		err  error // why it has ended, if not by itself
	}
	done chan struct{}
}

type scrubStep uint8

const (
	scrubSSD scrubStep = iota
	scrubBacking
)

// Scrub verifies what is cached of a backing device, in the background and out of the way of requests:
// the checksum of every block, and of clean ones that the backing device has the same. Clean copies that
// fail are dropped, as a read would; dirty ones are listed, and so are those that differ. It returns
// when it is through, or what it has found so far if ctx ends. progress is told from time to time.
func (c *Cache) Scrub(ctx context.Context, id BackingID, o ScrubOptions,
	progress func(ScrubReport),
) (ScrubReport, error) {
	b, err := c.Backing(id)
	if err != nil {
		return ScrubReport{}, err
	}
	if o.From < 0 || o.From > b.size {
		return ScrubReport{}, fmt.Errorf("%d is not within the %d bytes of %s", o.From, b.size, b.name)
	}
	var s *scrub
	var refused error
	err = c.onBackground(ctx, func(l *Lane) bool {
		if c.loading.on.Load() && !c.lost() {
			return false
		}
		s, refused = l.bg.startScrub(b, o)
		return true
	})
	if err != nil || refused != nil {
		return ScrubReport{}, cmp.Or(err, refused)
	}
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	var lost <-chan time.Time
	for ended := ctx.Done(); ; {
		select {
		case <-s.done:
			return s.report(), cmp.Or(ctx.Err(), s.why())
		case <-lost:
			return s.report(), ctx.Err()
		case <-ended:
			s.halt()
			c.pokeBackground()
			ended, lost = nil, time.After(scrubPatience)
		case <-tick.C:
			if progress != nil {
				progress(s.report())
			}
		}
	}
}

// StartScrub is Scrub for who is on the background lane, and does not wait. report says what was found so far, and whether
// the scrub has ended.
func (l *Lane) StartScrub(id BackingID, o ScrubOptions) (report func() (rep ScrubReport, ended bool), err error) {
	b, err := l.c.Backing(id)
	if err != nil {
		return nil, err
	}
	if l.c.loading.on.Load() {
		return nil, fmt.Errorf("%w: the index is being loaded", ErrBusy)
	}
	s, err := l.bg.startScrub(b, o)
	if err != nil {
		return nil, err
	}
	return func() (ScrubReport, bool) {
		select {
		case <-s.done:
			return s.report(), true
		default:
			return s.report(), false
		}
	}, nil
}

// scrubPatience is how long who ends a scrub waits for the devices.
const scrubPatience = 10 * time.Second

func (s *scrub) halt() {
	s.mu.Lock()
	s.mu.stop = true
	s.mu.Unlock()
}

// abort ends a scrub for which there is no SSD any more; it may have to wait for the backing device.
func (s *scrub) abort(now int64) {
	s.mu.Lock()
	s.mu.stop, s.mu.err = true, s.bg.l.c.lostError()
	s.mu.Unlock()
	s.tick(now)
}

func (s *scrub) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.err
}

func (s *scrub) report() ScrubReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.mu.rep
	r.Bad, r.Differs = append(Ranges{}, r.Bad...), append(Ranges{}, r.Differs...)
	r.BackingErrors = append(Ranges{}, r.BackingErrors...)
	return r
}

// startScrub begins a scrub on the background lane; there is one at a time.
func (bg *background) startScrub(b *Backing, o ScrubOptions) (*scrub, error) {
	c := bg.l.c
	switch {
	case c.lost():
		return nil, c.lostError()
	case bg.scrub != nil:
		return nil, fmt.Errorf("%w: %s is being scrubbed", ErrBusy, bg.scrub.b.name)
	case b.detaching.Load() || c.backing(b.id) != b || c.closing.Load():
		return nil, fmt.Errorf("%w: %s is being detached", ErrBusy, b.name)
	}
	s := &scrub{bg: bg, b: b, o: o, at: Block(o.From / BlockSize), done: make(chan struct{})}
	var err error
	if s.ssd, err = offHeap(regionBytes); err != nil {
		return nil, err
	}
	if s.under, err = offHeap(regionBytes); err != nil {
		freeOffHeap(s.ssd)
		return nil, err
	}
	s.last = bg.l.d.Now()
	s.mu.rep = ScrubReport{Size: b.size, Next: int64(s.at) * BlockSize}
	bg.scrub = s
	return s, nil
}

// leaveScrub ends a scrub of a backing device that is about to go; false while operations are under
// way.
func (bg *background) leaveScrub(b *Backing) bool {
	s := bg.scrub
	if s == nil || s.b != b {
		return true
	}
	s.halt()
	s.tick(bg.l.d.Now())
	return bg.scrub == nil
}

// end is when nothing of the scrub is under way.
func (s *scrub) end() {
	s.bg.scrub = nil
	freeOffHeap(s.ssd)
	freeOffHeap(s.under)
	close(s.done)
}

// tick goes on if the rate and the requests of others let it.
func (s *scrub) tick(now int64) {
	if s.flying {
		return
	}
	s.mu.Lock()
	stop := s.mu.stop || s.bg.l.c.closing.Load()
	s.mu.Unlock()
	if stop {
		s.end()
		return
	}
	if rate := s.o.Rate; rate > 0 {
		s.tokens = min(s.tokens+int64(float64(rate)*float64(min(now-s.last, 1e9))/1e9), max(rate/4, 1))
		s.last = now
		if s.tokens <= 0 {
			return
		}
	}
	if now < s.rest {
		return
	}
	s.next(now)
}

// next looks for the next region that has something cached, and begins to read it.
func (s *scrub) next(now int64) {
	for range scrubHop {
		if int64(s.at)*BlockSize >= s.b.size {
			s.mu.Lock()
			s.mu.rep.Complete, s.mu.rep.Next = true, s.b.size
			s.mu.Unlock()
			s.end()
			return
		}
		first := s.at
		s.at = (first>>regionShift + 1) << regionShift
		if n, bad := s.take(first); n > 0 || bad {
			s.tokens -= int64(n) * BlockSize
			s.began, s.flying = now, true
			s.read(s.bg.l)
			return
		}
	}
	s.mu.Lock()
	s.mu.rep.Next = int64(s.at) * BlockSize
	s.mu.Unlock()
}

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

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

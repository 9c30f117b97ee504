package cache

import (
	"sync"
	"sync/atomic"
	"time"
)

// # I/O while the index is being loaded
//
// After a stop in order the journal holds nothing that the summaries have not, so a start has but to
// load these, and most of them can wait: a clean block that is not in the index yet is a miss like any
// other. What must not be missing is in few buckets, which the superblock names (stopRecord): dirty
// blocks, pinned ones, and those that are compared to recognise a backing device. With them loaded the
// cache serves I/O, and the background lane loads the rest (loader).
//
// A copy that is not loaded yet may become obsolete meanwhile. So while loading is on
//
//   - who takes a block out of the cache, or changes the backing device under it, remembers its
//     place, and a change of the backing device records the removal of copies of which it does not
//     know whether they are there. Like any removal it is durable before the change;
//   - a block that is mapped counts as one whose clean copy was replaced;
//   - an entry that comes late is left out if the index has the block, or if it is remembered. Its
//     bucket's summary is due for a checkpoint then;
//   - the journal's tail stays where it is, and no checkpoints are made: a crash finds all of these
//     records, and the summaries as they were;
//   - nothing is evicted, and only buckets that are known to be empty are filled.
//
// All of it is decided under the lock of the block's stripe, under which late entries enter the index,
// too. What is remembered is bounded: a change of the backing device that finds no room waits until all
// is loaded. Others that find none make everything that comes late be left out. As of that, and of pages that cannot
// be loaded, there is no record, changes go on to record the removal of copies that they do not find, until a
// checkpoint has written the summaries.

// LoadOptions say how a start loads the index. The zero value is usable.
type LoadOptions struct {
	// Blocks is how many blocks a cache must have room for, at least, to serve I/O while most of its
	// index is not loaded; a smaller one is loaded at once. 0 is the default, 1 Mi; less: never.
	Blocks int64
	// Pages is how many pages of summaries are loaded at a time; 0 is the default.
	Pages int
	// Regions bounds what is remembered of changes meanwhile; 0 is the default.
	Regions int
	// NoSamples leaves what Samples looks at to be loaded with the rest.
	NoSamples bool
}

const (
	defaultLoadBlocks  = 1 << 20
	defaultLoadPages   = 64
	defaultLoadRegions = 32 << 10
)

// loading is what lanes have to know of an index that is not loaded as a whole.
type loading struct {
	on atomic.Bool // for good off once it is; under a stripe's lock it is exact
	// some says that something is remembered. It is set under a stripe's lock, and exact under that of
	// the block in question.
	some atomic.Bool
	// unsure says that entries were left out, or could not be loaded, of whose removal there is no record: a crash
	// finds them in the summaries, until these are written. It is on before they are left out.
	unsure atomic.Bool
	from   LSN // the first record of this start

	done, total atomic.Int64 // pages of summaries
	lost        atomic.Int64 // of which there was no good copy
	left        atomic.Int64 // entries that were obsolete
	took        atomic.Int64 // nanoseconds, once it has ended
	began       time.Time

	mu struct {
		sync.Mutex
		table    []touchedRegion // open addressing; a power of two
		used     int
		promised int // to changes under way
		limit    int // of used and promised
		// full says that the table was full: nothing that comes late can be believed any more.
		full    bool
		waiting waitList
	}
}

// touchedRegion has a bit for each block of a region that must not come from a summary any more.
type touchedRegion struct {
	region uint64 // key>>regionShift, and 1; 0: unused
	blocks [regionBlocks / 64]uint64
}

// begin prepares for so many regions that are promised, and some that are not.
func (g *loading) begin(from LSN, pages int64, regions int) {
	size := 64
	for size < 2*regions {
		size *= 2
	}
	g.from, g.began = from, time.Now()
	g.total.Store(pages)
	g.mu.table, g.mu.limit = make([]touchedRegion, size), regions
	g.on.Store(true)
}

// place finds the region's place in the table, or a free one. mu is held.
func (g *loading) place(region uint64) *touchedRegion {
	t := g.mu.table
	for i := mix(region); ; i++ {
		r := &t[i&uint64(len(t)-1)]
		if r.region == region+1 || r.region == 0 {
			return r
		}
	}
}

// reserve promises room for the regions of the blocks that are not in the table yet, and returns how
// many they are: remember or giveBack takes it. Or it queues w, whose owner then asks again.
func (g *loading) reserve(c *Cache, b BackingID, first, last Block, w *waiter) (promised int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.on.Load():
		return 0, true
	case c.lost():
		w.wake(ErrSSDLost)
		return 0, false
	}
	for r := makeKey(b, first) >> regionShift; r <= makeKey(b, last)>>regionShift; r++ {
		if g.place(uint64(r)).region == 0 {
			promised++
		}
	}
	if promised > 0 && g.mu.used+g.mu.promised+promised > g.mu.limit {
		g.mu.waiting.push(w)
		return 0, false
	}
	g.mu.promised += promised
	return promised, true
}

// giveBack ends the promise for n regions.
func (g *loading) giveBack(n int) {
	if n == 0 {
		return
	}
	g.mu.Lock()
	g.mu.promised -= n
	g.mu.Unlock()
}

// remember notes that no copy of the blocks, which are of one region, may come from a summary any
// more. The stripe is locked. promised says that there is room, and used that it was needed.
func (g *loading) remember(b BackingID, first, last Block, promised bool) (used bool) {
	g.some.Store(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.table == nil {
		return false
	}
	region := uint64(makeKey(b, first) >> regionShift)
	r := g.place(region)
	if r.region == 0 {
		if !promised && g.mu.used+g.mu.promised >= len(g.mu.table)*3/4 {
			g.mu.full = true
			g.unsure.Store(true)
			return false
		}
		r.region = region + 1
		g.mu.used++
		if used = promised; used {
			g.mu.promised--
		}
	}
	for i := first & (regionBlocks - 1); i <= last&(regionBlocks-1); i++ {
		r.blocks[i/64] |= 1 << (i % 64)
	}
	return used
}

// mayLack reports whether the SSD may have clean copies that the index does not have, and of whose removal there is no
// record either. The stripe of the blocks in question is locked.
func (g *loading) mayLack() bool { return g.on.Load() || g.unsure.Load() }

// saved is told of the oldest change that no summary has. journal.mu is held.
func (g *loading) saved(oldest LSN) {
	if !g.on.Load() && g.unsure.Load() && oldest > g.from {
		g.unsure.Store(false)
	}
}

// touched reports whether the block is remembered. Its stripe is locked.
func (g *loading) touched(k key) bool {
	if !g.some.Load() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.full {
		return true
	}
	r := g.place(uint64(k >> regionShift))
	i := k.block() & (regionBlocks - 1)
	return r.region != 0 && r.blocks[i/64]>>(i%64)&1 != 0
}

// end is when everything is loaded.
func (g *loading) end() {
	g.mu.Lock()
	g.took.Store(int64(time.Since(g.began)))
	g.on.Store(false)
	g.mu.table = nil
	wake := g.mu.waiting.takeAll()
	g.mu.Unlock()
	wake.wakeAll(nil)
}

// release lets go of all who wait, for the SSD is lost.
func (g *loading) release(err error) {
	g.mu.Lock()
	wake := g.mu.waiting.takeAll()
	g.mu.Unlock()
	wake.wakeAll(err)
}

// loadEntry puts an entry that comes late into the index, and reports whether it is still good.
func (c *Cache) loadEntry(k key, e entry) bool {
	b := c.backing(k.backing())
	if b == nil || e.st&stMask == 0 || int64(k.block())*BlockSize >= b.size {
		return false
	}
	s := c.index.stripeOf(b.id, k.block())
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := c.index.find(k); ok {
		return false
	}
	if c.loading.touched(k) && !mutated(mutLateCopyKept) {
		return false
	}
	c.index.insert(k, e)
	c.account(b, e.st, 1, e.slot)
	return true
}

// Loading says how far the index is loaded.
type Loading struct {
	Running bool `json:"running"` // there is something left to load
	// Percent of the index that is loaded; 100 if all of it is.
	Percent int `json:"percent"`
	// Dropped counts entries that were left out since they had become obsolete meanwhile.
	Dropped int64 `json:"dropped_blocks"`
	// LostPages counts pieces of the index of which neither copy was good; nothing in them was dirty.
	LostPages int64 `json:"lost_pages"`
	// Took is how long it took from the first request that could be served on; 0 if it has not ended, or if
	// everything was loaded before.
	Took time.Duration `json:"took_ns"`
}

// Loading says how far the index is loaded. I/O is served meanwhile.
func (c *Cache) Loading() Loading {
	g := &c.loading
	l := Loading{
		Percent: 100, Dropped: g.left.Load(), LostPages: g.lost.Load(), Took: time.Duration(g.took.Load()),
	}
	if l.Running = g.on.Load(); l.Running {
		l.Percent = int(min(g.done.Load()*100/max(g.total.Load(), 1), 99))
	}
	return l
}

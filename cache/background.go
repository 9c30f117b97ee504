package cache

import (
	"sync/atomic"
	"time"

	"ubcache/policy"
)

// background is the work that no request waits for: commits by time, cleaning, eviction,
// checkpoints, writeback. One lane of the cache does it; its state belongs to that lane.
type background struct {
	l          *Lane
	lastCommit int64
	durable    uint64 // as the journal had it at the last look, and since when
	quiet      int64
	evictor    policy.Evictor
	evict      eviction
	ckpt       checkpoint
	wb         writeback
	scrub      *scrub                         // nil: none
	loader     *loader                        // nil: all was loaded at the start
	flushes    [MaxBackings + 1]*backingFlush // nil until there is one
	doctor     doctor
	orders     [MaxBackings + 1]*orderRun // nil for those that have nothing to do with it
	pressed    bool                       // eviction found only dirty buckets
	told       [MaxBackings + 1]int64     // since when clients know of the losses in the pending ring
	seen       atomic.Int64               // Driver.Now of the last Tick
}

const (
	// commitEvery bounds how long an acknowledged write without a flush can be lost to a power
	// cut.
	commitEvery = int64(time.Second)
	// sealAfter is how long after the last commit the journal is sealed.
	sealAfter = 2 * commitEvery
	// tickEvery is how often the background looks at its work while there is some, idleEvery how
	// often it looks for some. What cannot wait for that pokes it.
	tickEvery = 50 * time.Millisecond
	idleEvery = time.Second
)

// StartBackground makes l the lane that does the background work. Its loop calls Tick after
// every Driver.Wake and whenever the time that Tick returned has passed.
func (c *Cache) StartBackground(l *Lane) {
	bg := &background{l: l, evictor: policy.SecondChance{Keep: 0.25}, lastCommit: l.d.Now()}
	bg.evict.bg, bg.evict.move.v, bg.ckpt.bg, bg.wb.bg = bg, &bg.evict, bg, bg
	bg.doctor.bg = bg
	if c.blind {
		c.ssdHealth.since.Store(l.d.Now())
	}
	l.bg = bg
	bg.startLoader()
	c.bgLane.Store(l)
}

// Tick starts what background work there is and returns when to call it again.
func (l *Lane) Tick() time.Duration {
	bg := l.bg
	now := l.d.Now()
	bg.seen.Store(now)
	ill := bg.doctor.tick(now)
	bg.tidyUntold(now)
	if l.c.lost() {
		if bg.scrub != nil {
			bg.scrub.abort(now)
		}
		l.runTasks()
		return tickEvery
	}
	pending, limit := l.c.journal.pendingRecords()
	if pending > 0 && (l.c.closing.Load() || now-bg.lastCommit >= commitEvery || pending >= limit/2 ||
		l.c.ssdHealth.commitFailing.Load() != 0) {
		bg.lastCommit = now
		l.c.journal.kick(l)
	}
	loading := bg.loader.tick()
	bg.seal(now)
	hurry := bg.clean(now)
	bg.evict.start()
	bg.ckpt.start()
	bg.wb.tick(now)
	soon := bg.tickOrders(now)
	if bg.scrub != nil {
		bg.scrub.tick(now)
	}
	if l.runTasks() || soon || bg.evict.running || bg.ckpt.running || bg.wb.working || bg.scrub != nil ||
		hurry || ill || loading {
		return tickEvery
	}
	if pending > 0 {
		return max(tickEvery, time.Duration(bg.lastCommit+commitEvery-now))
	}
	return idleEvery
}

// seal seals the journal when nothing has been committed for a while.
func (bg *background) seal(now int64) {
	if d := bg.l.c.journal.durableLSN.Load(); d != bg.durable {
		bg.durable, bg.quiet = d, now
		return
	}
	if now-bg.quiet >= sealAfter && !bg.l.c.closing.Load() {
		bg.l.c.journal.seal(bg.l)
	}
}

// backingFlush is a flush of a backing device for the sake of its pending slots. It may end when the device is detached,
// and its number another's.
type backingFlush struct {
	b       *Backing
	covers  uint64
	running bool
	last    int64 // when the last one began
	failed  bool  // it has failed: there is no hurry any more
}

// pendingAge is how long slots stay pending before the backing device is flushed for them, and
// pendingMany how many are too many to wait.
const (
	pendingAge  = int64(time.Second)
	pendingMany = 4096
)

// flushOf is the flush of the device.
func (bg *background) flushOf(b *Backing) *backingFlush {
	f := bg.flushes[b.id]
	if f == nil || f.b != b {
		f = &backingFlush{b: b}
		bg.flushes[b.id] = f
	}
	return f
}

func (f *backingFlush) opDone(l *Lane, op *Op, err error) {
	f.running = false
	if f.failed = err != nil; f.failed {
		f.b.failedWith(err, l.d.Now())
		l.bg.wb.pause[f.b.id] = l.d.Now() + errorPause // what is written before it is tried again is for nothing
		return
	}
	f.b.flushDone(f.covers, op.losses)
	l.bg.cleanBacking(f.b)
}

// flushPause is between two flushes of a device, however urgent: a pending block that is being changed waits for one flush after the
// other, as long as the change waits for the SSD.
const flushPause = int64(10 * time.Millisecond)

// clean makes clean what the flushes of backing devices have covered, and flushes those that have
// pending slots for long or many. It reports whether somebody waits for the rest.
func (bg *background) clean(now int64) (hurry bool) {
	for _, b := range bg.l.c.backings.Load() {
		if b == nil {
			continue
		}
		bg.cleanBacking(b)
		if b.Presence() != Present {
			continue
		}
		f := bg.flushOf(b)
		b.mu.Lock()
		n := len(b.mu.pending)
		b.mu.Unlock()
		urgent := b.draining.Load() || bg.l.c.closing.Load()
		hurry = hurry || urgent && n > 0
		early := now-f.last < pendingAge && (f.failed || n < pendingMany && !urgent)
		if n == 0 || f.running || early || now-f.last < flushPause {
			continue
		}
		f.running, f.last, f.covers = true, now, b.wrote.Load()
		op := bg.l.newOp(f)
		op.Kind, op.Dev = OpFlush, b.id
		bg.l.issue(op, nil)
	}
	return hurry || bg.l.c.closing.Load()
}

// cleanBacking turns the pending slots that a flush has covered into clean ones.
func (bg *background) cleanBacking(b *Backing) {
	c := bg.l.c
	flushed := b.flushed.Load()
	if mutated(mutCleanUnflushed) {
		flushed = b.wrote.Load()
	}
	for b.cleanable(flushed) && c.journal.reserve(1) {
		b.mu.Lock()
		ok := len(b.mu.pending) > 0 && b.mu.pending[0].wrote <= flushed
		var p pendingSlot
		if ok {
			p = b.mu.pending[0]
			b.mu.pending = b.mu.pending[1:]
		}
		b.mu.Unlock()
		if !ok || !c.cleanSlot(b, p) {
			c.journal.unreserve(1)
		}
		if !ok {
			return
		}
	}
}

// cleanable reports whether the flush has covered a pending slot. Room in the journal is only asked
// for then: given back, it would wake those who wait for more.
func (b *Backing) cleanable(flushed uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.mu.pending) > 0 && b.mu.pending[0].wrote <= flushed
}

// cleanSlot makes a slot clean if it still holds the block that it did, or drops the block if it
// is to leave the cache; journal room for it is
// reserved, and used if it reports true.
func (c *Cache) cleanSlot(b *Backing, p pendingSlot) bool {
	s := c.index.stripeOf(p.k.backing(), p.k.block())
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := c.findIn(p.k, p.slot, p.life)
	if !ok || e.st&stPending == 0 {
		return false
	}
	if s.locked(b.id, p.k.block(), lockThrough) {
		// The backing device is being changed under it: clean on record, it would outlive a
		// crash as older data than the backing device has. It waits for a later flush.
		p.wrote = b.wrote.Add(1)
		if !b.addPending(p, b.losses.Load()) {
			c.setState(b, e, e.st&^stPending)
		}
		return false
	}
	if e.st&stLeave != 0 {
		c.unmapEntry(b, p.k, e)
		s.lastUnmap = c.journal.append(record{
			kind: recUnmap, backing: p.k.backing(), block: p.k.block(), sum: 1,
		}, c.bucketOf(p.slot))
		return true
	}
	c.setState(b, e, e.st&^(stDirty|stPending))
	c.journal.append(record{
		kind: recClean, backing: p.k.backing(), block: p.k.block(), slot: uint32(p.slot),
	}, c.bucketOf(p.slot))
	return true
}

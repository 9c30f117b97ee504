package cache

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options are for Open. The zero value is usable.
type Options struct {
	// Pending is memory of PendingBytes that outlives the process but not the machine, for
	// instance a mapped file on tmpfs; see pendingRing. Where it is nil a killed process loses
	// the writes that no flush covered.
	Pending []byte
	// Discard tells the SSD about every bucket that becomes free.
	Discard bool
	// StallLimit is how long an operation on the SSD may take until the cache does without it as far
	// as it can, and LossLimit after what time the SSD counts as lost. 0 is the default, less means
	// never.
	StallLimit time.Duration
	LossLimit  time.Duration
	// Missed is asked to put a marker in a durable place that is not the SSD, before the first change
	// of a backing device that a lost SSD misses. It must not block; done may be called by any thread,
	// within it or later. Where it is nil such changes fail.
	Missed func(m Missed, done func(error))
	// Drop names backing devices that have changed without the SSD's knowledge: what it has of them is
	// dropped, dirty data included.
	Drop []UUID
	// After is a superblock of the same cache, newer than that on the SSD, which is an older copy of itself: epoch and
	// sequence number go on behind its.
	After *Superblock
	// Health is told, on the background's thread, that the SSD's health has changed. It must not block.
	Health func(HealthEvent)
	// Suspect is told, on a lane's thread, that an operation on a backing device has failed in a
	// way that the device's absence explains. It must not block, and has a probe of the device
	// begun (Cache.BeginProbe), whose outcome is told with Cache.Alive or SetPresence: until then the
	// operation waits. Where it is nil errors are errors.
	Suspect func(BackingID)
	// Progress is told how much of the index has been loaded, from 0 to 1.
	Progress func(share float64)
	// Load says how the index is loaded.
	Load LoadOptions
	// GiveUp are backing devices whose dirty data may be lost: damage that may hide some of it does
	// not keep the cache from starting.
	GiveUp []BackingID
	// Confirm is asked when everything is loaded, or what can be dirty, and nothing has been changed yet on
	// the SSD but that the journal has what was pending. It may read with Cache.Samples and Cache.DirtyBlocks, and
	// returns the backing devices of which nothing in the cache may be used. An error ends Open.
	Confirm func(c *Cache) (drop []BackingID, err error)
}

// Cache is a running cache: an SSD and the backing devices it serves.
//
// Lock order: stripe.mu, then pins.mu, then journal.mu, then order.mu. allocator.mu, Lane.mail and
// Backing.mu are leaves, and so are roll, health.mu and loading.mu. None is held across I/O. control orders the
// operations of the control path and may be.
type Cache struct {
	geo       Geometry
	checksums bool
	epoch     uint64
	opts      Options
	ssd       Storage
	reserve   int // buckets that eviction keeps free

	index   *index
	buckets []bucket
	alloc   allocator
	journal journal
	loading loading
	rest    *loader // what the start has left to load, until the background takes it

	lanes    atomic.Pointer[[]*Lane]
	backings atomic.Pointer[[MaxBackings + 1]*Backing]
	bgLane   atomic.Pointer[Lane]
	barriers barriers
	dirty    atomic.Int64 // blocks, of all backing devices; pending ones not counted
	pins     pins
	tenants  tenants
	busy     busy

	ssdHealth             health
	stallLimit, lossLimit int64 // nanoseconds; 0: never

	blind   bool        // nobody knows what the SSD has; see OpenWithout
	closing atomic.Bool // everything is to be written: the cache stops

	control sync.Mutex // guards sb and changes of backings, and is held while sb is written
	sb      *Superblock
	super   atomic.Pointer[Superblock] // a copy of sb that is not changed
	roll    sync.Mutex                 // guards past and changes of lanes
	past    Stats                      // of lanes that were closed
	tasks   struct {
		sync.Mutex
		list []*task // for the background lane
		some atomic.Bool
	}
	ringMem  []byte // our own pending ring, if none was given
	repaired string // what the start found damaged and repaired
}

// Backing is a backing device of a running cache.
type Backing struct {
	id         BackingID
	name       string
	uuid       UUID
	size       int64 // bytes of the cached device
	dataOff    int64 // where they begin on the backing device
	lbs        int64
	mode       atomic.Uint32
	discards   atomic.Bool // it can discard; zeroes likewise
	zeroes     atomic.Bool
	draining   atomic.Bool // detach or flush: write back everything at full speed
	detaching  atomic.Bool
	forgetting atomic.Bool // its blocks are being taken out, and none is written back any more

	cutoff      atomic.Int64
	dirtyTarget atomic.Int64 // blocks
	dirtyMax    atomic.Int64 // blocks
	delay       atomic.Int64 // nanoseconds
	pinMax      atomic.Int64 // blocks

	cached  atomic.Int64 // blocks
	dirty   atomic.Int64 // blocks, pending ones not counted
	bad     atomic.Int64 // dirty blocks that the SSD cannot return
	pinned  atomic.Int64 // blocks
	leaving atomic.Int64 // blocks that are dirty, not pending, and to leave the cache
	order   order
	number  atomic.Uint32
	lastIO  atomic.Int64 // Driver.Now of the newest request
	// dirtySince is when the oldest of the present dirty data was written, 0 if none.
	dirtySince atomic.Int64

	// wrote counts changes of the backing device; flushed is the count that its last flush
	// covers. direct is the newest change that a request made past the cache, and recent has the
	// newest of those by a hash of the region.
	wrote   atomic.Uint64
	flushed atomic.Uint64
	direct  atomic.Uint64
	// bare is the newest change of which the SSD has no copy: a device that loses what it was not
	// flushed for loses it for good.
	bare   atomic.Uint64
	recent [1024]atomic.Uint64

	// presence says whether the device is there; probes counts the probes of whether it is, and
	// judged is the newest that has found it there. losses counts when it may have lost what it was
	// not flushed for, bareLoss is the newest count that took bare changes, and unreported says that
	// no client knows of that; telling counts the FLUSHes that are about to say it, and losing the losses that are
	// being noted. See presence.go and untold.go.
	presence   atomic.Uint32
	hold       atomic.Int64 // nanoseconds
	probes     atomic.Uint64
	judged     atomic.Uint64
	losses     atomic.Uint64
	bareLoss   atomic.Uint64
	unreported atomic.Bool
	telling    atomic.Int32
	losing     atomic.Int32

	// What becomes of it without the SSD: see lost.go.
	lossKind atomic.Uint32
	lossHold atomic.Int64  // nanoseconds
	marker   atomic.Uint32 // markerNone …
	// markedDirty is the number of dirty blocks that the marker tells of.
	markedDirty atomic.Int64
	torn        atomic.Bool  // the SSD may lack records that a FLUSH has to make durable
	unsafe      atomic.Int64 // blocks in health.unsafe

	mu struct {
		sync.Mutex
		pending   []pendingSlot // a queue: the oldest first
		waiting   waitList      // changes that wait for the device
		markerErr error
		backErr   error // of the last batch of writeback that has failed
	}
	// share is the journal room that changes of the device have been promised, and who waits for more. Guarded by journal.mu.
	share struct {
		held    int
		waiting waitList
	}
	fails atomic.Int64 // tries of writeback that have failed
	tried atomic.Int64 // what fails before then is part of the last of them: batches are under way side by side
}

// failedWith notes that writeback has failed.
func (b *Backing) failedWith(err error, now int64) {
	b.mu.Lock()
	b.mu.backErr = err
	b.mu.Unlock()
	if now >= b.tried.Load() {
		b.tried.Store(now + errorPause)
		b.fails.Add(1)
	}
}

func (b *Backing) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.backErr
}

// pendingSlot is a slot whose block the backing device has, but may still lose.
type pendingSlot struct {
	k     key
	slot  Slot
	life  uint32 // of the slot's bucket
	wrote uint64 // a flush that covers this change makes the slot clean
}

// maxPendingSlots bounds Backing.mu.pending.
const maxPendingSlots = 64 << 10

// ID is the number of the backing device in its cache.
func (b *Backing) ID() BackingID { return b.id }

// bit is the device's in masks of all of them.
func (b *Backing) bit() uint64 { return 1 << (b.id - 1) }

// UUID identifies the backing device.
func (b *Backing) UUID() UUID { return b.uuid }

// Size is the size of the cached device in bytes.
func (b *Backing) Size() int64 { return b.size }

// DataOff is where its data begins on the backing device, in bytes; drivers add it.
func (b *Backing) DataOff() int64 { return b.dataOff }

// LBS is the logical block size of the cached device in bytes.
func (b *Backing) LBS() int64 { return b.lbs }

// Mode is the present mode.
func (b *Backing) Mode() Mode { return Mode(b.mode.Load()) }

// SetNumber gives the device the number by which results name it: unique on the machine, not 0.
func (b *Backing) SetNumber(n uint32) { b.number.Store(n) }

// Number is what SetNumber has set.
func (b *Backing) Number() uint32 { return b.number.Load() }

// SetAbilities says what the backing device can do besides reading and writing.
func (b *Backing) SetAbilities(discard, writeZeroes bool) {
	b.discards.Store(discard)
	b.zeroes.Store(writeZeroes)
}

func (c *Cache) backing(id BackingID) *Backing {
	if int(id) > MaxBackings {
		return nil
	}
	return c.backings.Load()[id]
}

// Checksums reports whether data checksums are kept and verified.
func (c *Cache) Checksums() bool { return c.checksums }

// Geometry is the layout of the SSD.
func (c *Cache) Geometry() Geometry { return c.geo }

// blockBytes is the length of a block: BlockSize, but for the last one of the device.
func (b *Backing) blockBytes(blk Block) int {
	return int(min(BlockSize, b.size-int64(blk)*BlockSize))
}

// changed counts a change of the backing device that a request made past the cache and that has
// completed. The range lock of the blocks is still held, so that no fill has read it yet.
func (b *Backing) changed(first, last Block) uint64 {
	n := b.wrote.Add(1)
	b.direct.Store(n)
	regions := min(last>>regionShift-first>>regionShift, Block(len(b.recent)))
	for r := first >> regionShift; r <= first>>regionShift+regions; r++ {
		b.recent[mix(uint64(r))%uint64(len(b.recent))].Store(n)
	}
	return n
}

// earlierLife is the change, as Backing.wrote counts, that stands for all that an earlier process
// may have written and not flushed.
const earlierLife = 1

// unflushed is the newest change near the block that a backing flush has not covered, or 0.
func (b *Backing) unflushed(blk Block) uint64 {
	n := max(b.recent[mix(uint64(blk>>regionShift))%uint64(len(b.recent))].Load(), earlierLife)
	if n <= b.flushed.Load() {
		return 0
	}
	return n
}

// flushDone notes that a flush covers all changes up to n. losses is Backing.losses when it began: a
// loss meanwhile may have taken what it was to cover.
func (b *Backing) flushDone(n, losses uint64) {
	if b.losses.Load() == losses {
		storeMax(&b.flushed, n)
	}
}

// relyOn makes a FLUSH cover the changes up to n, though the SSD had a copy of them.
func (b *Backing) relyOn(n uint64) {
	for {
		old := b.direct.Load()
		if old >= n || b.direct.CompareAndSwap(old, n) {
			return
		}
	}
}

// pend queues the slot of a block for cleaning as addPending does. The stripe is locked.
func (c *Cache) pend(b *Backing, k key, s Slot, wrote, losses uint64) bool {
	return b.addPending(pendingSlot{k: k, slot: s, life: c.lifeOf(s), wrote: wrote}, losses)
}

// addPending queues a slot for cleaning after the next backing flush; false if too many wait, or if
// the device may have lost the data since, which was put there when losses was what it says.
func (b *Backing) addPending(p pendingSlot, losses uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mu.pending) >= maxPendingSlots || b.losses.Load() != losses {
		return false
	}
	b.mu.pending = append(b.mu.pending, p)
	return true
}

// dropPending takes the slots of the blocks out of the queue: none of them is pending any more.
func (b *Backing) dropPending(first, last Block) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.pending = slices.DeleteFunc(b.mu.pending, func(p pendingSlot) bool {
		return p.k.block() >= first && p.k.block() <= last
	})
}

// mapBlock makes the slot the block's place and appends the record, which was reserved; what the
// block had is dead. Where that was a clean copy, the record removes it: whoever changes the
// backing device has to wait for it as for any other. A pin goes over to the new slot. The stripe
// is locked.
func (c *Cache) mapBlock(b *Backing, s *stripe, k key, e entry) {
	touched, n, clean := c.place(b, k, &e)
	lsn := c.journal.append(mapRecord(k, e), touched[:n]...)
	if clean {
		s.lastUnmap = lsn
	}
}

// place is mapBlock's change of the index: it returns the buckets that it touches, and whether it
// replaced a clean copy, or perhaps one that is not loaded yet. The record comes after it, since a checkpoint that does not find the
// entry must not find the record either.
func (c *Cache) place(b *Backing, k key, e *entry) (touched [2]BucketID, n int, clean bool) {
	touched[0], n = c.bucketOf(e.slot), 1
	old, ok := c.index.find(k)
	e.st |= old.st & stPinned
	c.account(b, e.st, 1, e.slot)
	if ok {
		touched[1], n = c.bucketOf(old.slot), 2
		if old.slot == e.slot {
			e.owner = c.index.ownerOf(old.slot)
		}
		c.disown(old.slot)
		if old.st&stQueued != 0 {
			c.shadow(b, k, old)
		} else {
			c.index.remove(k, old.slot)
			c.account(b, old.st, -1, old.slot)
		}
	}
	c.index.insert(k, *e)
	c.own(e.slot, e.owner)
	return touched, n, ok && old.st&stDirty == 0 || !ok && c.loading.mayLack() && !mutated(mutLateCopyUnseen)
}

func mapRecord(k key, e entry) record {
	r := record{
		kind: recMap, mask: uint8(e.st & stMask), backing: k.backing(), sum: e.sum,
		slot: uint32(e.slot), block: k.block(),
	}
	if e.st&stDirty != 0 {
		r.flags = recDirty
	}
	if e.st&stPinned != 0 {
		r.flags |= recPinned
	}
	if e.st&stPending != 0 {
		r.flags |= recPending
	}
	if e.st&stBad != 0 {
		r.flags |= recBad
	}
	return r
}

// unmapEntry takes an entry out of the index; the record is the caller's. The stripe is locked.
func (c *Cache) unmapEntry(b *Backing, k key, e entry) {
	if e.st&stQueued != 0 {
		panic("cache: a block leaves the cache before its turn")
	}
	c.disown(e.slot)
	c.index.remove(k, e.slot)
	c.account(b, e.st, -1, e.slot)
	if c.loading.on.Load() {
		c.loading.remember(b.id, k.block(), k.block(), false)
	}
}

// setState changes the state of an entry and what is counted of it: added first, so that others
// never see too little. The stripe is locked.
func (c *Cache) setState(b *Backing, e entry, st state) {
	c.account(b, st, 1, e.slot)
	c.account(b, e.st, -1, e.slot)
	c.index.setState(e.slot, st)
}

// account adds or takes an entry to and from the counters.
func (c *Cache) account(b *Backing, st state, n int64, s Slot) {
	k := &c.buckets[c.bucketOf(s)]
	k.live.Add(int32(n))
	b.cached.Add(n)
	if st&stPinned != 0 {
		k.pinned.Add(int32(n))
		b.pinned.Add(n)
		c.pins.all.Add(n)
	}
	if st&stDirty == 0 {
		return
	}
	k.dirty.Add(int32(n))
	if st&stPending != 0 {
		return
	}
	if bit := b.bit(); n > 0 && c.journal.dirtied.Load()&bit == 0 {
		c.journal.dirtied.Or(bit) // before the record that the caller appends
	}
	c.dirty.Add(n)
	b.dirty.Add(n)
	if st&stLeave != 0 {
		b.leaving.Add(n)
	}
	switch {
	case st&stBad != 0:
		b.bad.Add(n)
	case st&stQueued != 0:
		b.order.queued.Add(n)
	}
}

// pokeBackground makes the background lane look at its work soon.
func (c *Cache) pokeBackground() {
	if l := c.bgLane.Load(); l != nil {
		l.d.Wake()
	}
}

// saveSuper writes the superblock. c.control is held.
func (c *Cache) saveSuper() error {
	switch h := c.health(); {
	case h == HealthLost:
		return c.lostError()
	case h == HealthSlow && c.ssdBusy(): // else it answers again, and nobody has said so yet
		return fmt.Errorf("the SSD does not answer (%s)", c.healthWhy())
	}
	c.sb.LSN = LSN(c.journal.durableLSN.Load())
	for i := range c.sb.Backings {
		r := &c.sb.Backings[i]
		if b := c.backing(r.ID); b != nil {
			r.LostWrites = b.unreported.Load()
		}
	}
	if err := writeSuper(c.ssd, c.sb); err != nil {
		c.sb.Seq-- // the next try goes over the same copy: the other one is good
		c.ssdFailed(err)
		return err
	}
	c.publishSuper()
	return nil
}

// publishSuper has Super return what the SSD has. c.control is held.
func (c *Cache) publishSuper() {
	sb := *c.sb
	sb.Backings = slices.Clone(sb.Backings)
	c.super.Store(&sb)
}

// Super is a copy of the superblock as it is on the SSD. It waits for no I/O.
func (c *Cache) Super() Superblock {
	sb := *c.super.Load()
	sb.Backings = slices.Clone(sb.Backings)
	return sb
}

func (c *Cache) record(id BackingID) (*BackingRecord, error) {
	for i := range c.sb.Backings {
		if c.sb.Backings[i].ID == id {
			return &c.sb.Backings[i], nil
		}
	}
	return nil, fmt.Errorf("%w: %d", ErrNoBacking, id)
}

package cache

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Open starts a cache: it loads the index, replays the journal and what a killed daemon left in
// the pending ring, and marks the cache as running. After a stop in order a large index may be loaded
// while I/O is served already: see Options.Load and Cache.Loading. The caller makes sure that nobody else has
// the device, then adds lanes, one of them for StartBackground.
func Open(dev Storage, o Options) (*Cache, error) {
	sb, err := ReadSuper(dev)
	if err != nil {
		return nil, err
	}
	c, err := newCache(dev, sb, o)
	if err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		c.release()
		return nil, err
	}
	return c, nil
}

func newCache(dev Storage, sb *Superblock, o Options) (*Cache, error) {
	c := &Cache{
		geo: sb.Geometry, checksums: sb.Checksums, epoch: sb.Epoch, opts: o, sb: sb,
		buckets: make([]bucket, sb.Geometry.Buckets),
	}
	c.ssd = notedSSD{dev, c}
	c.stallLimit = limitOf(o.StallLimit, defaultStallLimit)
	c.lossLimit = limitOf(o.LossLimit, defaultLossLimit)
	c.publishSuper()
	c.lanes.Store(&[]*Lane{})
	c.backings.Store(&[MaxBackings + 1]*Backing{})
	c.reserve = int(clamp(int64(c.geo.Buckets)/64, 4, 256))
	c.alloc.c = c
	c.tenants.init()
	c.alloc.mu.fifoHead, c.alloc.mu.fifoTail = noBucket, noBucket
	if err := c.prepare(); err != nil {
		c.release()
		return nil, err
	}
	return c, nil
}

// prepare adds the backing devices, and gets what else needs memory.
func (c *Cache) prepare() error {
	for _, r := range c.sb.Backings {
		if r.ID == 0 || r.ID > MaxBackings || r.Size <= 0 || r.LBS < SectorSize {
			return fmt.Errorf("%w: impossible record of backing device %d", ErrCorrupt, r.ID)
		}
		b, err := c.newBacking(&r)
		if err != nil {
			return err
		}
		c.addBacking(b)
		b.unreported.Store(r.LostWrites)
		b.bare.Store(earlierLife) // what an earlier process wrote past the cache may not be flushed
	}
	if p := c.opts.Pending; p == nil {
		mem, err := offHeap(PendingBytes)
		if err != nil {
			return err
		}
		c.opts.Pending, c.ringMem = mem, mem
	} else if len(p) < PendingBytes {
		return fmt.Errorf("pending ring has %d bytes, %d needed", len(p), PendingBytes)
	}
	var err error
	if c.index, err = newIndex(c.geo.slots()); err != nil {
		return err
	}
	return c.newJournal()
}

// limitOf is a limit in nanoseconds, 0 if there is none.
func limitOf(v, def time.Duration) int64 {
	switch {
	case v < 0:
		return 0
	case v == 0:
		return int64(def)
	}
	return int64(v)
}

func (c *Cache) newJournal() error {
	j := &c.journal
	j.c, j.pages, j.cacheID = c, uint64(c.geo.JournalPages), cacheID(c.sb.UUID)
	// The pending ring fits in the slack, so that a checkpoint can always commit it; each of the
	// batches that bring all summaries up to date may leave a page half empty.
	records := min(maxPendingRecs, j.pages/4*pageRecords)
	j.margin = uint64(int64(c.geo.Buckets)*c.geo.summaryPages()*pageSize/checkpointBytes) + 4
	j.settled = uint64(clamp(int64(j.pages)/16, 4, MaxBackings))
	j.slack = records/pageRecords + 1 + j.margin + j.settled
	j.firstLSN = make([]LSN, j.pages)
	j.mu.queue = bucketQueue{head: noBucket, tail: noBucket}
	j.mu.ring = pendingRing{mem: c.opts.Pending, cap: records}
	buf, err := offHeap(commitPages * pageSize)
	j.commit = commit{j: j, buf: buf}
	return err
}

// newBacking makes what a backing device needs in memory.
func (c *Cache) newBacking(r *BackingRecord) (*Backing, error) {
	b := &Backing{
		id: r.ID, name: r.Name, uuid: r.UUID, size: r.Size, dataOff: r.DataOff, lbs: int64(r.LBS),
	}
	b.wrote.Store(earlierLife)
	b.direct.Store(earlierLife)
	b.mode.Store(uint32(r.Mode))
	if r.Detaching {
		b.mode.Store(uint32(None))
		b.draining.Store(true)
		b.detaching.Store(true)
	}
	if r.Tunables.Ordered {
		if err := b.order.reserve(c, &r.Tunables); err != nil {
			return nil, fmt.Errorf("keep an order of %s: %w", r.Name, err)
		}
	}
	c.applyTunables(b, r.Tunables)
	b.order.from = r.OrderedFrom
	b.order.on.Store(r.Tunables.Ordered)
	return b, nil
}

func (c *Cache) addBacking(b *Backing) {
	all := *c.backings.Load()
	all[b.id] = b
	c.backings.Store(&all)
}

func (c *Cache) applyTunables(b *Backing, t Tunables) {
	b.cutoff.Store(t.SequentialCutoff)
	b.dirtyTarget.Store(c.geo.slots() * int64(t.DirtyTarget) / 100)
	b.dirtyMax.Store(c.geo.slots() * int64(t.DirtyMax) / 100)
	b.delay.Store(int64(t.WritebackDelay))
	b.pinMax.Store(c.geo.slots() * int64(t.PinQuota) / 100)
	b.lossKind.Store(uint32(t.Loss.Kind))
	b.lossHold.Store(int64(t.Loss.Hold))
	b.order.setLimits(c, t)
	b.hold.Store(int64(t.BackingHold))
}

// load brings the state back and begins a new epoch. It can be repeated after a crash at any
// step: until the superblock says otherwise, the pending ring still counts.
func (c *Cache) load() error {
	r := &recovery{c: c}
	stop := c.sb.stop
	if !r.loadFirst(stop) {
		stop = nil
		r = &recovery{c: c}
		if err := r.run(); err != nil {
			return err
		}
	}
	drop, err := r.confirm()
	if err != nil {
		return err
	}
	if len(drop) > 0 && stop != nil { // what is dropped is looked for everywhere
		c.unload()
		r, stop = &recovery{c: c}, nil
		if err := r.run(); err != nil {
			return err
		}
	}
	if len(drop) > 0 {
		if err := r.dropContents(drop); err != nil {
			return err
		}
	}
	if stop == nil {
		c.sortBuckets(r.lastLSN)
	} else {
		c.leaveRest(stop, r)
	}
	c.recallUntold()
	c.sb.stop, c.sb.doubt = nil, doubtRange{}
	if n := c.opts.After; n != nil {
		c.epoch = max(c.epoch, n.Epoch)
		// By an even number: the next superblock still goes over the older copy.
		c.sb.Seq += (max(n.Seq, c.sb.Seq) - c.sb.Seq + 1) &^ 1
	}
	if c.epoch == 0 || !mutated(mutEpochKept) {
		c.epoch++
	}
	c.sb.Epoch, c.sb.Clean = c.epoch, false
	for i := range c.sb.Backings {
		// A power cut may have taken records away that were counted when the order began.
		from := &c.sb.Backings[i].OrderedFrom
		*from = min(*from, c.journal.mu.next)
	}
	c.noteDirty()
	if err := c.saveSuper(); err != nil {
		return err
	}
	j := &c.journal
	j.mu.sealed = c.sb.LSN
	j.mu.ring.reset(c.sb.UUID, c.epoch, j.mu.ring.cap, j.mu.next, c.untold())
	return nil
}

// noteDirty puts into the superblock how many blocks of each backing device are dirty on record.
// Nothing else may use the cache.
func (c *Cache) noteDirty() {
	var dirty [MaxBackings + 1]uint64
	for i := range c.buckets {
		if c.buckets[i].dirty.Load() == 0 {
			continue
		}
		c.slotsOf(BucketID(i), func(s Slot) {
			if k, st := c.index.at(s); st&stDirty != 0 && !st.shadow() {
				dirty[k.backing()]++
			}
		})
	}
	for i := range c.sb.Backings {
		r := &c.sb.Backings[i]
		r.Dirty = dirty[r.ID] + 1
	}
}

// sortBuckets finds out which buckets are free, and puts the others on the FIFO by age.
func (c *Cache) sortBuckets(lastLSN []LSN) {
	a := &c.alloc
	var used []BucketID
	for i := range c.buckets {
		b := BucketID(i)
		if c.buckets[i].live.Load() > 0 {
			used = append(used, b)
		} else {
			a.mu.free = append(a.mu.free, b)
		}
	}
	slices.SortStableFunc(used, func(x, y BucketID) int { return cmp.Compare(lastLSN[x], lastLSN[y]) })
	for _, b := range used {
		a.pushFIFO(b)
	}
	a.freeCount.Store(int32(len(a.mu.free)))
}

// release gives the memory back.
func (c *Cache) release() {
	if c.index != nil {
		c.index.free()
	}
	freeOffHeap(c.journal.commit.buf)
	freeOffHeap(c.ringMem)
	for _, l := range *c.lanes.Load() {
		l.freePools()
	}
	for _, b := range c.backings.Load() {
		if b != nil {
			b.order.mu.ring.free()
		}
	}
	if l := c.bgLane.Load(); l != nil {
		freeOffHeap(l.bg.ckpt.buf)
		if l.bg.loader != nil {
			l.bg.loader.free()
		}
		freeOffHeap(l.bg.evict.move.buf)
		for _, r := range l.bg.orders {
			if r != nil {
				r.free()
			}
		}
		for _, t := range l.bg.wb.batches {
			freeOffHeap(t.buf)
		}
	}
}

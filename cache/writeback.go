package cache

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"ubcache/policy"
)

// writeback copies dirty blocks to their backing devices, in the order of their addresses, many
// neighbours in one write. It scans the buckets that have dirty slots for the next keys in order,
// and works through them in batches of one region. A block stays dirty on record until a flush
// of the backing device has covered it: written, it becomes pending.
//
// Each device has its own list of what is to be done, and may have a batch under way whatever the others have: one that is
// slow, is written to at a low rate or does not answer is no reason for others to wait.
type writeback struct {
	bg      *background
	keys    [MaxBackings + 1][]dirtyKey // to do, in order
	cursor  [MaxBackings + 1]key        // where the next scan begins
	dry     [MaxBackings + 1]bool       // a scan before rescan has found all that there is
	rescan  int64                       // a scan may take long if much is dirty
	scans   int64                       // so far
	turn    BackingID                   // whose batch was begun last
	batches []*batch
	flying  int
	filling bool
	working bool                   // some rate is not 0
	tokens  [MaxBackings + 1]int64 // blocks that may be written now
	rates   [MaxBackings + 1]int64 // blocks per second
	only    [MaxBackings + 1]bool  // write back just what is to leave the cache
	most    int                    // blocks of a batch
	last    int64
	pause   [MaxBackings + 1]int64 // after an error, until then
	// failed are blocks that the SSD has failed to read once, by itself, and the probes that say whether it is worth while to
	// read them again.
	failed map[dirtyKey]failure
	// suspects have failed again after that. They are bad if one more probe succeeds: the SSD may have gone since.
	suspects []suspect
	// flyingOf counts the batches under way of each device, and parallel says how many there may be.
	flyingOf, parallel [MaxBackings + 1]int
}

type dirtyKey struct {
	k    key
	slot Slot
}

// failure is of a slot in that life of its bucket.
type failure struct {
	want uint64
	life uint32
}

// maxFailed bounds writeback.failed. Tests change it.
var maxFailed = 64 << 10

// suspect is a block that the SSD may have lost. Its slot is pinned until it is judged.
type suspect struct {
	b *Backing
	dirtyKey
}

const (
	maxBatches = 4
	// batchBesideRT is how many blocks a batch has at most beside requests of class RT: they wait for
	// what the device has begun.
	batchBesideRT = 32
	scanKeys      = 32 << 10
	// scanRest is how many times as long as a scan took devices that have little to write back wait for the next one.
	scanRest   = 4
	errorPause = int64(time.Second)
)

// tick sets the rates and starts batches.
func (wb *writeback) tick(now int64) {
	c := wb.bg.l.c
	elapsed := now - wb.last
	wb.last = now
	if c.closing.Load() { // what is dirty stays so; the backing device is not changed any more
		wb.leaveAll()
		wb.working = false
		return
	}
	work := false
	wb.most = regionBlocks
	if wb.bg.l.contention(now).RT {
		wb.most = batchBesideRT
	}
	if now >= wb.rescan {
		wb.dry = [MaxBackings + 1]bool{}
	}
	for id, b := range c.backings.Load() {
		if b == nil {
			wb.rates[id] = 0
			continue
		}
		rate := wb.rate(b, now)
		wb.rates[b.id] = rate
		if rate == 0 {
			wb.tokens[b.id] = 0
			continue
		}
		work = true
		wb.tokens[b.id] = min(wb.tokens[b.id]+earned(rate, elapsed), max(rate/4, regionBlocks))
		if wb.parallel[b.id] = maxBatches; rate < policy.Full {
			wb.parallel[b.id] = 1
		}
	}
	wb.working = work
	if !work {
		wb.leaveAll()
		return
	}
	wb.fill(now)
}

// earned is how many blocks may be written back for that much time, in nanoseconds.
func earned(rate, elapsed int64) int64 {
	return int64(float64(rate)*float64(min(elapsed, 1e9))/1e9) + 1
}

// fill begins batches. One that finds nothing left to do ends in here.
func (wb *writeback) fill(now int64) {
	if wb.filling || wb.bg.l.c.lost() {
		return
	}
	wb.filling = true
	for wb.startBatch(now) {
	}
	wb.filling = false
}

// rate asks the policy; what no longer belongs in the cache has to go at once.
func (wb *writeback) rate(b *Backing, now int64) int64 {
	o := &b.order
	dirty := b.loose()
	if r := wb.bg.orders[b.id]; r != nil && r.busy {
		return 0 // two versions of a block must not be on their way at once
	}
	if dirty <= 0 {
		b.dirtySince.Store(0)
		return 0
	}
	wb.only[b.id] = false
	if now < wb.pause[b.id] || b.Presence() != Present || len(wb.suspects) > 0 {
		return 0
	}
	v := policy.WritebackView{
		Dirty: dirty, Target: b.dirtyTarget.Load(), Max: b.dirtyMax.Load(), All: wb.bg.l.c.dirty.Load(),
		Delay: time.Duration(b.delay.Load()), Idle: time.Duration(now - b.lastIO.Load()),
		Drain: b.draining.Load() || wb.bg.pressed || !modeTable[b.Mode()].back ||
			o.on.Load() && !o.based.Load(),
		RT: wb.bg.l.contention(now).RT,
	}
	b.dirtySince.CompareAndSwap(0, now) // what a write did not make dirty
	v.Age = time.Duration(now - b.dirtySince.Load())
	rate := policy.WritebackRate(v)
	if rate == 0 && b.leaving.Load() > 0 {
		v.Drain, wb.only[b.id] = true, true
		rate = policy.WritebackRate(v)
	}
	return rate
}

// wants reports whether a block of the state is to be written back now.
func (wb *writeback) wants(id BackingID, st state) bool {
	return st&(stDirty|stPending|stBad|stQueued) == stDirty && wb.rates[id] > 0 &&
		(!wb.only[id] || st&stLeave != 0)
}

// startBatch takes the next keys of one region, of the devices in turn; false if there are none to write now.
func (wb *writeback) startBatch(now int64) bool {
	if wb.bg.l.c.closing.Load() {
		return false
	}
	for range 2 {
		for i := range BackingID(MaxBackings) {
			id := (wb.turn+i)%MaxBackings + 1
			if r := wb.bg.orders[id]; r != nil && r.busy {
				wb.rates[id] = 0 // it has begun since the last tick
			}
			if wb.rates[id] == 0 {
				wb.leave(id)
			}
			keys := wb.keys[id]
			if len(keys) == 0 || wb.tokens[id] <= 0 || !wb.mayFly(id) {
				continue
			}
			n := 1
			for n < min(len(keys), wb.most) && keys[n].k>>regionShift == keys[0].k>>regionShift {
				n++
			}
			wb.turn = id
			wb.tokens[id] -= int64(n)
			wb.keys[id] = keys[n:]
			return wb.newBatch(keys[:n])
		}
		if !wb.scan() {
			return false
		}
	}
	return false
}

// leave gives up the keys of a device, with which the next scan begins: not with those that have just failed.
func (wb *writeback) leave(id BackingID) {
	if len(wb.keys[id]) > 0 {
		wb.cursor[id], wb.keys[id] = wb.keys[id][0].k, nil
	}
}

func (wb *writeback) leaveAll() {
	for id := range wb.keys {
		wb.leave(BackingID(id))
	}
}

// mayFly reports whether a device may have one more batch under way.
func (wb *writeback) mayFly(id BackingID) bool {
	n := wb.flyingOf[id]
	return n == 0 || n < wb.parallel[id] && wb.flying < maxBatches
}

// lacks reports whether a scan is to look for keys of a device. What a batch under way has would be found again.
func (wb *writeback) lacks(id BackingID) bool {
	return wb.rates[id] > 0 && wb.tokens[id] > 0 && len(wb.keys[id]) == 0 && wb.flyingOf[id] == 0 && !wb.dry[id]
}

// sortKeys puts keys in order, each once: a block that is overwritten while the buckets are scanned
// may be found in its old slot and in its new one. Which of them is right a batch finds out.
func sortKeys(keys []dirtyKey) []dirtyKey {
	slices.SortFunc(keys, func(a, b dirtyKey) int { return cmp.Compare(a.k, b.k) })
	return slices.CompactFunc(keys, func(a, b dirtyKey) bool { return a.k == b.k })
}

// scan finds the next dirty keys, of each device that lacks some from its cursor on, going round at the end. It reports
// whether there are any.
func (wb *writeback) scan() (found bool) {
	c := wb.bg.l.c
	var from [MaxBackings + 1]key
	var look [MaxBackings + 1]bool
	devices := 0
	for id := range look {
		if look[id] = wb.lacks(BackingID(id)); look[id] {
			devices++
		}
		from[id] = wb.cursor[id]
	}
	if devices == 0 {
		return false
	}
	most := max(scanKeys/devices, regionBlocks)
	wb.scans++
	begun := wb.bg.l.d.Clock()
	defer func() {
		now := wb.bg.l.d.Clock()
		wb.rescan = now + max(int64(tickEvery), scanRest*(now-begun))
	}()
	for range 2 {
		for b := range c.buckets {
			if c.buckets[b].dirty.Load() == 0 {
				continue
			}
			c.slotsOf(BucketID(b), func(s Slot) {
				k, st := c.index.at(s)
				id := k.backing()
				if k == 0 || !look[id] || k < from[id] || !wb.wants(id, st) {
					return
				}
				if wb.keys[id] = append(wb.keys[id], dirtyKey{k, s}); len(wb.keys[id]) >= 2*most {
					keys := sortKeys(wb.keys[id])
					wb.keys[id] = keys[:min(len(keys), most)]
				}
			})
		}
		again := false
		for id := range look {
			if !look[id] {
				continue
			}
			keys := sortKeys(wb.keys[id])
			keys = keys[:min(len(keys), most)]
			if wb.keys[id] = keys; len(keys) > 0 {
				wb.cursor[id] = keys[len(keys)-1].k + 1
				if len(keys) < most { // these are all
					wb.cursor[id], wb.dry[id] = 0, from[id] == 0
				}
				look[id], found = false, true
				continue
			}
			again, from[id] = true, 0
		}
		if !again {
			return found
		}
	}
	for id, yes := range look {
		if yes {
			wb.cursor[id], wb.dry[id] = 0, true
		}
	}
	return found
}

// sure reports whether the SSD has been there since a read of a block has failed. If that is not known, writeback
// pauses until a probe says so; it finds the block again.
func (wb *writeback) sure(l *Lane, b *Backing, d dirtyKey, err error) bool {
	h := &l.c.ssdHealth
	if ofBucket(err) && !l.c.lost() {
		life := l.c.lifeOf(d.slot)
		f, ok := wb.failed[d]
		if ok = ok && f.life == life; ok && h.good.Load() >= f.want {
			return true
		}
		if !ok {
			if wb.failed == nil {
				wb.failed = map[dirtyKey]failure{}
			}
			if len(wb.failed) >= maxFailed {
				maps.DeleteFunc(wb.failed, func(d dirtyKey, f failure) bool {
					k, st := l.c.index.at(d.slot)
					return k != d.k || st&stDirty == 0 || f.life != l.c.lifeOf(d.slot)
				})
			}
			f = failure{want: h.begun.Load() + 1, life: life}
			if len(wb.failed) < maxFailed { // else it has to wait until others are judged
				wb.failed[d] = f
			}
			storeMax(&h.wanted, f.want)
		}
	}
	wb.pause[b.id], wb.rates[b.id] = l.d.Now()+probePause, 0
	return false
}

// accuse leaves a block, and the pin of its slot, to the next probe.
func (wb *writeback) accuse(l *Lane, b *Backing, d dirtyKey) {
	h := &l.c.ssdHealth
	storeMax(&h.wanted, h.begun.Load()+1)
	wb.suspects, wb.rates[b.id] = append(wb.suspects, suspect{b, d}), 0
}

// convict is for a probe that has succeeded: the first n suspects are bad.
func (wb *writeback) convict(n int) {
	l := wb.bg.l
	n = min(n, len(wb.suspects))
	for _, s := range wb.suspects[:n] {
		delete(wb.failed, s.dirtyKey)
		l.distrust(s.b, s.k, s.slot, false)
		l.c.unpin(s.slot)
	}
	wb.suspects = slices.Delete(wb.suspects, 0, n)
}

// acquit lets go of the suspects, which are tried anew: it may have been the SSD.
func (wb *writeback) acquit() {
	for _, s := range wb.suspects {
		wb.bg.l.c.unpin(s.slot)
	}
	wb.suspects = wb.suspects[:0]
	clear(wb.failed)
}

// batch writes dirty blocks of one region.
type batch struct {
	wb   *writeback
	b    *Backing
	lock rangeLock
	w    waiter
	keys []dirtyKey
	live [regionBlocks]bool // still to be written
	// losses is Backing.losses when the writing began.
	losses uint64
	judged uint64 // Backing.judged then
	ents   [regionBlocks]entry
	lives  [regionBlocks]uint32 // of the buckets of their slots: a slot may be used again while its block is written
	buf    []byte               // the region, each block at its place
	step   batchStep
	waits  int
	need   LSN
	err    error
	busy   bool
}

type batchStep uint8

const (
	batchLock batchStep = iota
	batchRead
	batchDurable // waits for the removals of clean copies, as every change of a backing device
	batchWrite
)

// newBatch begins a batch; false if there is no memory for it now. Its keys are found again.
func (wb *writeback) newBatch(keys []dirtyKey) bool {
	l := wb.bg.l
	i := slices.IndexFunc(wb.batches, func(t *batch) bool { return !t.busy })
	if i < 0 {
		buf, err := offHeap(regionBytes)
		if err != nil {
			return false
		}
		i = len(wb.batches)
		wb.batches = append(wb.batches, &batch{wb: wb, buf: buf})
	}
	t := wb.batches[i]
	wb.flying++
	wb.flyingOf[keys[0].k.backing()]++
	t.busy, t.err, t.step = true, nil, batchLock
	t.keys = append(t.keys[:0], keys...)
	t.b = l.c.backing(keys[0].k.backing())
	t.w = waiter{lane: l, owner: t}
	t.lock = rangeLock{
		backing: t.b.id, kind: lockWriteback, first: keys[0].k.block(),
		last: keys[len(keys)-1].k.block(), owner: t.w,
	}
	s := t.stripe(l)
	s.mu.Lock()
	granted := s.acquire(&t.lock)
	s.mu.Unlock()
	if granted {
		t.run(l, nil)
	}
	return true
}

func (t *batch) stripe(l *Lane) *stripe { return l.c.index.stripeOf(t.b.id, t.lock.first) }

// at is the place of a key's block in the buffer.
func (t *batch) at(i int) []byte {
	n := int(t.keys[i].k.block() & (regionBlocks - 1))
	return t.buf[n*BlockSize : (n+1)*BlockSize]
}

// run goes on from what was waited for: it reads what is still dirty, and later writes it.
func (t *batch) run(l *Lane, err error) {
	if t.step == batchDurable {
		if t.err = err; err != nil {
			t.finish(l)
			return
		}
		t.write(l)
		return
	}
	c := l.c
	s := t.stripe(l)
	s.mu.Lock()
	for i, d := range t.keys {
		e, ok := c.index.find(d.k)
		t.live[i] = ok && e.slot == d.slot && e.st&(stDirty|stPending|stBad|stQueued) == stDirty
		t.ents[i] = e
		if t.live[i] {
			t.lives[i] = c.lifeOf(e.slot)
			c.buckets[c.bucketOf(e.slot)].pins.Add(1)
		}
	}
	t.need = s.lastUnmap
	s.mu.Unlock()
	t.step, t.waits = batchRead, 1
	for i := 0; i < len(t.keys); {
		n := 1
		if t.live[i] {
			for i+n < len(t.keys) && t.live[i+n] && t.keys[i+n].k == t.keys[i].k+key(n) &&
				t.keys[i+n].slot == t.keys[i].slot+Slot(n) {
				n++
			}
			t.waits++
			p := t.at(i)
			l.move(t, OpRead, SSD, c.geo.slotOff(t.keys[i].slot), p[:n*BlockSize:n*BlockSize],
				uint32(i)<<16|uint32(n))
		}
		i += n
	}
	t.opsDone(l)
}

func (t *batch) opDone(l *Lane, op *Op, err error) {
	if t.step == batchRead {
		t.verify(l, int(op.arg>>16), int(op.arg&0xffff), err)
	} else if err != nil {
		t.unwritten(l, op, err)
	}
	t.opsDone(l)
}

// unwritten deals with a write that has failed. One bad sector fails all of it, so its blocks are written again, each by
// itself; which of them fail stay dirty.
func (t *batch) unwritten(l *Lane, op *Op, err error) {
	from, end := op.Off-t.b.dataOff, op.Off-t.b.dataOff+op.Len
	if next := (from/BlockSize + 1) * BlockSize; next < end && !meansGone(err) && t.b.Presence() == Present {
		for ; from < end; from, next = next, next+BlockSize {
			t.waits++
			at, n := from%regionBytes, min(next, end)-from
			l.move(t, OpWrite, t.b.id, t.b.dataOff+from, t.buf[at:at+n], 0)
		}
		return
	}
	t.err = err
	for i, d := range t.keys {
		if at := int64(d.k.block()) * BlockSize; at < end && from < at+BlockSize {
			t.live[i] = false
		}
	}
}

// verify looks at what the SSD returned. One bad sector fails the operation that reads many blocks:
// they are read again, each by itself.
func (t *batch) verify(l *Lane, i, n int, err error) {
	c := l.c
	if err != nil && n > 1 {
		for j := i; j < i+n; j++ {
			t.waits++
			l.move(t, OpRead, SSD, c.geo.slotOff(t.keys[j].slot), t.at(j), uint32(j)<<16|1)
		}
		return
	}
	accused := err != nil && t.wb.sure(l, t.b, t.keys[i], err)
	for j := i; j < i+n; j++ {
		if err == nil && len(t.wb.failed) > 0 {
			delete(t.wb.failed, t.keys[j])
		}
		bad := err != nil
		if !bad && c.checksums {
			bad = dataSum(t.at(j), uint64(t.keys[j].k)) != t.ents[j].sum
		}
		if bad {
			t.live[j] = false
			if accused {
				t.wb.accuse(l, t.b, t.keys[j])
				continue
			}
			l.distrust(t.b, t.keys[j].k, t.keys[j].slot, err != nil)
		}
		c.unpin(t.keys[j].slot)
	}
}

func (t *batch) opsDone(l *Lane) {
	if t.waits--; t.waits > 0 {
		return
	}
	if t.step == batchRead {
		t.step = batchDurable
		if l.c.journal.waitDurable(t.need, &t.w, false) {
			t.write(l)
		}
		return
	}
	t.finish(l)
}

// write starts one write per run of valid sectors.
func (t *batch) write(l *Lane) {
	if t.b.Presence() != Present {
		t.err = ErrAbsent
		t.finish(l)
		return
	}
	t.step, t.waits, t.losses, t.judged = batchWrite, 1, t.b.losses.Load(), t.b.judged.Load()
	var from, to int64 // the run so far, bytes of the device
	flush := func() {
		if from < to {
			t.waits++
			at := from % regionBytes
			l.move(t, OpWrite, t.b.id, t.b.dataOff+from, t.buf[at:at+to-from], 0)
		}
		from, to = 0, 0
	}
	for i, d := range t.keys {
		if !t.live[i] {
			continue
		}
		base := int64(d.k.block()) * BlockSize
		for j := range int64(sectorsPerBlock) {
			if t.ents[i].st&(1<<j) == 0 {
				continue
			}
			if at := base + j*SectorSize; at != to || from == to {
				flush()
				from, to = at, at
			}
			to += SectorSize
		}
	}
	flush()
	t.opsDone(l)
}

// finish makes what was written pending.
func (t *batch) finish(l *Lane) {
	c := l.c
	s := t.stripe(l)
	done := int64(0)
	wrote := t.b.wrote.Add(1)
	s.mu.Lock()
	for i, d := range t.keys {
		if !t.live[i] || t.err != nil && t.step != batchWrite {
			continue
		}
		done++
		e, ok := c.findIn(d.k, d.slot, t.lives[i])
		if mutated(mutRewrittenClean) {
			e, ok = c.index.find(d.k)
		}
		if ok && e.st&(stDirty|stPending) == stDirty && c.pend(t.b, d.k, e.slot, wrote, t.losses) {
			st := e.st | stPending
			if st&stBad != 0 && !mutated(mutBadKept) { // it was read just before the SSD lost it
				st = st&^(stBad|stPinned) | stLeave // what the SSD fails loses its pin
			}
			c.setState(t.b, e, st)
			c.madeSafe(t.b, d.k)
		}
	}
	s.release(&t.lock)
	s.mu.Unlock()
	l.io[t.b.id].WritebackBlocks.Add(done)
	if t.err != nil {
		t.b.failedWith(t.err, l.d.Now())
		t.wb.pause[t.b.id] = l.d.Now() + errorPause
		if t.step == batchWrite && t.b.lacking() > 0 {
			l.bg.orderOf(t.b).fail(t.err, t.judged)
		}
	}
	t.busy = false
	t.wb.flying--
	t.wb.flyingOf[t.b.id]--
	if t.err == nil {
		t.wb.fill(l.d.Now())
	}
}

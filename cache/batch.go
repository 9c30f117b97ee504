package cache

import (
	"slices"
)

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
	wrote := t.b.wrote.Load()
	if t.step == batchWrite && slices.Contains(t.live[:len(t.keys)], true) {
		wrote = t.b.wrote.Add(1)
	}
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
		if t.step == batchWrite {
			l.bg.baseFailed(t.b, t.err, t.judged)
		}
	}
	t.busy = false
	t.wb.flying--
	t.wb.flyingOf[t.b.id]--
	if t.err == nil {
		t.wb.fill(l.d.Now())
	}
}

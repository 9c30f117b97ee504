package cache

import (
	"fmt"
	"maps"
	"time"
)

// What the cache does without its SSD
//
// The index stays in memory as it was. Clean blocks, and pending ones, are read from the backing
// device; dirty ones have no other copy, and what becomes of requests that touch them is the backing
// device's LossPolicy. Nothing enters the cache, and no record is written: the index may only lose
// what a change of the backing device makes obsolete.
//
// Such a change is one that the SSD misses. It must not be served again as if it had not: before the
// first one of a backing device Options.Missed puts a marker in a durable place that is not the SSD, and
// the next start drops what the SSD has of that device, or refuses if that includes dirty data.
// A change of blocks of which the SSD, as it would be found, knows nothing is none that it misses.
// One that makes dirty or pending sectors obsolete is flushed before they are forgotten: the backing device has something
// older should it lose the change.
//
// A FLUSH in this state answers for the backing device only. It fails as long as acknowledged data is
// nowhere but on the SSD without a record of it there (health.unsafe).

// LossKind is what becomes of a backing device with dirty data when the SSD is lost.
type LossKind uint8

const (
	// LossError: requests for dirty sectors fail, all others are served. A dirty sector that is
	// overwritten or discarded is one like others.
	LossError LossKind = iota
	// LossReadOnly: changes fail, too.
	LossReadOnly
	// LossStop: everything fails.
	LossStop
)

var lossNames = [...]string{"error", "read-only", "stop"}

func (k LossKind) String() string { return lossNames[k] }

// ParseLossKind returns the kind of that name.
func ParseLossKind(s string) (LossKind, error) {
	for i, n := range lossNames {
		if n == s {
			return LossKind(i), nil
		}
	}
	return 0, fmt.Errorf("unknown policy %q (one of error, read-only, stop)", s)
}

// DefaultLossHold is how long requests that need a lost SSD wait for it.
const (
	DefaultLossHold = 10 * time.Second
	maxLossHold     = 24 * time.Hour
)

// LossPolicy says what becomes of requests when the SSD is lost with dirty data of their device: those
// that need it, and changes of what it has, wait for Hold, as the SSD may come back; then Kind decides.
type LossPolicy struct {
	Kind LossKind
	Hold time.Duration
}

// Missed is what a marker has to say: changes of a backing device that its cache does not know of.
type Missed struct {
	Cache   UUID
	Epoch   uint64
	Backing UUID
	ID      BackingID
	Name    string
	// Dirty is how many blocks have no copy but the lost SSD's, or DirtyUnknown; of all others the backing
	// device has what was written last, flushed.
	Dirty int64
}

// DirtyUnknown stands for the number of dirty blocks where nobody knows it.
const DirtyUnknown = -1

// The states of Backing.marker.
const (
	markerNone   uint32 = iota
	markerAsked         // the background begins it
	markerMaking        // under way
	markerMade
	markerFailed // for a while: then it is tried again
)

// marker makes the marker of a backing device: the device is flushed first, so that what is pending
// does not count as dirty.
type marker struct {
	b      *Backing
	covers uint64
	failed int64 // when it has failed
}

// lose declares the SSD lost.
func (d *doctor) lose(now int64, why string, stalled bool) {
	c := d.bg.l.c
	h := &c.ssdHealth
	h.losses.Add(1)
	h.mu.Lock()
	h.mu.stalled = stalled && h.failures.Load() == d.base
	h.mu.unsafe = map[key]struct{}{}
	h.mu.Unlock()
	h.settled.Store(false)
	c.acquit()
	d.bg.acquit()
	c.journal.mu.ring.distrust()
	d.next = now + lostPause
	d.turn(now, HealthLost, why)
	// Who asks from here on is answered at once.
	c.journal.release(ErrSSDLost)
	c.loading.release(ErrSSDLost)
	for _, b := range c.backings.Load() {
		if b != nil {
			b.order.wakeAll(ErrSSDLost)
		}
	}
}

// tickLost goes on with a loss.
func (d *doctor) tickLost(now int64) {
	c := d.bg.l.c
	h := &c.ssdHealth
	if !h.settled.Load() {
		if !c.allHeard() {
			return
		}
		c.settleLoss()
		h.settled.Store(true)
	}
	hope := d.hopes()
	if !hope {
		d.ringClean = nil
	}
	for _, b := range c.backings.Load() {
		if b != nil {
			d.mark(b, now)
			d.cleanLost(b, now, hope)
		}
	}
	d.wakeLanes()
	if hope && !d.probing && now >= d.next && c.oldestSSDOp(now) == 0 {
		d.next = now + lostPause
		d.probe()
	}
	h.wakeParked()
}

// hopes reports whether the SSD may still be taken back in place. What it fails at last, as drivers do that
// give an operation up, is the end of that: it is looked for then, and taken back by a new start.
func (d *doctor) hopes() bool {
	h := &d.bg.l.c.ssdHealth
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.stalled = h.mu.stalled && h.failures.Load() == d.base
	return h.mu.stalled && !h.mu.missed
}

// allHeard reports whether every lane acts by the newest state.
func (c *Cache) allHeard() bool {
	for _, l := range *c.lanes.Load() {
		if l.heard.Load() != c.ssdHealth.turns.Load() {
			return false
		}
	}
	return true
}

// settleLoss looks through the records that the SSD may lack. From here on there are no more.
func (c *Cache) settleLoss() {
	j := &c.journal
	var recs []record
	j.mu.Lock()
	for l := LSN(j.durableLSN.Load()); l < j.mu.next; l++ {
		recs = append(recs, decodeRecord(j.mu.ring.at(l)))
	}
	j.mu.Unlock()
	for i := range recs {
		r := &recs[i]
		b := c.backing(r.backing)
		if b == nil {
			continue
		}
		switch r.kind {
		case recMap:
			if r.flags&recDirty != 0 {
				b.torn.Store(true)
				c.noteUnsafe(b, makeKey(b.id, r.block), Slot(r.slot))
			}
		case recUnmap:
			if r.flags&recCleanOnly == 0 {
				b.torn.Store(true)
			}
		case recDrop:
			b.torn.Store(true)
		}
	}
}

// noteUnsafe remembers a block that was written to the slot, if that is where it still is.
func (c *Cache) noteUnsafe(b *Backing, k key, slot Slot) {
	s := c.index.stripeOf(b.id, k.block())
	s.mu.Lock()
	e, ok := c.index.find(k)
	s.mu.Unlock()
	if !ok || e.slot != slot || e.st&(stDirty|stPending) != stDirty {
		return
	}
	c.markUnsafe(b, k)
}

// markUnsafe notes that only an SSD that is lost has a block, and perhaps not even that.
func (c *Cache) markUnsafe(b *Backing, k key) {
	h := &c.ssdHealth
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.mu.unsafe[k]; !ok && c.lost() { // else it came back this moment
		h.mu.unsafe[k] = struct{}{}
		b.unsafe.Add(1)
	}
}

// madeSafe notes that a block is on the backing device, or has been overwritten there.
func (c *Cache) madeSafe(b *Backing, k key) {
	if b.unsafe.Load() == 0 {
		return
	}
	h := &c.ssdHealth
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.mu.unsafe[k]; ok {
		delete(h.mu.unsafe, k)
		b.unsafe.Add(-1)
	}
}

// mark makes the marker of a backing device if somebody waits for it.
func (d *doctor) mark(b *Backing, now int64) {
	m := d.markers[b.id]
	if m == nil || m.b != b {
		m = &marker{b: b}
		d.markers[b.id] = m
	}
	switch b.marker.Load() {
	case markerFailed:
		if m.failed == 0 {
			m.failed = now
		}
		if now-m.failed >= errorPause {
			m.failed = 0
			b.marker.CompareAndSwap(markerFailed, markerNone)
		}
	case markerAsked:
		p := b.Presence()
		if p == Holding {
			return // what it has lost when it comes back is not known before
		}
		b.marker.Store(markerMaking)
		l := d.bg.l
		if p == Failing {
			m.made(l.c)
			return
		}
		m.covers = b.wrote.Load()
		op := l.newOp(m)
		op.Kind, op.Dev = OpFlush, b.id
		l.issue(op, nil)
	}
}

// opDone takes the flush of the backing device.
func (m *marker) opDone(l *Lane, op *Op, err error) {
	if err == nil {
		m.b.flushDone(m.covers, op.losses)
	}
	m.made(l.c)
}

// made asks for the marker.
func (m *marker) made(c *Cache) {
	b := m.b
	losses := b.losses.Load()
	dirty := b.uncovered() // also what was written back during the flush
	dirty += b.dirty.Load()
	if b.losing.Load() > 0 || b.losses.Load() != losses {
		b.marker.Store(markerAsked) // what is being lost was perhaps counted nowhere
		return
	}
	done := func(err error) {
		if err != nil {
			b.mu.Lock()
			b.mu.markerErr = fmt.Errorf("%w, and this cannot be recorded: %w", ErrSSDLost, err)
			b.mu.Unlock()
			b.marker.Store(markerFailed)
		} else {
			b.marker.Store(markerMade)
			if b.uncovered()+b.dirty.Load() > dirty { // become dirty while it was written: see keepDirty
				b.marker.CompareAndSwap(markerMade, markerAsked)
			}
		}
		c.pokeBackground()
	}
	told := dirty
	if mutated(mutMissedDirty) {
		told = 0
	}
	b.markedDirty.Store(told)
	if c.opts.Missed == nil {
		done(fmt.Errorf("there is no place for it"))
		return
	}
	c.opts.Missed(Missed{
		Cache: c.sb.UUID, Epoch: c.epoch, Backing: b.uuid, ID: b.id, Name: b.name, Dirty: told,
	}, done)
}

// uncovered is how many pending blocks wait for a flush that has not ended yet.
func (b *Backing) uncovered() (n int64) {
	covered := b.flushed.Load()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.mu.pending {
		if p.wrote > covered {
			n++
		}
	}
	return n
}

// passage says whether something may be done without the SSD.
type passage uint8

const (
	passWait passage = iota // park, and ask again
	passGo
	passFail
)

// mayChange says whether a backing device may be changed. missed says that the SSD knows something of
// what is changed.
func (l *Lane) mayChange(b *Backing, missed bool) (passage, error) {
	h := &l.c.ssdHealth
	if !h.settled.Load() {
		return passWait, nil
	}
	// An ordered device is of use by itself as long as nothing is written there out of turn.
	unsettled, lacking := b.order.unsettled(), b.lacking() > 0
	if lacking && !unsettled && b.loose() <= 0 && b.Presence() == Present {
		return passWait, nil // it only has to be flushed, see cleanLost
	}
	ordered := unsettled || lacking
	if b.dirty.Load() > 0 || ordered {
		switch holds := l.holds(b); {
		case holds && (missed || ordered):
			return passWait, nil
		case !holds && (ordered || LossKind(b.lossKind.Load()) != LossError || mutated(mutLossFailsWrites)):
			return passFail, ErrSSDLost
		}
	}
	// A start that does not find the last settled record writes that batch once more, older versions
	// included: nothing newer may be beside them.
	said := b.order.said()
	unsaid := said != 0 && !l.c.journal.isDurable(said)
	if !missed && !unsaid {
		return passGo, nil
	}
	return l.askMarker(b)
}

// mayFlush says whether a flush of the backing device makes all durable that was acknowledged, or, if not all is
// wanted, a write that has gone there: the SSD may not know that what it has of that is obsolete.
func (l *Lane) mayFlush(b *Backing, all bool) (passage, error) {
	switch {
	case !l.c.ssdHealth.settled.Load():
		return passWait, nil
	case all && b.unsafe.Load() > 0 && l.holds(b):
		return passWait, nil
	case all && b.unsafe.Load() > 0:
		return passFail, fmt.Errorf("%w, and with it %d blocks that were written last", ErrSSDLost,
			b.unsafe.Load())
	case b.torn.Load():
		return l.askMarker(b)
	}
	return passGo, nil
}

// askMarker says whether the marker of a backing device is there, and asks for it.
func (l *Lane) askMarker(b *Backing) (passage, error) {
	if mutated(mutMissedUnrecorded) {
		return passGo, nil
	}
	switch b.marker.Load() {
	case markerMade:
		return passGo, nil
	case markerFailed:
		b.mu.Lock()
		defer b.mu.Unlock()
		return passFail, b.mu.markerErr
	case markerNone:
		h := &l.c.ssdHealth
		h.mu.Lock()
		if l.c.lost() { // else it came back this moment
			h.mu.missed = true
			b.marker.CompareAndSwap(markerNone, markerAsked)
		}
		h.mu.Unlock()
		l.c.pokeBackground()
	}
	return passWait, nil
}

// holds reports whether requests of a device with dirty data still wait for the SSD.
func (l *Lane) holds(b *Backing) bool {
	return l.d.Now() < l.c.ssdHealth.since.Load()+b.lossHold.Load()
}

// stopped reports whether a backing device serves nothing any more.
func (l *Lane) stopped(b *Backing) bool {
	stop := LossKind(b.lossKind.Load()) == LossStop || mutated(mutLossFailsAll)
	return l.c.lost() && stop && b.dirty.Load() > 0 && !l.holds(b)
}

// comeBack takes the SSD back after a stall: all that it was given has ended well, and it has missed
// nothing.
func (d *doctor) comeBack(now int64) {
	c := d.bg.l.c
	h := &c.ssdHealth
	if !d.hopes() || !h.settled.Load() || c.oldestSSDOp(now) != 0 {
		return
	}
	d.dirtyAgain() // before anything can be committed or changed
	h.mu.Lock()
	ok := h.mu.stalled && !h.mu.missed && h.failures.Load() == d.base
	if ok {
		h.state.Store(uint32(HealthSlow)) // nobody asks for a marker any more
		clear(h.mu.unsafe)
	}
	h.mu.Unlock()
	if !ok {
		return
	}
	for _, b := range c.backings.Load() {
		if b != nil {
			b.torn.Store(false)
			b.unsafe.Store(0)
		}
	}
	c.journal.mu.ring.trust()
	h.commitFailing.Store(0)
	d.ckptFailing, d.failing = 0, 0
	h.returns.Add(1)
	d.turnFrom(now, HealthLost, HealthOK, "it answers again, and nothing is missing")
	h.wakeParked()
}

// cleanLost makes clean, in memory and in the pending ring, what the backing device has: should the SSD
// turn out to have lost it, the next start reads it from there. Their records on the SSD, if it has them, may
// stay as they are, for that start believes them. But as long as the SSD may be taken back in place, only the
// ring is put right: a block that is clean in memory and dirty on record would outlive its removal as a clean
// one. One that is dirty in memory and clean on record would outlive a change of the backing device, so what was done
// to the ring is undone when the SSD is back (dirtyAgain).
func (d *doctor) cleanLost(b *Backing, now int64, hope bool) {
	c := d.bg.l.c
	f := d.bg.flushOf(b)
	covered := b.flushed.Load()
	var slots map[Slot]key
	var again []pendingSlot
	late := false
	b.mu.Lock()
	left := b.mu.pending[:0]
	for _, p := range b.mu.pending {
		if p.life != c.lifeOf(p.slot) {
			continue // the slot has been used again
		}
		if p.wrote > covered {
			late = true
		}
		if hope || p.wrote > covered {
			left = append(left, p)
		}
		if p.wrote > covered || hope && covered == d.ringed[b.id] {
			continue
		}
		if slots == nil {
			slots = map[Slot]key{}
		}
		slots[p.slot] = p.k
	}
	b.mu.pending = left
	b.mu.Unlock()
	if late && !f.running && now-f.last >= pendingAge && b.Presence() == Present {
		f.running, f.last, f.covers = true, now, b.wrote.Load()
		op := d.bg.l.newOp(f)
		op.Kind, op.Dev = OpFlush, b.id
		d.bg.l.issue(op, nil)
	}
	// Whoever gets a lock only after this makes its change without the SSD, and needs the marker first.
	for slot, k := range slots {
		s := c.index.stripeOf(b.id, k.block())
		s.mu.Lock()
		e, ok := c.index.find(k)
		switch {
		case !ok || e.slot != slot || e.st&stPending == 0:
			delete(slots, slot) // a change may have failed meanwhile: see keepDirty
		case s.locked(b.id, k.block(), lockThrough):
			// Being changed: the backing device may have something newer by now, of which the SSD knows nothing.
			delete(slots, slot)
			if !hope { // it goes, or stays as it is if the change is refused, or is dirty if that fails
				again = append(again, pendingSlot{k: k, slot: slot, life: c.lifeOf(slot), wrote: covered})
			}
		case !hope:
			c.setState(b, e, e.st&^(stDirty|stPending))
		}
		s.mu.Unlock()
	}
	if hope {
		if d.ringed[b.id] = covered; len(slots) > 0 {
			c.journal.cleanPending(slots)
			if d.ringClean == nil {
				d.ringClean = map[Slot]key{}
			}
			maps.Copy(d.ringClean, slots)
		}
		return
	}
	if len(slots) > 0 {
		c.journal.cleanPending(slots)
	}
	if len(again) > 0 {
		b.mu.Lock()
		b.mu.pending = append(again, b.mu.pending...)
		b.mu.Unlock()
	}
}

// dirtyAgain makes dirty in the pending ring what cleanLost made clean there and not in memory.
func (d *doctor) dirtyAgain() {
	if len(d.ringClean) > 0 {
		d.bg.l.c.journal.uncleanPending(d.ringClean)
	}
	d.ringClean, d.ringed = nil, [MaxBackings + 1]uint64{}
}

package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Health is how the SSD does, as far as the engine can tell. The background lane decides it; the
// paths of requests look at one atomic.
type Health uint32

const (
	// HealthOK: nothing is known against it.
	HealthOK Health = iota
	// HealthSlow: an operation takes longer than Options.StallLimit. Reads of what the backing
	// device has go there, nothing is admitted, and what needs the SSD waits.
	HealthSlow
	// HealthLost: the SSD is gone, or has not done an operation for Options.LossLimit. It gets no
	// I/O any more but probes; see lost.go.
	HealthLost
)

func (h Health) String() string { return [...]string{"ok", "slow", "lost"}[h] }

// ErrSSDLost is the error of what cannot be done without the SSD.
var ErrSSDLost = errors.New("the SSD is lost")

// HealthEvent is a change of the SSD's health.
type HealthEvent struct {
	Health Health
	Was    Health
	Why    string
}

const (
	defaultStallLimit = 3 * time.Second
	defaultLossLimit  = 30 * time.Second
	// failLimit is how long probes, or writes of metadata, may go on failing before the SSD counts
	// as lost: it is between two failures without a success in between, as the second try may just hang.
	// A device that is reset by its driver is back sooner. Why they fail does not matter: without space
	// for metadata there is no cache either.
	failLimit = int64(time.Second)
	// probePause is between probes of a device that fails them, lostPause between those of one that
	// is lost.
	probePause = int64(100 * time.Millisecond)
	lostPause  = int64(time.Second)
	// overduePause is how long an operation must have been known to take too long.
	overduePause = int64(100 * time.Millisecond)
)

// health is what the cache knows of its SSD.
type health struct {
	state atomic.Uint32
	since atomic.Int64 // Driver.Now of the last change
	// turns counts the changes; a lane that has heard of the newest acts by it (Lane.heard).
	turns atomic.Uint64

	failures atomic.Int64 // operations on the SSD that failed
	gone     atomic.Bool  // one failed as on a device that is not there
	forgot   atomic.Bool  // a flush failed; see forgot.go
	doubt    atomic.Bool  // the last probe failed, or the SSD is gone: what fails now is not dropped for it
	// commitFailing is since when commits of the journal fail, 0 if they do not, and commitFailed when the
	// last one did.
	commitFailing, commitFailed atomic.Int64
	// begun is the number of the newest probe, good of the newest that succeeded, bad of the newest that failed.
	// wanted is the newest that somebody waits for.
	begun, good, bad, wanted atomic.Uint64

	// settled is set some time after the loss: every lane acts by it, and what the journal lacks has
	// been looked through. Until then changes wait.
	settled atomic.Bool

	slows, losses, returns counter

	mu struct {
		sync.Mutex
		parked  waitList
		why     string
		stalled bool // lost for the time it took, not for errors
		missed  bool // something was changed, or is about to be, that the SSD should have known
		// retired are buckets on probation; see retire.go.
		retired []BucketID
		// unsafe are dirty blocks whose records are not on the SSD.
		unsafe map[key]struct{}
	}
}

func (c *Cache) health() Health { return Health(c.ssdHealth.state.Load()) }
func (c *Cache) lost() bool     { return c.health() == HealthLost }

// around reports whether requests of a backing device go past the SSD where they can: one that is slow is better than a
// backing device that is not there.
func (c *Cache) around(b *Backing) bool {
	switch c.health() {
	case HealthSlow:
		return b.Presence() == Present && !mutated(mutStallIgnored)
	case HealthLost:
		return true
	}
	return false
}

// meansGone reports an error that only a device makes that is not there.
func meansGone(err error) bool {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return false
	}
	switch e {
	case syscall.ENODEV, syscall.ENXIO, syscall.ENOMEDIUM:
		return true
	}
	return false
}

// ssdFailed notes an operation that failed on the SSD. Any lane may call it.
func (c *Cache) ssdFailed(err error) {
	h := &c.ssdHealth
	if meansGone(err) && !h.gone.Swap(true) {
		h.doubt.Store(true)
		c.journal.mu.ring.distrust()
	}
	h.failures.Add(1)
	c.pokeBackground()
}

// park has a waiter run again when the SSD's health, or what else it waits for, may have changed.
// There are as many as requests in flight at most.
func (h *health) park(c *Cache, w *waiter) {
	h.mu.Lock()
	h.mu.parked.push(w)
	h.mu.Unlock()
	c.pokeBackground()
}

func (h *health) wakeParked() {
	h.mu.Lock()
	list := h.mu.parked.takeAll()
	h.mu.Unlock()
	list.wakeAll(nil)
}

// doctor is the background's part: it finds out how the SSD does.
type doctor struct {
	bg      *background
	buf     []byte // of probes
	probing bool
	number  uint64 // of the probe under way
	covers  int64  // health.failures when it began
	accused int    // buckets on probation then
	suspect int    // blocks that writeback suspected then
	looked  int64  // failures that a good probe has covered
	next    int64  // no probe before then
	failing int64  // since when probes fail, 0 if they do not
	failed  int64  // when the last one did
	base    int64  // failures before the present trouble
	// ckptFailing is since when checkpoints fail, ckptFailed when the last one did.
	ckptFailing, ckptFailed int64
	overdue                 int64 // since when an operation is under way too long, 0 if none is
	problem                 error // of the last probe
	second                  bool  // probe the other copy of the superblock: one may have become unreadable
	markers                 [MaxBackings + 1]*marker
	// ringed is, by device, the Backing.flushed up to which the pending ring is put right; see cleanLost.
	ringed [MaxBackings + 1]uint64
	// ringClean are the slots that are clean in the pending ring only.
	ringClean map[Slot]key
}

// tick looks at the SSD and reports whether to look again soon.
func (d *doctor) tick(now int64) (busy bool) {
	c := d.bg.l.c
	h := &c.ssdHealth
	if c.lost() {
		d.tickLost(now)
		return true
	}
	age, doubt := d.age(now)
	if c.health() == HealthOK && (c.stallLimit == 0 || age < c.stallLimit) {
		d.base = h.failures.Load()
	}
	commits := h.commitFailing.Load()
	switch {
	case h.gone.Load():
		d.lose(now, "it is gone", false)
	case h.forgot.Load():
		d.lose(now, "a flush of it has failed", false)
	case d.failing != 0 && d.failed-d.failing >= failLimit:
		d.lose(now, fmt.Sprintf("its superblock cannot be read: %v", d.problem), false)
	case commits != 0 && h.commitFailed.Load()-commits >= failLimit:
		d.lose(now, "its journal cannot be written", false)
	case d.ckptFailing != 0 && d.ckptFailed-d.ckptFailing >= failLimit:
		d.lose(now, "its metadata cannot be written", false)
	case c.lossLimit > 0 && age >= c.lossLimit:
		d.lose(now, fmt.Sprintf("an operation has not ended for %s", seconds(age)), true)
	case c.stallLimit > 0 && age >= c.stallLimit:
		if c.health() == HealthOK {
			h.slows.Add(1)
			d.turn(now, HealthSlow, fmt.Sprintf("an operation has not ended for %s", seconds(age)))
		}
	case c.health() == HealthSlow:
		d.turn(now, HealthOK, "its operations end again")
	}
	if c.lost() {
		return true
	}
	suspect := h.failures.Load() != d.looked || h.wanted.Load() > h.begun.Load()
	if suspect && !d.probing && now >= d.next {
		d.probe()
	}
	if !suspect && !d.probing {
		h.wakeParked() // who came to wait for the last probe when that had just ended
	}
	if c.health() == HealthSlow {
		d.wakeLanes() // they may have more to abandon
	}
	return suspect || doubt || d.probing || commits != 0 || d.ckptFailing != 0 || c.health() != HealthOK
}

// age is how long the oldest operation on the SSD has been under way. What is too old counts only when it
// still is a moment later, and doubt says that this is not known yet: a process that stood still, as a
// stopped one does or one in a paused virtual machine, first has to look at what has ended meanwhile.
func (d *doctor) age(now int64) (age int64, doubt bool) {
	c := d.bg.l.c
	age = c.oldestSSDOp(now)
	if !(c.stallLimit > 0 && age >= c.stallLimit || c.lossLimit > 0 && age >= c.lossLimit) {
		d.overdue = 0
		return age, false
	}
	if d.overdue == 0 {
		d.overdue = now
	}
	if now-d.overdue < overduePause {
		return 0, true
	}
	return age, false
}

func seconds(ns int64) time.Duration { return time.Duration(ns).Round(100 * time.Millisecond) }

// oldestSSDOp is the age of the oldest operation on the SSD that is under way.
func (c *Cache) oldestSSDOp(now int64) (age int64) {
	for _, l := range *c.lanes.Load() {
		if at := l.ssdOps.oldest.Load(); at != 0 {
			age = max(age, now-at)
		}
	}
	return age
}

// ssdBusy reports whether operations on the SSD are under way.
func (c *Cache) ssdBusy() bool {
	for _, l := range *c.lanes.Load() {
		if l.ssdOps.oldest.Load() != 0 {
			return true
		}
	}
	return false
}

// turn changes the state and lets everybody know.
func (d *doctor) turn(now int64, to Health, why string) { d.turnFrom(now, d.bg.l.c.health(), to, why) }

func (d *doctor) turnFrom(now int64, was, to Health, why string) {
	c := d.bg.l.c
	h := &c.ssdHealth
	h.mu.Lock()
	h.mu.why = why
	h.since.Store(now)
	h.state.Store(uint32(to))
	h.mu.Unlock()
	h.turns.Add(1)
	d.bg.l.heard.Store(h.turns.Load())
	d.wakeLanes()
	if c.opts.Health != nil {
		c.opts.Health(HealthEvent{Health: to, Was: was, Why: why})
	}
}

func (d *doctor) wakeLanes() {
	for _, l := range *d.bg.l.c.lanes.Load() {
		l.d.Wake()
	}
}

// probe reads the superblock.
func (d *doctor) probe() {
	if d.buf == nil {
		var err error
		if d.buf, err = offHeap(pageSize); err != nil {
			return
		}
	}
	l := d.bg.l
	h := &l.c.ssdHealth
	d.probing, d.covers, d.accused = true, h.failures.Load(), h.retired()
	d.suspect, d.number = len(d.bg.wb.suspects), h.begun.Add(1)
	op := l.newOp(d)
	op.Kind, op.Dev, op.Off, op.Len = OpRead, SSD, superOffA, pageSize
	if d.second {
		op.Off = superOffB
	}
	op.Mem, op.probe = d.buf, true
	l.send(op)
}

func (d *doctor) opDone(l *Lane, _ *Op, err error) {
	c, now := l.c, l.d.Now()
	h := &c.ssdHealth
	d.probing = false
	if err == nil && !d.ours() {
		err = errors.New("it holds something else")
	}
	switch d.problem = err; {
	case err != nil:
		d.second = !d.second
		h.doubt.Store(true)
		h.bad.Store(d.number)
		c.acquit()
		d.bg.acquit()
		d.failed, d.next = now, now+probePause
		if d.failing == 0 {
			d.failing = now
		}
	default:
		d.failing, d.looked = 0, d.covers
		h.doubt.Store(h.gone.Load())
		h.convict(d.accused)
		d.bg.convict(d.suspect, d.number)
		h.good.Store(d.number)
		h.wakeParked()
		if c.lost() {
			d.comeBack(now)
		}
	}
}

// convict is for a probe that has succeeded: what the SSD failed to read before it is bad, of writeback's suspects the
// first n.
func (bg *background) convict(n int, probe uint64) {
	bg.wb.convict(n)
	for _, r := range bg.orders {
		if r != nil {
			r.convict(probe)
		}
	}
}

// acquit is for a probe that has failed, and for the loss of the SSD: nothing is bad for what has failed so far.
func (bg *background) acquit() {
	bg.wb.acquit()
	for _, r := range bg.orders {
		if r != nil {
			r.acquit()
		}
	}
}

// ours reports whether what the probe has read is a superblock of this cache and this start of it. An
// older one is of a copy that was made before.
func (d *doctor) ours() bool {
	c := d.bg.l.c
	return string(d.buf[:8]) == superMagic && UUID(d.buf[supUUID:supUUID+16]) == c.sb.UUID &&
		binary.LittleEndian.Uint64(d.buf[supEpoch:]) == c.epoch
}

// lostError says that, and why, the SSD is lost; nil if it is not.
func (c *Cache) lostError() error {
	if !c.lost() {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrSSDLost, c.healthWhy())
}

func (c *Cache) healthWhy() string {
	h := &c.ssdHealth
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.why
}

// Loss is what somebody has to know who would take a lost SSD back by starting anew.
type Loss struct {
	Why     string
	Stalled bool   // by the time it took, without an error: it is taken back in place, if nothing is missed
	Busy    bool   // operations on it are still under way
	Missed  []UUID // backing devices that have changed without it
	// DirtyMissed are those of them, by name, that have dirty data on the SSD: it is refused then.
	DirtyMissed []string
}

// Loss describes the loss of the SSD; ok is false if it is not lost.
func (c *Cache) Loss() (l Loss, ok bool) {
	if !c.lost() {
		return l, false
	}
	h := &c.ssdHealth
	h.mu.Lock()
	l.Why, l.Stalled = h.mu.why, h.mu.stalled && !h.mu.missed
	h.mu.Unlock()
	l.Busy = c.ssdBusy()
	for _, b := range c.backings.Load() {
		if b == nil || b.marker.Load() == markerNone {
			continue
		}
		l.Missed = append(l.Missed, b.uuid)
		if b.markedDirty.Load() > 0 {
			l.DirtyMissed = append(l.DirtyMissed, b.name)
		}
	}
	return l, true
}

package cache

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// orderRun writes back the queue of an ordered device, batch by batch. It is the background lane's.
// The blocks of a batch are sorted, so that the backing device is written in the order of
// addresses, and of a block that was written several times within it only the last version counts.
//
// A batch of which there is more than fits is cut; any cut is right that leaves the older part
// first. So is a batch of which the flush that ends it has not come yet.
type orderRun struct {
	bg    *background
	b     *Backing
	w     waiter
	step  orderStep
	busy  bool
	list  []queued // sorted
	next  int      // the first that no piece has
	count uint64   // versions of the queue that the batch takes
	bound LSN      // all of their records are before it
	slots [orderPieces]orderPiece
	waits int // pieces and operations under way
	wrote uint64
	// losses is Backing.losses when the batch began.
	losses uint64
	judged uint64 // Backing.judged when the try began
	err    error  // of the backing device or the journal
	// ticket is the first probe that counts since tries have failed as they do if the device is gone, or 0.
	ticket uint64
	sick   error // of the SSD
	away   bool  // that is no verdict on any version: it may have been all of the SSD
	tries  int   // in which the SSD failed a read
	// suspects are what it failed to read by itself, at one of the last two tries. If a probe succeeds that begins afterwards,
	// number want, the SSD was not gone. They are bad then if it was the second time: failed are the slots of the first one.
	suspects []queued
	want     uint64
	// lost are the slots of those of the batch that are given up. What is bad otherwise the order has read rightly.
	lost   map[Slot]struct{}
	failed map[Slot]struct{}

	begun   int64
	retry   int64  // not before then, after an error
	last    int64  // when tokens were counted
	tokens  int64  // versions that may be written now
	said    LSN    // the newest settled record
	baseEnd LSN    // what was queued later did not wait for the base
	doubts  uint64 // when the flush for the base began
	image   LSN    // the record with which it becomes known that the device is an image, or 0

	// How fast it goes, for the limit: what was settled lately and how long that took.
	settledLately int64
	busyLately    int64
}

// free gives its memory back.
func (r *orderRun) free() {
	for i := range r.slots {
		freeOffHeap(r.slots[i].buf)
		r.slots[i].buf = nil
	}
}

type orderStep uint8

const (
	orderBase    orderStep = iota // the base is being flushed
	orderDurable                  // waits for the record of the last batch
	orderCopy                     // the pieces are on their way
	orderProbe                    // waits for a probe of the SSD
	orderFlush                    // the backing device is being flushed
	orderSettle                   // there was no room for the record
)

const (
	// orderBatch bounds a batch, and with it the memory for sorting it, in versions.
	orderBatch  = 32 << 10
	orderPieces = 4
	// sickTries is how often the SSD may fail to read versions before those that it fails are given up.
	sickTries = 3
	// minAllowed is what may be queued however slow the backing device is.
	minAllowed = 256
	lately     = int64(10 * time.Second)
	// soonAge is the limit of age below which a look every second is too rare.
	soonAge = int64(10 * time.Second)
)

// errLost is why a batch is written again.
var errLost = errors.New("the backing device was gone meanwhile")

func (r *orderRun) flush() {
	l := r.bg.l
	r.waits, r.wrote = 1, r.b.wrote.Load()
	op := l.newOp(r)
	op.Kind, op.Dev = OpFlush, r.b.id
	l.issue(op, nil)
}

// begin starts the next batch, if one is due.
func (r *orderRun) begin(now int64) (soon bool) {
	l, o := r.bg.l, &r.b.order
	urgent, rate, have := r.due(now)
	elapsed := now - r.last
	r.last = now
	if r.tokens = min(r.tokens+earned(rate, elapsed), max(rate/4, regionBlocks)); rate == 0 {
		r.tokens = 0
	}
	switch {
	case !urgent && r.tokens <= 0:
		return rate > 0 || have > 0 && o.age.Load() < soonAge
	case r.bg.wb.flyingOf[r.b.id] > 0:
		return true // it may be writing an older version of what is in the batch
	case l.c.journal.hasNoRoom() && !l.c.journal.heldBy(o):
		return true // who holds the tail comes first
	}
	if !r.gather() {
		l.c.journal.kick(l)
		return true
	}
	r.tokens -= int64(r.count)
	r.busy, r.step, r.begun = true, orderDurable, now
	if l.c.journal.waitDurable(r.said, &r.w, true) {
		r.copy()
	}
	return true
}

// gather takes the versions of the next batch whose records are durable; false if there are none.
func (r *orderRun) gather() bool {
	o := &r.b.order
	durable := LSN(r.bg.l.c.journal.durableLSN.Load())
	r.list, r.next, r.count, r.err = r.list[:0], 0, 0, nil
	r.sick, r.away, r.suspects = nil, false, r.suspects[:0]
	clear(r.lost)
	o.mu.Lock()
	defer o.mu.Unlock()
	q := &o.mu.ring
	for i := q.head; i != q.tail && len(r.list) < orderBatch; i++ {
		v := q.at(i)
		if v.lsn >= durable {
			break
		}
		if mutated(mutOrderNewest) {
			if e, ok := r.bg.l.c.index.find(v.k); ok && e.st&stBad == 0 {
				v.slot, v.sum, v.mask = e.slot, e.sum, uint8(e.st&stMask)
			}
		}
		r.list = append(r.list, v)
		r.bound = v.lsn + 1
		if v.end {
			break
		}
	}
	r.count = uint64(len(r.list))
	slices.SortFunc(r.list, func(a, b queued) int {
		return cmp.Or(cmp.Compare(a.k, b.k), cmp.Compare(a.lsn, b.lsn))
	})
	n := 0
	for i := range r.list {
		if i+1 == len(r.list) || r.list[i+1].k != r.list[i].k {
			r.list[n] = r.list[i]
			n++
		}
	}
	r.list = r.list[:n]
	return n > 0
}

// run goes on when the record of the last batch is durable.
func (r *orderRun) run(_ *Lane, err error) {
	if err != nil {
		r.fail(err, r.b.judged.Load())
		return
	}
	r.copy()
}

// there reports whether the device is. Else the batch is left to a later try: what is begun on a device that comes back is
// not to count before it is known what that has lost.
func (r *orderRun) there() bool {
	if r.b.Presence() == Present {
		return true
	}
	r.later()
	return false
}

// copy starts the pieces.
func (r *orderRun) copy() {
	if !r.there() {
		return
	}
	r.step, r.waits, r.losses, r.judged = orderCopy, 1, r.b.losses.Load(), r.b.judged.Load()
	for i := range r.slots {
		r.waits++
		r.slots[i].start()
	}
	r.pieceDone()
}

// pieceDone ends a piece for which there is nothing more to do; after the last one the backing device
// is flushed.
func (r *orderRun) pieceDone() {
	if r.waits--; r.waits > 0 {
		return
	}
	switch {
	case r.err != nil:
		r.fail(r.err, r.judged)
		return
	case r.sick != nil && r.away:
		r.anew()
		r.later()
		return
	case r.sick != nil && len(r.suspects) == 0 && !r.lastTry():
		r.tries++
		r.later()
		return
	case len(r.suspects) > 0:
		h := &r.bg.l.c.ssdHealth
		r.step, r.want = orderProbe, h.begun.Load()+1
		storeMax(&h.wanted, r.want)
		return
	}
	r.copied()
}

// splits reports whether what the SSD fails to read at once is read one by one.
func (r *orderRun) splits() bool { return r.tries >= sickTries-2 && !r.away }

// lastTry reports whether what the SSD fails to read now is not tried again, unless it turns out to be away.
func (r *orderRun) lastTry() bool { return r.tries == sickTries-1 && !r.away }

// convict is background.convict for the suspects. One that has failed for the first time is read once more, as all others.
func (r *orderRun) convict(probe uint64) {
	if !r.busy || r.step != orderProbe || probe < r.want {
		return
	}
	if r.failed == nil {
		r.failed = map[Slot]struct{}{}
	}
	n := len(r.failed)
	for _, v := range r.suspects {
		r.failed[v.slot] = struct{}{}
	}
	if len(r.failed) > n {
		r.tries = sickTries - 1
		r.later()
		return
	}
	for _, v := range r.suspects {
		r.condemn(v)
	}
	r.copied()
}

// acquit is background.acquit: the tries begin anew.
func (r *orderRun) acquit() {
	r.anew()
	r.away = true
	if r.busy && r.step == orderProbe {
		r.later()
	}
}

// anew forgets the tries so far.
func (r *orderRun) anew() {
	r.tries = 0
	clear(r.failed)
}

// condemn gives up a version that the SSD has lost.
func (r *orderRun) condemn(v queued) {
	if r.lost == nil {
		r.lost = map[Slot]struct{}{}
	}
	r.lost[v.slot] = struct{}{}
	r.bg.l.distrust(r.b, v.k, v.slot, false)
}

// copied flushes the backing device, which has all of the batch.
func (r *orderRun) copied() {
	if !r.there() {
		return
	}
	r.b.wrote.Add(1)
	if mutated(mutOrderUnflushed) {
		r.anew()
		r.wrote, r.step = r.b.wrote.Load(), orderSettle
		r.settle()
		return
	}
	r.step = orderFlush
	r.flush()
}

func (r *orderRun) opDone(l *Lane, op *Op, err error) {
	r.waits--
	switch {
	case err != nil && r.step == orderBase && !r.b.order.image():
		r.later()
		r.b.failedWith(err, l.d.Now())
		r.bg.baseFailed(r.b, err, r.judged)
		return
	case err != nil:
		r.fail(err, r.judged)
		return
	}
	if r.step == orderFlush && r.losses != r.b.losses.Load() {
		r.fail(errLost, r.judged) // what was written before may be gone: the batch has to go there again
		return
	}
	r.b.flushDone(r.wrote, op.losses)
	if r.step == orderBase {
		r.busy, r.ticket = false, 0
		if r.b.order.basedSince(r.doubts) {
			r.looksSound()
		}
		l.bg.cleanBacking(r.b)
		r.tick(l.d.Now())
		return
	}
	r.anew()
	r.ticket = 0
	r.step = orderSettle
	r.settle()
}

// later leaves the batch to a later try because of the SSD. Those who wait for it go on waiting: the SSD
// returns what is wanted, or it is lost, one version or all of it.
func (r *orderRun) later() { r.busy, r.retry = false, r.bg.l.d.Now()+errorPause }

// fail leaves the batch to a later try because of the backing device, and tells those who wait for it. They
// wait on if the device may be gone: if it is, the policy for that says for how long (absent), and
// if a probe finds it there, and a try that begins then fails, too, they fail. judged is Backing.judged when this one began.
func (r *orderRun) fail(err error, judged uint64) {
	r.later()
	b := r.b
	if !errors.Is(err, errLost) {
		b.failedWith(err, r.bg.l.d.Now())
	}
	switch gone := r.bg.l.c.opts.Suspect != nil && explainsAbsence(err); {
	case errors.Is(err, errLost):
		return
	case gone && r.ticket == 0:
		r.ticket = b.probes.Load() + 1
		return
	case gone && (judged < r.ticket || b.Presence() == Holding):
		return
	}
	r.ticket = 0
	b.order.wakeAll(err)
}

// baseFailed is for writeback of what has to be on an ordered device before its queue, which has failed. Who waits for that
// learns of it; but if the device is no image yet, the order begins anew: nothing is lost by that.
func (bg *background) baseFailed(b *Backing, err error, judged uint64) {
	o := &b.order
	if !o.on.Load() || o.based.Load() {
		return
	}
	switch r := bg.orderOf(b); {
	case b.lacking() > 0:
		r.fail(err, judged)
	case !o.image() && !r.busy && o.waited() && bg.l.c.journal.reserveSettled():
		r.dissolve(true)
	}
}

// settle makes the batch history: the backing device has it for good.
func (r *orderRun) settle() {
	l, o := r.bg.l, &r.b.order
	c := l.c
	if !c.journal.reserveSettled() {
		return // at the next tick again
	}
	said := c.journal.append(settledRecord(r.b.id, r.bound))
	r.said = said
	o.mu.Lock()
	first := o.mu.ring.head
	o.mu.Unlock()
	for i := first; i != first+r.count; i++ {
		o.mu.Lock()
		v := o.mu.ring.at(i)
		o.mu.Unlock()
		r.settleOne(v)
	}
	now := l.d.Now()
	r.measure(now)
	o.mu.Lock()
	o.mu.ring.head += r.count
	o.mu.last = said
	o.mu.allowed = r.allowed()
	room := o.mu.room.takeAll()
	var done waitList
	if q := &o.mu.ring; q.len() != 0 {
		done = o.mu.settled.takeDurable(q.lsn(q.head) + 1)
	} else { // also who came since said was appended
		done = o.mu.settled.takeAll()
	}
	o.mu.Unlock()
	l.io[r.b.id].WritebackBlocks.Add(int64(len(r.list)))
	l.io[r.b.id].SettledBatches.Add(1)
	r.busy = false
	r.looksSound()
	room.wakeAll(nil)
	done.wakeAll(nil)
	l.bg.cleanBacking(r.b)
	c.journal.kick(l)
	c.journal.advanceTail()
	if r.b.loose() > 0 {
		c.pokeBackground() // writeback has its turn first
		return
	}
	r.tick(now)
}

package cache

import (
	"sync"
	"sync/atomic"
)

// Journal pages, little-endian: magic (4), version (2), count of records (2), first half of the
// cache UUID (8), epoch (8), sequence (8), own page in the ring (4), flags (4), LSN of the first
// record (8), sequence at which replay starts (8), newest sequence known durable (8), checksum
// (8), records; at 36 a flag (4) that the last but one word (8) says which backing devices may have
// dirty data. The last word says which ordered devices are images.
const (
	journalMagic  = 0x4c4a4255 // "UBJL"
	jpVersion     = 4
	jpCount       = 6
	jpCache       = 8
	jpEpoch       = 16
	jpSeq         = 24
	jpIndex       = 32
	jpFlags       = 36
	jpFirst       = 40
	jpTail        = 48
	jpDurable     = 56
	jpSum         = 64
	journalHeader = 72
	pageRecords   = (pageSize - journalHeader) / recordBytes
	jpDirty       = journalHeader + pageRecords*recordBytes
	jpImages      = jpDirty + 8

	jpHasDirty = 1 // flag: jpDirty is there

	// pageEndsCommit says that what is durable may end with this page: a flush may have been
	// acknowledged then, so no batch of an ordered device goes on in the next.
	pageEndsCommit = 1 << 1

	// commitPages bounds one round of a commit.
	commitPages = 64
)

// journal is the log of index changes: a ring of pages on the SSD, each written once per turn,
// and the pending ring of the records not written yet.
//
// A commit makes the records durable: one flush of the SSD, which covers the data that the
// records speak of, then the pages with FUA. So a record on the SSD never lacks its data. Commits
// are shared: one runs at a time, on the lane that needed it first, and takes along whatever
// has been appended by the time it starts.
type journal struct {
	c        *Cache
	pages    uint64 // size of the ring
	slack    uint64 // pages kept free for the commits of checkpoints
	margin   uint64 // pages that these may leave half empty
	settled  uint64 // pages kept free besides for the settled records of ordered devices
	cacheID  uint64
	firstLSN []LSN // per ring page: the first record it holds; guarded by mu

	durableLSN atomic.Uint64 // records before it are durable

	// dirtied has a bit for each backing device, from number 1 on, that has had dirty blocks since
	// the start, pending ones not counted. Each page says so of all records up to it: if part of the
	// metadata is lost, that proves that nothing is lost with it but copies.
	dirtied atomic.Uint64

	// images has a bit for each ordered device that is an image, or is one as soon as that is durable. Each page has it.
	images atomic.Uint64

	mu struct {
		sync.Mutex
		ring     pendingRing
		next     LSN    // of the next record
		reserved uint64 // records promised to operations under way
		pageSeq  uint64 // of the next page
		tailSeq  uint64 // replay starts there
		durSeq   uint64 // newest durable page
		sealed   LSN    // that the records before it were durable is on record
		waiting  waitList
		credits  waitList
		urgent   LSN // a checkpoint waits for this record: the slack may be used
		running  bool
		stalled  bool // the commit stopped for lack of space
		queue    bucketQueue
	}

	commit commit // the one commit machine; its fields belong to the lane that runs it
}

// reserve promises room for n records, or reports that there is none now.
func (j *journal) reserve(n int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.reserveLocked(n)
}

// reserveSettled promises room for a settled record, of which there is some kept: a full journal may
// be waiting for it.
func (j *journal) reserveSettled() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fits(1, 0, 0)
}

// reserveLocked keeps two promises: the records fit in the pending ring, and all that is in there
// fits in the free pages of the journal, so that it can be committed whatever happens.
func (j *journal) reserveLocked(n int) bool {
	return j.fits(n, MaxBackings, j.settled)
}

// fits reserves n records unless that leaves less than the given number of records and pages.
func (j *journal) fits(n int, records, pages uint64) bool {
	if j.c.lost() {
		return false
	}
	used := uint64(j.mu.next) - j.durableLSN.Load() + j.mu.reserved + uint64(n)
	if used+records > j.mu.ring.cap || used/pageRecords+1+j.margin+pages > j.freePages() {
		return false
	}
	j.mu.reserved += uint64(n)
	return true
}

func (j *journal) freePages() uint64 { return j.pages - (j.mu.pageSeq - j.mu.tailSeq) }

// reserveOrWait promises room for n records, or queues w, whose owner then asks again.
func (j *journal) reserveOrWait(n int, w *waiter) bool {
	j.mu.Lock()
	ok := j.reserveLocked(n)
	if !ok && j.c.lost() {
		j.mu.Unlock()
		w.wake(ErrSSDLost)
		return false
	}
	if !ok {
		j.mu.credits.push(w)
	}
	start := !ok && !j.mu.running && j.mu.next > LSN(j.durableLSN.Load())
	j.mu.Unlock()
	if start {
		j.start(w.lane)
	}
	if !ok {
		j.c.pokeBackground()
	}
	return ok
}

// unreserve gives back what was promised and not appended.
func (j *journal) unreserve(n int) {
	if n == 0 {
		return
	}
	j.mu.Lock()
	j.mu.reserved -= uint64(n)
	wake := j.mu.credits.takeAll()
	j.mu.Unlock()
	wake.wakeAll(nil)
}

// changeShare is the part of the room that changes of one backing device may have been promised: while the device is gone
// they keep it, and others need some.
const changeShare = 4

// reserveChange is reserveOrWait for a change of a backing device. One at a time may have more than the share.
func (j *journal) reserveChange(b *Backing, n int, w *waiter) bool {
	most := min(j.mu.ring.cap, j.pages*pageRecords) / changeShare
	j.mu.Lock()
	if b.share.held > 0 && uint64(b.share.held+n) > most && !j.c.lost() {
		b.share.waiting.push(w)
		j.mu.Unlock()
		return false
	}
	ok := j.reserveLocked(n)
	if ok {
		b.share.held += n
	}
	j.mu.Unlock()
	if ok {
		return true
	}
	if !j.reserveOrWait(n, w) {
		return false
	}
	j.mu.Lock()
	b.share.held += n
	j.mu.Unlock()
	return true
}

// unreserveChange gives back what is left of what was promised.
func (j *journal) unreserveChange(b *Backing, promised, left int) {
	if promised == 0 {
		j.unreserve(left)
		return
	}
	j.mu.Lock()
	b.share.held -= promised
	wake := b.share.waiting.takeAll()
	if left > 0 {
		j.mu.reserved -= uint64(left)
		wake.join(j.mu.credits.takeAll())
	}
	j.mu.Unlock()
	wake.wakeAll(nil)
}

// append adds a record that was reserved. The stripe of the block is locked by the caller, so
// that records of one block are in the order of its changes. The buckets that the change touches
// are noted for the next checkpoint.
func (j *journal) append(r record, touched ...BucketID) LSN {
	j.mu.Lock()
	l, half := j.appendLocked(r, touched)
	j.mu.Unlock()
	if half {
		j.c.pokeBackground()
	}
	return l
}

// appendLocked is append with j.mu held. half says that the background should commit before
// appenders have to wait for it.
func (j *journal) appendLocked(r record, touched []BucketID) (l LSN, half bool) {
	l = j.mu.next
	r.encode(j.mu.ring.at(l))
	j.mu.next++
	j.mu.reserved--
	for _, b := range touched {
		j.mu.queue.note(j.c.buckets, b, l)
	}
	if !mutated(mutRingUnpublished) {
		j.mu.ring.publish(j.mu.next)
	}
	return l, uint64(j.mu.next)-j.durableLSN.Load() == j.mu.ring.cap/2
}

// release lets go of all who wait for the journal.
func (j *journal) release(err error) {
	j.mu.Lock()
	list := j.mu.waiting.takeAll()
	list.join(j.mu.credits.takeAll())
	for _, b := range j.c.backings.Load() {
		if b != nil {
			list.join(b.share.waiting.takeAll())
		}
	}
	j.mu.Unlock()
	list.wakeAll(err)
}

// cleanPending makes clean what records that are not on the SSD say of these slots.
func (j *journal) cleanPending(slots map[Slot]key) {
	j.rewrite(func(r *record) {
		if slots[Slot(r.slot)] == makeKey(r.backing, r.block) {
			r.flags &^= recDirty
		}
	})
}

// uncleanPending takes cleanPending back.
func (j *journal) uncleanPending(slots map[Slot]key) {
	j.rewrite(func(r *record) {
		if slots[Slot(r.slot)] == makeKey(r.backing, r.block) {
			r.flags |= recDirty
		}
	})
}

// dirtyPending takes out of the records that are not on the SSD that the backing device had what they say of these
// slots, which is dirty. It returns those blocks.
func (j *journal) dirtyPending(slots map[Slot]key) (found []key) {
	j.rewrite(func(r *record) {
		if k, ok := slots[Slot(r.slot)]; ok && k == makeKey(r.backing, r.block) {
			r.flags &^= recPending
			found = append(found, k)
		}
	})
	return found
}

// losePending takes out of the records that are not on the SSD that the backing device had what they speak of.
// It returns what they say is dirty of that, and of what was written back there since they were made.
func (j *journal) losePending(id BackingID, written []pendingSlot) (found []pendingSlot) {
	back := make(map[Slot]key, len(written))
	for _, p := range written {
		back[p.slot] = p.k
	}
	j.rewrite(func(r *record) {
		if r.backing != id {
			return
		}
		k, slot := makeKey(id, r.block), Slot(r.slot)
		was := r.flags&recPending != 0
		r.flags &^= recPending
		if r.flags&recDirty != 0 && (was || back[slot] == k) {
			found = append(found, pendingSlot{k: k, slot: slot})
		}
	})
	return found
}

// rewrite changes the flags of map records that are not on the SSD.
func (j *journal) rewrite(change func(r *record)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for l := LSN(j.durableLSN.Load()); l < j.mu.next; l++ {
		p := j.mu.ring.at(l)
		r := decodeRecord(p)
		if was := r.flags; r.kind == recMap {
			if change(&r); r.flags != was {
				r.encode(p)
			}
		}
	}
}

// nextLSN is the LSN that the next record will get.
func (j *journal) nextLSN() LSN {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.next
}

// isDurable reports whether the record, and all before it, are durable.
func (j *journal) isDurable(l LSN) bool { return l < LSN(j.durableLSN.Load()) }

// waitDurable reports true if all records up to and with l are durable; otherwise w's owner runs
// when they are, or when the attempt failed. urgent is for checkpoints.
func (j *journal) waitDurable(l LSN, w *waiter, urgent bool) bool {
	if l == 0 || j.isDurable(l) {
		return true
	}
	j.mu.Lock()
	if j.isDurable(l) {
		j.mu.Unlock()
		return true
	}
	if j.c.lost() {
		j.mu.Unlock()
		w.wake(ErrSSDLost)
		return false
	}
	w.lsn = l
	j.mu.waiting.push(w)
	if urgent {
		j.mu.urgent = max(j.mu.urgent, l)
	}
	start := !j.mu.running
	resume := j.mu.stalled && urgent
	if resume {
		j.mu.stalled = false
	}
	j.mu.Unlock()
	switch {
	case start:
		j.start(w.lane)
	case resume:
		j.commit.resume.wake(nil)
	}
	return false
}

// kick starts a commit of what is pending, if none runs.
func (j *journal) kick(l *Lane) {
	if LSN(j.durableLSN.Load()) < j.nextLSN() {
		j.start(l)
	}
}

// urge lets a commit that has stopped for lack of space use the slack, as for a checkpoint.
func (j *journal) urge() {
	j.mu.Lock()
	resume := j.mu.stalled
	if resume {
		j.mu.stalled, j.mu.urgent = false, j.mu.next-1
	}
	j.mu.Unlock()
	if resume {
		j.commit.resume.wake(nil)
	}
}

// pendingRecords is how many records are not durable, and how many there may be.
func (j *journal) pendingRecords() (n, limit uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return uint64(j.mu.next) - j.durableLSN.Load(), j.mu.ring.cap
}

// usedPages is the part of the ring between tail and head.
func (j *journal) usedPages() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.pageSeq - j.mu.tailSeq
}

// needsRoom reports whether checkpoints should move the tail: half the ring is used, or somebody
// waits for pages.
func (j *journal) needsRoom() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.pageSeq-j.mu.tailSeq >= j.pages/2 || j.mu.stalled || j.mu.credits.head != nil
}

// hasNoRoom reports whether a commit or an operation waits for pages.
func (j *journal) hasNoRoom() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.stalled || j.mu.credits.head != nil
}

// summariesFrom is the oldest change that no summary has.
func (j *journal) summariesFrom() LSN {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.queue.oldest(j.c.buckets, noLSN)
}

// heldByOrders reports whether the tail is where it is for what an ordered device has to write back,
// so that checkpoints cannot move it.
func (j *journal) heldByOrders() bool { return j.c.oldestQueued(noLSN) < j.summariesFrom() }

// heldBy reports whether nothing that holds the tail is older than what the device has to write
// back.
func (j *journal) heldBy(o *order) bool {
	first := j.c.oldestQueued(noLSN)
	return o.oldest(noLSN) == first && first <= j.summariesFrom()
}

// wants reports whether the device should write back for the sake of the journal.
func (j *journal) wants(o *order) bool { return j.usedPages() >= j.pages/4 && j.heldBy(o) }

// advanceTail moves the start of replay to the page of the oldest change that no durable summary
// has or that an ordered device has to write back, and lets a stalled commit go on.
func (j *journal) advanceTail() {
	j.mu.Lock()
	oldest := j.c.oldestQueued(j.mu.queue.oldest(j.c.buckets, LSN(j.durableLSN.Load())))
	j.c.loading.saved(j.mu.queue.oldest(j.c.buckets, noLSN))
	if c := j.c; c.loading.on.Load() && !mutated(mutTailWhileLoading) {
		oldest = min(oldest, c.loading.from)
	}
	if mutated(mutTailAhead) {
		oldest = LSN(j.durableLSN.Load())
	}
	for j.mu.tailSeq < j.mu.pageSeq {
		next := j.mu.tailSeq + 1
		if next == j.mu.pageSeq || j.firstLSN[next%j.pages] > oldest {
			break
		}
		j.mu.tailSeq = next
	}
	stalled := j.mu.stalled
	j.mu.stalled = false
	credits := j.mu.credits.takeAll()
	j.mu.Unlock()
	credits.wakeAll(nil)
	if stalled {
		j.commit.resume.wake(nil)
	}
}

package cache

import "encoding/binary"

// Summary pages, little-endian: magic (4), version (2), 0 (2), first half of the cache UUID (8),
// bucket (4), page within the bucket (4), LSN (8), epoch (8), own place (8), 0 (8), checksum
// (8); then 12 bytes per slot: state (2), key (6), checksum (4). The page has all changes of its
// slots by records before its LSN, and none by records that were not durable when it was written.
const (
	summaryMagic = 0x53534255 // "UBSS"
	smVersion    = 4
	smCache      = 8
	smBucket     = 16
	smPage       = 20
	smLSN        = 24
	smEpoch      = 32
	smOff        = 40
	smSum        = 56
)

// checkpoint brings summaries up to date, so that the start of replay can move on: it takes the
// buckets that are behind the longest, copies their entries, waits until the journal has all
// that the copies may contain, and writes them over the first copy of the summaries, flushes, and
// over the second. A crash leaves at least one copy of each whole, old or new; with the journal
// from the older on, either will do.
type checkpoint struct {
	bg      *background
	w       waiter
	running bool
	step    checkpointStep
	ids     []BucketID
	buf     []byte
	waits   int
	err     error
}

type checkpointStep uint8

const (
	ckptJournal checkpointStep = iota
	ckptWriteA
	ckptFlushA
	ckptWriteB
	ckptFlushB
)

const checkpointBytes = 64 * pageSize

// start writes a batch of summaries if the journal needs room, or the cache closes.
func (k *checkpoint) start() {
	l, c := k.bg.l, k.bg.l.c
	j := &c.journal
	if k.running || c.loading.on.Load() && !mutated(mutTailWhileLoading) {
		return
	}
	if !c.closing.Load() && (!j.needsRoom() || j.heldByOrders()) {
		return
	}
	if k.buf == nil {
		var err error
		if k.buf, err = offHeap(max(checkpointBytes, c.geo.summaryPages()*pageSize)); err != nil {
			return
		}
	}
	j.mu.Lock()
	next := j.mu.next
	if len(k.ids) == 0 {
		n := max(1, checkpointBytes/(c.geo.summaryPages()*pageSize))
		k.ids = j.mu.queue.take(c.buckets, int(n))
	}
	j.mu.Unlock()
	if len(k.ids) == 0 {
		j.advanceTail()
		return
	}
	per := int(c.geo.summaryPages() * pageSize)
	for i, b := range k.ids {
		c.snapshot(b, next, k.buf[i*per:(i+1)*per])
	}
	k.running, k.step, k.err = true, ckptJournal, nil
	k.w = waiter{lane: l, owner: k}
	if j.waitDurable(j.nextLSN()-1, &k.w, true) {
		k.write(l, 0)
	}
}

// snapshot fills the bucket's summary pages, but for what depends on the copy.
func (c *Cache) snapshot(b BucketID, next LSN, p []byte) {
	clear(p)
	le := binary.LittleEndian
	first := Slot(int64(b) * c.geo.slotsPerBucket())
	for i := range c.geo.summaryPages() {
		h := p[i*pageSize:]
		le.PutUint32(h, summaryMagic)
		le.PutUint16(h[smVersion:], pageVersion)
		le.PutUint64(h[smCache:], c.journal.cacheID)
		le.PutUint32(h[smBucket:], uint32(b))
		le.PutUint32(h[smPage:], uint32(i))
		if mutated(mutSummaryAhead) {
			next += 3
		}
		le.PutUint64(h[smLSN:], uint64(next))
		le.PutUint64(h[smEpoch:], c.epoch)
	}
	c.locked(b, func(_ *stripe, k key, e entry) {
		if e.st.shadow() {
			return // the journal has it until it is settled
		}
		n := int64(e.slot - first)
		q := p[n/summarySlots*pageSize+summaryHeader+n%summarySlots*summaryEntry:]
		le.PutUint64(q, uint64(k)<<16|uint64(e.st&stStored))
		le.PutUint32(q[8:], e.sum)
	})
}

func (k *checkpoint) run(l *Lane, err error) {
	if err != nil {
		k.fail(l)
		return
	}
	k.write(l, 0)
}

// write seals the pages for one of the copies and writes them.
func (k *checkpoint) write(l *Lane, copyNo int) {
	c := l.c
	k.step, k.waits = ckptWriteA, 1
	if copyNo == 1 {
		k.step = ckptWriteB
	}
	per := c.geo.summaryPages() * pageSize
	for i, b := range k.ids {
		p := k.buf[int64(i)*per : int64(i+1)*per]
		off := c.geo.summaryOff(copyNo, b)
		for j := int64(0); j < per; j += pageSize {
			sealSummary(p[j:j+pageSize], off+j)
		}
		k.waits++
		l.stats.MetadataBytes.Add(per)
		l.move(k, OpWrite, SSD, off, p, 0)
	}
	k.opsDone(l)
}

func sealSummary(p []byte, off int64) {
	le := binary.LittleEndian
	le.PutUint64(p[smOff:], uint64(off))
	le.PutUint64(p[smSum:], 0)
	le.PutUint64(p[smSum:], metaSum(p, off))
}

func (k *checkpoint) opDone(l *Lane, op *Op, err error) {
	if op.Kind == OpFlush {
		l.c.barriers.end()
	}
	if err != nil {
		k.err = err
	}
	k.opsDone(l)
}

func (k *checkpoint) opsDone(l *Lane) {
	if k.waits--; k.waits > 0 {
		return
	}
	if k.err != nil || l.c.forgot() {
		k.fail(l)
		return
	}
	if mutated(mutSummaryUnflushed) && k.step == ckptWriteA {
		k.step = ckptFlushA
	}
	if mutated(mutOneSummaryCopy) && k.step == ckptFlushA {
		k.step = ckptFlushB
	}
	switch k.step {
	case ckptWriteA, ckptWriteB:
		k.step++
		k.waits = 1
		op := l.newOp(k)
		op.Kind, op.Dev = OpFlush, SSD
		l.c.barriers.begin()
		l.send(op)
	case ckptFlushA:
		k.write(l, 1)
	default:
		k.end(l)
		l.stats.Checkpoints.Add(1)
	}
}

// fail leaves the buckets to the next start; until then replay starts before their changes.
func (k *checkpoint) fail(l *Lane) {
	k.running = false
	d := &k.bg.doctor
	if d.ckptFailed = l.d.Now(); d.ckptFailing == 0 {
		d.ckptFailing = d.ckptFailed
	}
	l.stats.JournalErrors.Add(1)
}

func (k *checkpoint) end(l *Lane) {
	j := &l.c.journal
	j.mu.Lock()
	j.mu.queue.writing = 0
	j.mu.Unlock()
	k.running, k.ids = false, nil
	k.bg.doctor.ckptFailing = 0
	j.advanceTail()
	k.start()
}

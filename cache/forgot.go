package cache

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
)

// A flush of the SSD that fails may have dropped what it was to cover: drives drop a sector that they cannot write, and
// Linux a page that its device has not taken. The next flush succeeds then, without it. So after a failed one
// nothing counts as durable that was not so before, and the SSD counts as lost: what was written to it since the last
// flush that succeeded is exactly what the records of the pending ring speak of. The next start reads that, compares it
// with the checksums, and writes it once more before it flushes (recovery.writeAgain). It must not believe what it
// reads: that may come from the memory that has been given up.
//
// A write with FUA that fails is the same, as drivers make it of a write and a flush where the drive has no FUA.

var errForgot = errors.New("a flush of the SSD has failed meanwhile")

// mayForget reports whether an operation on the SSD that failed may have dropped what others had written.
func (op *Op) mayForget(err error) bool {
	return op.Kind == OpFlush || op.Kind == OpWrite && op.FUA && !errors.Is(err, syscall.ENOSPC)
}

// ssdForgot notes a failed flush of the SSD. Any thread may call it.
func (c *Cache) ssdForgot() {
	if mutated(mutFlushBelieved) {
		return
	}
	c.ssdHealth.forgot.Store(true)
	atomic.StoreUint64(&wordsOf(c.opts.Pending)[pendingLost/8], 1) // at a start, that of the one before
	c.pokeBackground()
}

// forgot reports whether a flush of the SSD has failed, so that no other counts.
func (c *Cache) forgot() bool { return c.ssdHealth.forgot.Load() }

// notedSSD is the SSD of the control path: its flushes count as well.
type notedSSD struct {
	Storage
	c *Cache
}

func (s notedSSD) Sync() error {
	s.c.barriers.begin()
	err := s.Storage.Sync()
	if err != nil {
		s.c.ssdForgot()
	}
	s.c.barriers.end()
	return err
}

// barriers are flushes of the SSD under way that are not of a commit. One that has failed may be heard of after the
// flush of a commit which began later, and without what the failed one has dropped. So a commit waits for them
// before it says that anything is durable.
type barriers struct {
	mu     sync.Mutex
	n      int
	commit *waiter
}

func (b *barriers) begin() {
	b.mu.Lock()
	b.n++
	b.mu.Unlock()
}

// end comes after ssdForgot if the flush has failed.
func (b *barriers) end() {
	b.mu.Lock()
	b.n--
	w := b.commit
	if b.n > 0 {
		w = nil
	}
	if w != nil {
		b.commit = nil
	}
	b.mu.Unlock()
	if w != nil {
		w.wake(nil)
	}
}

// wait reports whether the commit has to wait. It goes on on lane bg then, if there is one: its own may have ended.
func (b *barriers) wait(w *waiter, bg *Lane) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n == 0 {
		return false
	}
	if b.commit = w; bg != nil {
		w.lane = bg
	}
	return true
}

// writeAgain writes what the records of the pending ring speak of, and the pages of the journal that have some of them,
// once more where they are: the flush that follows has to cover it. What the SSD does not return right is left to
// verifyPending. Without checksums that is all of it.
func (r *recovery) writeAgain() error {
	c := r.c
	if mutated(mutNotWrittenAgain) {
		return nil
	}
	page := alignedBytes(BlockSize)
	for i := 0; i < len(r.ringRecs) && c.checksums; i++ {
		m := &r.ringRecs[i] // of a block that has another slot by now, too: an order may have to write it
		if m.kind != recMap || m.check(&c.geo) != nil {
			continue
		}
		off := c.geo.slotOff(Slot(m.slot))
		_, err := c.ssd.ReadAt(page, off)
		if err != nil { // errors may pass
			_, err = c.ssd.ReadAt(page, off)
		}
		if err != nil || dataSum(page, uint64(makeKey(m.backing, m.block))) != m.sum {
			continue
		}
		if _, err := c.ssd.WriteAt(page, off); err != nil {
			return err
		}
	}
	for seq, p := range r.pages {
		if p.epoch != r.top.epoch || p.first+LSN(p.count) < r.ringFirst {
			continue
		}
		off := c.geo.journalPageOff(seq)
		if _, err := c.ssd.ReadAt(page, off); err != nil {
			return err
		}
		if _, err := c.ssd.WriteAt(page, off); err != nil {
			return err
		}
	}
	return nil
}

// current returns the entry that a record of the pending ring has made, if it is still that.
func (r *recovery) current(m *record) (k key, e entry, ok bool) {
	if m.kind != recMap || r.c.backing(m.backing) == nil {
		return k, e, false
	}
	k = makeKey(m.backing, m.block)
	e, ok = r.c.index.find(k)
	return k, e, ok && e.slot == Slot(m.slot)
}

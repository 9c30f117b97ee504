package cache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// BeginDetach makes the backing device write back everything and cache nothing new. It goes on
// after a restart, until CancelDetach or FinishDetach.
func (c *Cache) BeginDetach(id BackingID) error {
	return c.change(id, func(r *BackingRecord) { r.Detaching = true }, func(b *Backing) {
		b.detaching.Store(true)
		b.mode.Store(uint32(None))
		b.draining.Store(true)
	})
}

// CancelDetach puts the backing device back in service in its mode.
func (c *Cache) CancelDetach(id BackingID) error {
	var m Mode
	return c.change(id, func(r *BackingRecord) { r.Detaching, m = false, r.Mode }, func(b *Backing) {
		b.detaching.Store(false)
		b.draining.Store(false)
		b.mode.Store(uint32(m))
	})
}

// FinishDetach forgets a backing device, which takes no requests any more. Dirty data makes it
// fail with ErrNotFinished unless force is set; that data is lost then. What is under way there ends first, for afterwards the
// device is somebody else's, and so may its number be: it fails with ErrBusy if that takes longer than detachPatience.
// If it fails with ErrGivenUp, because the SSD is lost for instance, the device has lost its dirty data for as long as this cache is
// open, and may have it again at the next start; FinishDetach can be repeated.
func (c *Cache) FinishDetach(ctx context.Context, id BackingID, force bool) error {
	f, err := c.beginForget(id, force)
	if err != nil {
		return err
	}
	return f.end(c.drop(ctx, &f.dropping))
}

// StartDetach is FinishDetach for a caller on the thread of the background lane, who calls step after ticks until it has ended.
func (l *Lane) StartDetach(id BackingID, force bool) (step func() (ended bool, err error), err error) {
	f, err := l.c.beginForget(id, force)
	if err != nil {
		return nil, err
	}
	return func() (bool, error) {
		if !f.step(l) {
			return false, nil
		}
		return true, f.end(f.err)
	}, nil
}

// forgetting takes all blocks of a backing device out of the cache, and then the device.
type forgetting struct {
	dropping
	want bool // the device is ordered
	lose bool // there is data that the device lacks, or may lack
}

func (c *Cache) beginForget(id BackingID, force bool) (*forgetting, error) {
	b, err := c.Backing(id)
	if err != nil {
		return nil, err
	}
	n := b.dirty.Load() + b.Remaining()
	if n > 0 && !force {
		return nil, fmt.Errorf("detach %s: %w (%d blocks; flush first, or force and lose them)",
			b.name, ErrNotFinished, n)
	}
	f := &forgetting{dropping: dropping{c: c, b: b}, lose: n > 0}
	f.want = b.order.want.Swap(false) // no queue begins again
	b.forgetting.Store(true)
	return f, nil
}

// end forgets the device if its blocks are gone.
func (f *forgetting) end(err error) error {
	if err == nil {
		err = f.c.forget(f.b.id)
	}
	if err != nil {
		f.b.order.want.Store(f.want)
		f.b.forgetting.Store(false)
		if f.lose && f.lsn != 0 {
			err = fmt.Errorf("%w; %w", err, ErrGivenUp)
		}
	}
	return err
}

// forget takes a backing device that has no blocks out of the superblock.
func (c *Cache) forget(id BackingID) error {
	c.control.Lock()
	defer c.control.Unlock()
	i := slices.IndexFunc(c.sb.Backings, func(r BackingRecord) bool { return r.ID == id })
	old := c.sb.Backings
	c.sb.Backings = slices.Delete(slices.Clone(old), i, i+1)
	if err := c.saveSuper(); err != nil {
		c.sb.Backings = old
		return err
	}
	all := *c.backings.Load()
	all[id] = nil
	c.backings.Store(&all)
	c.roll.Lock()
	delete(c.past.Backings, id) // the number may be another device's later
	c.roll.Unlock()
	return nil
}

// DropClean takes all blocks of a backing device out of the cache, durably, if none of them is dirty; else it is
// ErrNotFinished. Nobody may use the device meanwhile.
func (c *Cache) DropClean(ctx context.Context, id BackingID) error {
	b, err := c.Backing(id)
	if err != nil {
		return err
	}
	if n := b.dirty.Load() + b.Remaining(); n > 0 {
		return fmt.Errorf("drop what is cached of %s: %w (%d blocks)", b.name, ErrNotFinished, n)
	}
	return c.dropBacking(ctx, b)
}

// dropBacking takes all blocks of a backing device out of the cache, durably.
func (c *Cache) dropBacking(ctx context.Context, b *Backing) error {
	return c.drop(ctx, &dropping{c: c, b: b})
}

func (c *Cache) drop(ctx context.Context, d *dropping) error {
	err := c.onBackground(ctx, d.step)
	return cmp.Or(err, d.err)
}

// detachPatience is how long a detach waits for operations on the device.
const detachPatience = 30 * time.Second

// dropping takes all blocks of a backing device out of the index under one record, and waits until that is durable.
type dropping struct {
	c     *Cache
	b     *Backing
	lsn   LSN   // of the record, 0 before there is one
	since int64 // when it began to wait for operations, 0 before that
	err   error
}

// step goes on, on the background lane, and reports whether it has ended.
func (d *dropping) step(l *Lane) bool {
	c := d.c
	if d.lsn != 0 && c.journal.isDurable(d.lsn) {
		return true
	}
	if d.err = c.lostError(); d.err != nil {
		return true
	}
	if d.lsn == 0 && d.ready(l) {
		d.take()
	} else {
		c.journal.kick(l)
	}
	return d.err != nil
}

// ready reports whether nothing stands in the way of the record, for which there is room then.
func (d *dropping) ready(l *Lane) bool {
	c, b := d.c, d.b
	if c.loading.on.Load() || d.busy(l) || !c.journal.reserve(1) {
		return false
	}
	if !l.bg.dropOrder(b) { // only with the record at hand that says so
		c.journal.unreserve(1)
		return false
	}
	return true
}

// busy reports whether something is under way on the device; there is an error if that does not end.
func (d *dropping) busy(l *Lane) bool {
	b, r := d.b, l.bg.orders[d.b.id]
	busy := !l.bg.leaveScrub(b) || l.bg.wb.flyingOf[b.id] > 0 || l.flying[b.id] > 0 || r != nil && r.busy
	if !busy || mutated(mutDetachWrites) {
		return false
	}
	now := l.d.Now()
	if d.since == 0 {
		d.since = now
	}
	if now-d.since >= int64(detachPatience) {
		d.err = fmt.Errorf("%w: what is under way on %s has not ended for %v", ErrBusy, b.name, detachPatience)
	}
	return true
}

// take takes the blocks out.
func (d *dropping) take() {
	c, b := d.c, d.b
	var touched []BucketID
	for i := range c.buckets {
		found := false
		c.slotsOf(BucketID(i), func(s Slot) {
			k, _ := c.index.at(s)
			found = found || k.backing() == b.id
		})
		if found {
			touched = append(touched, BucketID(i))
		}
	}
	d.lsn = c.journal.append(record{kind: recDrop, backing: b.id}, touched...)
	for _, id := range touched {
		c.locked(id, func(st *stripe, k key, e entry) {
			if k.backing() == b.id {
				c.unmapEntry(b, k, e)
				st.lastUnmap = max(st.lastUnmap, d.lsn)
			}
		})
	}
	b.mu.Lock()
	b.mu.pending = nil
	b.mu.Unlock()
}

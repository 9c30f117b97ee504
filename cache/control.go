package cache

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// AttachOptions describe a new backing device.
type AttachOptions struct {
	Name     string // for people; unique in the cache
	Mode     Mode
	LBS      int   // logical block size in bytes, 512 or 4096
	DataOff  int64 // bytes at the start of the backing device that the cached device leaves out
	Identity Identity
	Tunables Tunables
	UUID     UUID // zero: a random one
	// Head is the epoch that was written to the backing header, if there is one.
	Head uint64
}

// Attach adds a backing device. Its data becomes visible through the cache as it is.
func (c *Cache) Attach(o AttachOptions) (*Backing, error) {
	if o.LBS != 512 && o.LBS != 4096 {
		return nil, fmt.Errorf("logical block size %d is neither 512 nor 4096", o.LBS)
	}
	size := (o.Identity.Size - o.DataOff) / int64(o.LBS) * int64(o.LBS)
	if size <= 0 {
		return nil, fmt.Errorf("%w: backing device of %d bytes", ErrTooSmall, o.Identity.Size)
	}
	if size > (maxBlock+1)*BlockSize {
		return nil, fmt.Errorf("backing device of %d bytes is larger than 256 TiB", size)
	}
	if err := o.Tunables.Validate(); err != nil {
		return nil, err
	}
	if o.UUID == (UUID{}) {
		o.UUID = newUUID()
	}
	c.control.Lock()
	defer c.control.Unlock()
	if len(c.sb.Backings) == MaxBackings {
		return nil, fmt.Errorf("%w: a cache has at most %d", ErrTooMany, MaxBackings)
	}
	for i := range c.sb.Backings {
		if r := &c.sb.Backings[i]; r.Name == o.Name || r.UUID == o.UUID {
			return nil, fmt.Errorf("%w: %s", ErrExists, o.Name)
		}
	}
	id := c.sb.NextID
	for id == 0 || id > MaxBackings || c.backing(id) != nil {
		id = id%MaxBackings + 1
	}
	r := BackingRecord{
		ID: id, Mode: o.Mode, LBS: int32(o.LBS), UUID: o.UUID, Size: size, DataOff: o.DataOff,
		Name: o.Name, Identity: o.Identity, Tunables: o.Tunables, Dirty: 1,
		OrderedFrom: c.journal.nextLSN(),
		Head:        o.Head,
	}
	b, err := c.newBacking(&r)
	if err != nil {
		return nil, err
	}
	old, oldNext := c.sb.Backings, c.sb.NextID
	c.sb.Backings = append(slices.Clone(old), r)
	c.sb.NextID = id%MaxBackings + 1
	if err := c.saveSuper(); err != nil {
		c.sb.Backings, c.sb.NextID = old, oldNext
		b.order.mu.ring.free()
		return nil, err
	}
	c.addBacking(b)
	return b, nil
}

// Backing returns an attached backing device.
func (c *Cache) Backing(id BackingID) (*Backing, error) {
	if b := c.backing(id); b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("%w: %d", ErrNoBacking, id)
}

// setting is change for what is a setting: without the SSD it is one in memory, and the caller's to keep.
func (c *Cache) setting(id BackingID, edit func(*BackingRecord), apply func(*Backing)) error {
	if !c.lost() {
		return c.change(id, edit, apply)
	}
	c.control.Lock()
	defer c.control.Unlock()
	r, err := c.record(id)
	if err != nil {
		return err
	}
	edit(r)
	c.publishSuper()
	apply(c.backing(id))
	return nil
}

// change alters the record of a backing device on the SSD, and then in memory with apply.
func (c *Cache) change(id BackingID, edit func(*BackingRecord), apply func(*Backing)) error {
	c.control.Lock()
	defer c.control.Unlock()
	r, err := c.record(id)
	if err != nil {
		return err
	}
	old := *r
	edit(r)
	if err := c.saveSuper(); err != nil {
		*r = old
		return err
	}
	apply(c.backing(id))
	c.pokeBackground()
	return nil
}

// SetMode switches the mode of a backing device, under load if need be. Dirty data that the new
// mode would not have made is written back at full speed. While the SSD is lost it is not recorded there.
func (c *Cache) SetMode(id BackingID, m Mode) error {
	return c.setting(id, func(r *BackingRecord) { r.Mode = m }, func(b *Backing) {
		if !b.detaching.Load() {
			b.mode.Store(uint32(m))
		}
	})
}

// SetTunables replaces the tunables of a backing device. While the SSD is lost they are not recorded there,
// and Ordered cannot be changed.
func (c *Cache) SetTunables(id BackingID, t Tunables) error {
	if err := t.Validate(); err != nil {
		return err
	}
	if b := c.backing(id); b != nil && t.Ordered != b.order.want.Load() {
		if err := c.lostError(); err != nil {
			return fmt.Errorf("the order is a matter of the SSD: %w", err)
		}
		if t.Ordered {
			if err := b.order.reserve(c, &t); err != nil {
				return fmt.Errorf("keep an order: %w", err)
			}
		}
	}
	return c.setting(id, func(r *BackingRecord) {
		// Switched off and on before the background has seen it, the queue goes on.
		if t.Ordered && !r.Tunables.Ordered && !c.backing(id).order.on.Load() {
			r.OrderedFrom = c.journal.nextLSN()
		}
		r.Tunables = t
	},
		func(b *Backing) { c.applyTunables(b, t) })
}

// SetDrain makes writeback run at full speed until it is reset, for a flush of the whole device.
func (c *Cache) SetDrain(id BackingID, on bool) error {
	b, err := c.Backing(id)
	if err != nil {
		return err
	}
	b.draining.Store(on || b.detaching.Load())
	c.pokeBackground()
	return nil
}

// Remaining is how many blocks a drain has left: dirty ones, and those that the backing device
// has but was not flushed for. Blocks that the SSD cannot return are not among them.
func (b *Backing) Remaining() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dirty.Load() - b.bad.Load() + int64(len(b.mu.pending)) + b.order.shadows.Load()
}

// task is work of the control path for the background lane; it runs at every Tick until it
// reports that it is done.
type task struct {
	do   func(l *Lane) bool
	done chan struct{}
}

// onBackground runs do on the background lane until it reports true.
func (c *Cache) onBackground(ctx context.Context, do func(l *Lane) bool) error {
	t := &task{do: do, done: make(chan struct{})}
	c.tasks.Lock()
	c.tasks.list = append(c.tasks.list, t)
	c.tasks.some.Store(true)
	c.tasks.Unlock()
	c.pokeBackground()
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
	}
	c.tasks.Lock()
	defer c.tasks.Unlock()
	c.tasks.list = slices.DeleteFunc(c.tasks.list, func(o *task) bool { return o == t })
	return ctx.Err()
}

func (l *Lane) runTasks() (more bool) {
	c := l.c
	c.tasks.Lock()
	defer c.tasks.Unlock()
	c.tasks.list = slices.DeleteFunc(c.tasks.list, func(t *task) bool {
		if !t.do(l) {
			return false
		}
		close(t.done)
		return true
	})
	c.tasks.some.Store(len(c.tasks.list) > 0)
	return len(c.tasks.list) > 0
}

// waitControl waits until a record is durable.
func (c *Cache) waitControl(ctx context.Context, lsn LSN) error {
	var lost error
	err := c.onBackground(ctx, func(l *Lane) bool {
		if c.journal.isDurable(lsn) {
			return true
		}
		if lost = c.lostError(); lost != nil {
			return true
		}
		c.journal.kick(l)
		return false
	})
	return cmp.Or(err, lost)
}

// Sync makes everything acknowledged so far durable on the SSD.
func (c *Cache) Sync(ctx context.Context) error {
	return c.waitControl(ctx, c.journal.nextLSN()-1)
}

// Settle writes all metadata, so that the next start has nothing to replay. No request may come
// any more. It needs the background lane, which goes on running.
func (c *Cache) Settle(ctx context.Context) error {
	c.StartSettle()
	var lost error
	err := c.onBackground(ctx, func(l *Lane) bool {
		lost = c.lostError()
		return lost != nil || l.Settled()
	})
	return cmp.Or(err, lost)
}

// StartSettle makes the background lane write all metadata; Lane.Settled says when it is done.
func (c *Cache) StartSettle() {
	c.closing.Store(true)
	c.pokeBackground()
}

// Settled reports on the background lane whether all metadata is written.
func (l *Lane) Settled() bool {
	c, bg := l.c, l.bg
	if c.loading.on.Load() || bg.ckpt.running || bg.evict.running || bg.evict.move.busy || bg.wb.flying > 0 || bg.evict.trims > 0 ||
		bg.scrub != nil {
		return false
	}
	for _, b := range c.backings.Load() {
		if b != nil && (bg.flushOf(b).running || bg.orders[b.id] != nil && bg.orders[b.id].busy) {
			return false
		}
	}
	j := &c.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.mu.running && j.mu.next == LSN(j.durableLSN.Load()) &&
		j.mu.queue.head == noBucket && j.mu.queue.writing == 0
}

// Close ends a cache whose lanes are closed. After Settle it marks the cache as stopped in order.
func (c *Cache) Close() error {
	c.control.Lock()
	defer c.control.Unlock()
	j := &c.journal
	var err error
	if c.closing.Load() && j.mu.next == LSN(j.durableLSN.Load()) && j.mu.queue.head == noBucket &&
		j.mu.queue.writing == 0 && !c.loading.on.Load() {
		c.sb.Clean = true
		c.noteDirty()
		c.noteStop()
		err = c.saveSuper()
	}
	c.release()
	return err
}

// Abandon gives up a cache without writing anything, as if the process had been killed.
func (c *Cache) Abandon() { c.release() }

// drainPoll is how often WaitDrained reports.
const drainPoll = 10 * time.Millisecond

// drainTries is how many times in a row, errorPause apart, the backing device may take nothing of what is left.
const drainTries = 10

// WaitDrained waits until Remaining is 0, telling progress what is left from time to time. It
// fails if only blocks remain that the SSD cannot return, or if the SSD is lost, or the device takes nothing any more.
func (c *Cache) WaitDrained(ctx context.Context, id BackingID, progress func(left int64)) error {
	b, err := c.Backing(id)
	if err != nil {
		return err
	}
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for least, fails := int64(math.MaxInt64), int64(0); ; {
		if b.Presence() != Present && b.Remaining() > 0 {
			return fmt.Errorf("write back %s: %w", b.name, ErrAbsent)
		}
		left := b.Remaining()
		if progress != nil {
			progress(left)
		}
		if err := c.lostError(); err != nil && left > 0 {
			return err
		}
		if left < least {
			least, fails = left, b.fails.Load()
		} else if left > 0 && b.fails.Load() >= fails+drainTries {
			return fmt.Errorf("write back %s: %w", b.name, b.failure())
		}
		if left == 0 {
			if n := b.bad.Load(); n > 0 {
				return fmt.Errorf("%w: %d blocks of %s", ErrDirtyBad, n, b.name)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

package cache

// A loss of writes that were acknowledged and not flushed (Backing.unreported) is told by the next FLUSH, which fails.
// Until its client has the answer the loss is in the pending ring, for a daemon that is killed has clients who
// still wait to hear of it; and at a stop in order it is in the superblock. What is in the ring is taken out some time
// after a FLUSH has failed for it: whether its answer has got through before a kill is not known, and to tell
// twice does no harm.

// keepUntold notes a loss. told says that a flush is about to tell of it.
func (c *Cache) keepUntold(b *Backing, told bool) {
	if !told {
		b.unreported.Store(true)
	}
	if !mutated(mutLossUnkept) {
		c.journal.mu.ring.keepUntold(b.id)
	}
}

// tells makes a flush one that tells of a loss.
func (f *flush) tells(b *Backing) {
	if !f.telling {
		f.telling = true
		b.telling.Add(1)
	}
}

// takes makes the flush tell of what nobody has told of yet, and reports whether there is something.
func (f *flush) takes(b *Backing) bool {
	b.telling.Add(1) // before anybody sees that it is not unreported any more
	if !b.unreported.CompareAndSwap(true, false) {
		b.telling.Add(-1)
		return false
	}
	f.telling = true
	return true
}

// untold has a bit for each backing device with a loss that nobody has told of.
func (c *Cache) untold() (bits uint64) {
	for _, b := range c.backings.Load() {
		if b != nil && b.unreported.Load() {
			bits |= 1 << (b.id - 1)
		}
	}
	return bits
}

// recallUntold takes over what a killed process has left in the pending ring. It is newer than the superblock, unless
// that is of a stop in order.
func (c *Cache) recallUntold() {
	bits, ok := loadUntold(c.opts.Pending, c.sb.UUID, c.epoch)
	if !ok || c.sb.Clean {
		return
	}
	for _, b := range c.backings.Load() {
		if b != nil {
			b.unreported.Store(bits>>(b.id-1)&1 != 0)
		}
	}
}

// untoldPause is how long an answer may take on its way to the client.
const untoldPause = int64(2 * 1e9)

// tidyUntold takes out of the ring what has been told for a while.
func (bg *background) tidyUntold(now int64) {
	c := bg.l.c
	ring := &c.journal.mu.ring
	bits := ring.untold()
	if bits == 0 {
		return
	}
	for id := BackingID(1); id <= MaxBackings; id++ {
		if bits>>(id-1)&1 == 0 {
			continue
		}
		b := c.backing(id)
		known := func() bool { return b == nil || !b.unreported.Load() && b.telling.Load() == 0 }
		switch {
		case !known():
			bg.told[id] = 0
		case bg.told[id] == 0:
			bg.told[id] = now
		case now-bg.told[id] >= untoldPause:
			bg.told[id] = 0
			ring.forgetUntold(id)
			if !known() { // a loss of this moment
				ring.keepUntold(id)
			}
		}
	}
}

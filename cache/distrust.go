package cache

// distrustResult is what became of a block whose slot failed.
type distrustResult uint8

const (
	distrustDropped distrustResult = iota // was clean: it is not cached any more
	distrustLost                          // is dirty
	distrustClean                         // is clean, but perhaps it is not the block that is bad
	distrustLeft                          // is pending: the backing device has it, but may still lose it
	distrustUnsure                        // is dirty, but perhaps it is not the block that is bad
	distrustChanged                       // is in another slot by now, or gone
)

// distrust takes a block whose slot was not returned right out of the cache if it is clean. One that
// is pending stays on record until the backing device has been flushed, or else a crash could turn
// it back. With failed the SSD has returned an error, which may be one of the whole SSD.
func (l *Lane) distrust(b *Backing, k key, slot Slot, failed bool) distrustResult {
	c := l.c
	room := c.journal.reserve(1)
	s := c.index.stripeOf(b.id, k.block())
	s.mu.Lock()
	e, ok := c.index.find(k)
	result := distrustChanged
	away := c.health() != HealthOK || failed && c.ssdHealth.doubt.Load() // that is no verdict on the block
	switch {
	case !ok || e.slot != slot:
	case e.st.onBacking() && (e.st&stPending != 0 || away):
		// The backing device has the only copy now, so a FLUSH is to it.
		b.relyOn(b.wrote.Load())
		if result = distrustLeft; e.st&stPending == 0 {
			result = distrustClean
		} else if e.st&stLeave == 0 && !away {
			c.setState(b, e, e.st&^stPinned|stLeave) // what the SSD fails loses its pin
			l.io[b.id].HealedBlocks.Add(1)
		}
	case e.st&stDirty != 0 && mutated(mutDirtyHealed):
		result = distrustLeft
	case e.st&stDirty != 0 && failed:
		result = distrustUnsure
	case e.st&stDirty != 0:
		result = distrustLost
		if e.st&stBad == 0 {
			c.setState(b, e, e.st&^stLeave|stBad)
			l.io[b.id].BadBlocks.Add(1)
		}
	case mutated(mutCleanLost):
		result = distrustLost
	default:
		result = distrustDropped
		room = l.heal(b, s, k, e, room)
	}
	s.mu.Unlock()
	if room {
		c.journal.unreserve(1)
	}
	return result
}

// heal takes a clean block out of the cache and reports whether the room in the journal is left.
// Without room the block stays, and fails again at the next read. The stripe is locked.
func (l *Lane) heal(b *Backing, s *stripe, k key, e entry, room bool) bool {
	c := l.c
	l.io[b.id].HealedBlocks.Add(1)
	if room {
		c.unmapEntry(b, k, e)
		if mutated(mutUnmapUnrecorded) {
			return true
		}
		s.lastUnmap = c.journal.append(record{
			kind: recUnmap, flags: recCleanOnly, backing: b.id, block: k.block(), sum: 1,
		}, c.bucketOf(e.slot))
	}
	return false
}

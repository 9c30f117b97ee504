package cache

// lockKind is what the holder of a range lock does with the blocks.
type lockKind uint8

const (
	// lockWrite: new slots are written, the index changes when they are. Other writers of this
	// kind may be under way; the last to finish wins.
	lockWrite lockKind = iota
	// lockMerge: as lockWrite, but the new slot depends on the old one.
	lockMerge
	// lockThrough: the backing device is changed.
	lockThrough
	// lockFill: the backing device is read to fill slots. Writers do not wait for it: they
	// cancel it.
	lockFill
	// lockWriteback: a dirty slot is copied to the backing device.
	lockWriteback
)

// excludes[a][b]: b must wait for an earlier a on the same block. Only a fill waits for a fill
// (and then finds its blocks cached); changes cancel it, see rangeLock.cancelled.
var excludes = [...][5]bool{
	lockWrite:     {lockMerge: true, lockThrough: true},
	lockMerge:     {lockWrite: true, lockMerge: true, lockThrough: true},
	lockThrough:   {lockWrite: true, lockMerge: true, lockThrough: true, lockWriteback: true},
	lockFill:      {lockFill: true},
	lockWriteback: {lockThrough: true, lockWriteback: true},
}

// rangeLock orders the changes of blocks [first, last] of one region. It lives in its owner's
// state machine and hangs on its stripe from acquire to release; all fields are guarded by the
// stripe.
type rangeLock struct {
	backing     BackingID
	kind        lockKind
	first, last Block
	granted     bool
	// cancelled says that a fill has been overtaken by a change and must not enter the index.
	cancelled bool
	prev      *rangeLock
	next      *rangeLock
	owner     waiter // told when the lock is granted later
}

func (k *rangeLock) overlaps(b BackingID, first, last Block) bool {
	return k.backing == b && k.first <= last && first <= k.last
}

// acquire hangs the lock on the stripe and reports whether it is granted at once; if not, the
// owner runs when it is. A writer cancels the fills that it overlaps. The stripe is locked.
func (s *stripe) acquire(k *rangeLock) bool {
	k.granted, k.cancelled = true, false
	k.prev, k.next = nil, nil
	var tail *rangeLock
	for o := s.locks; o != nil; tail, o = o, o.next {
		if !o.overlaps(k.backing, k.first, k.last) {
			continue
		}
		if excludes[o.kind][k.kind] && !(mutated(mutMergesRace) && o.kind+k.kind == 2*lockMerge) {
			k.granted = false
		}
		if o.kind == lockFill && k.kind != lockWriteback && !mutated(mutFillNotCancelled) {
			o.cancelled = true
		}
	}
	k.prev = tail
	if tail == nil {
		s.locks = k
	} else {
		tail.next = k
	}
	return k.granted
}

// release takes the lock off and grants those that waited for nothing else. The stripe is
// locked; the owners granted run later, on their lanes.
func (s *stripe) release(k *rangeLock) {
	if k.prev == nil {
		s.locks = k.next
	} else {
		k.prev.next = k.next
	}
	if k.next != nil {
		k.next.prev = k.prev
	}
	for o := k.next; o != nil; o = o.next {
		if !o.granted && o.overlaps(k.backing, k.first, k.last) && s.mayGrant(o) {
			o.granted = true
			o.owner.wake(nil)
		}
	}
	k.prev, k.next = nil, nil
}

// mayGrant reports whether no earlier lock excludes k.
func (s *stripe) mayGrant(k *rangeLock) bool {
	for o := s.locks; o != k; o = o.next {
		if excludes[o.kind][k.kind] && o.overlaps(k.backing, k.first, k.last) {
			return false
		}
	}
	return true
}

// changing reports whether a change of the blocks is under way, so that what a read miss gets
// from the backing device may be old by the time it could be inserted.
func (s *stripe) changing(b BackingID, first, last Block) bool {
	for o := s.locks; o != nil; o = o.next {
		if o.kind != lockFill && o.overlaps(b, first, last) {
			return true
		}
	}
	return false
}

// locked reports whether a lock of that kind is held on the block.
func (s *stripe) locked(b BackingID, blk Block, kind lockKind) bool {
	for o := s.locks; o != nil; o = o.next {
		if o.granted && o.kind == kind && o.overlaps(b, blk, blk) {
			return true
		}
	}
	return false
}

package cache

// mover empties a bucket of its pinned blocks: it copies them to other slots, up to a region's
// worth at a time. The bucket is off the FIFO meanwhile and comes back as the oldest, so that
// eviction finds it next. All of its blocks are clean, and those can only go, by whatever changes
// them: then the copy is dropped.
type mover struct {
	v     *eviction
	busy  bool
	b     BucketID
	keys  []dirtyKey
	ents  []entry
	live  []bool // the SSD returned it right
	runs  []slotRun
	buf   []byte
	step  moveStep
	waits int
	moved int // in this pass
	err   error
}

type moveStep uint8

const (
	moveRead moveStep = iota
	moveWrite
)

// start takes a bucket that eviction has taken off the FIFO; false if it cannot now.
func (m *mover) start(b BucketID) bool {
	if m.busy {
		return false
	}
	if m.buf == nil {
		var err error
		if m.buf, err = offHeap(regionBytes); err != nil {
			return false
		}
	}
	m.b = b
	return m.pass()
}

// pass moves the next blocks, if there are any and slots for them.
func (m *mover) pass() bool {
	l := m.v.bg.l
	c := l.c
	m.keys, m.ents, m.live = m.keys[:0], m.ents[:0], m.live[:0]
	c.locked(m.b, func(_ *stripe, k key, e entry) {
		if e.st&stPinned != 0 && len(m.keys) < regionBlocks {
			m.keys, m.ents, m.live = append(m.keys, dirtyKey{k, e.slot}), append(m.ents, e), append(m.live, true)
		}
	})
	n := len(m.keys)
	if n == 0 || !c.journal.reserve(n) {
		return false
	}
	m.runs = m.runs[:0]
	for left := n; left > 0; {
		if !l.opened(streamPinned, true) {
			l.dropRuns(m.runs)
			c.journal.unreserve(n)
			m.v.stuck = m.b
			return false
		}
		s, got := l.alloc(streamPinned, left)
		m.runs = append(m.runs, slotRun{s, got})
		left -= got
	}
	m.busy, m.step, m.waits, m.moved, m.err = true, moveRead, 1, 0, nil
	c.buckets[m.b].pins.Add(1)
	for i := 0; i < n; {
		j := i + 1
		for j < n && m.keys[j].slot == m.keys[i].slot+Slot(j-i) {
			j++
		}
		m.waits++
		l.move(m, OpRead, SSD, c.geo.slotOff(m.keys[i].slot), m.at(i, j), uint32(i)<<16|uint32(j))
		i = j
	}
	m.opsDone(l)
	return true
}

// at is the memory of blocks [i, j).
func (m *mover) at(i, j int) []byte { return m.buf[i*BlockSize : j*BlockSize : j*BlockSize] }

func (m *mover) opDone(l *Lane, op *Op, err error) {
	if m.step == moveRead {
		m.verify(l, int(op.arg>>16), int(op.arg&0xffff), err)
	} else if err != nil {
		m.err = err
	}
	m.opsDone(l)
}

// verify drops what the SSD did not return right: it is clean. Blocks that one operation has failed to
// read are read again, each by itself.
func (m *mover) verify(l *Lane, i, j int, err error) {
	if err != nil && j > i+1 {
		for ; i < j; i++ {
			m.waits++
			l.move(m, OpRead, SSD, l.c.geo.slotOff(m.keys[i].slot), m.at(i, i+1),
				uint32(i)<<16|uint32(i+1))
		}
		return
	}
	for ; i < j; i++ {
		k := m.keys[i].k
		bad := err != nil
		if !bad && l.c.checksums {
			bad = dataSum(m.at(i, i+1), uint64(k)) != m.ents[i].sum
		}
		if bad {
			m.live[i] = false
			if b := l.c.backing(k.backing()); b != nil {
				l.distrust(b, k, m.keys[i].slot, err != nil)
			}
		}
	}
}

func (m *mover) opsDone(l *Lane) {
	if m.waits--; m.waits > 0 {
		return
	}
	if m.step == moveWrite {
		m.insert(l)
		return
	}
	m.step, m.waits = moveWrite, 1
	i := 0
	for _, r := range m.runs {
		m.waits++
		l.move(m, OpWrite, SSD, l.c.geo.slotOff(r.first), m.at(i, i+r.n), 0)
		i += r.n
	}
	m.opsDone(l)
}

// insert points the index to the copies of those blocks that are still where they were, and goes on.
func (m *mover) insert(l *Lane) {
	c := l.c
	if m.err != nil {
		for _, r := range m.runs {
			if id := c.bucketOf(r.first); ofBucket(m.err) {
				c.retire(id)
			}
		}
		l.closeBucket(streamPinned) // another one next time
	}
	i := 0
	for _, r := range m.runs {
		for j := range r.n {
			if m.err == nil && m.live[i] && m.insertOne(c, i, r.first+Slot(j)) {
				m.moved++
			}
			i++
		}
	}
	c.journal.unreserve(len(m.keys) - m.moved)
	l.stats.MovedBlocks.Add(int64(m.moved))
	l.dropRuns(m.runs)
	c.buckets[m.b].pins.Add(-1)
	m.busy = false
	if m.err == nil && m.moved > 0 && c.buckets[m.b].pinned.Load() > 0 && m.pass() {
		return
	}
	c.alloc.pushFront(m.b)
	if m.err != nil {
		m.v.retry = l.d.Now() + evictPause
		return
	}
	m.v.retry = 0
	m.v.start()
}

// insertOne maps a block to its copy; false if that is not what the block has any more.
func (m *mover) insertOne(c *Cache, i int, to Slot) bool {
	k := m.keys[i].k
	s := c.index.stripeOf(k.backing(), k.block())
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := c.index.find(k)
	b := c.backing(k.backing())
	if mutated(mutMoverBlind) && ok && b != nil && !c.lost() {
		e.sum = m.ents[i].sum
	} else if !ok || b == nil || c.lost() || e.slot != m.keys[i].slot || e.st&(stDirty|stPinned) != stPinned {
		return false
	}
	e.owner = c.index.ownerOf(e.slot)
	e.slot = to
	c.mapBlock(b, s, k, e)
	return true
}

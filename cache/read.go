package cache

import (
	"errors"
	"fmt"
)

// readPiece reads the part of a request that lies in one region: hits from the SSD, the rest
// from the backing device, into the request's data. Runs of blocks that lie side by side on
// their device are one operation. Blocks that need more than a transfer (partly valid, or
// verified though only part of them is wanted) go through an edge.
//
// A miss that is to be cached holds a fill lock from before the backing read until its blocks
// are in the index, or until a change of them has cancelled it.
type readPiece struct {
	r    *Request
	span span
	fill bool // admitted: misses enter the cache
	held bool // lock is on its stripe
	// unfilled says that the SSD failed the fill, failed that it failed a read,
	// and away that it was, or may be, for the SSD's absence.
	unfilled bool
	failed   bool
	away     bool
	// direct says that it is read into Request.Target, and private that it must not be, any more.
	direct  bool
	private bool
	step    readStep
	lock    rangeLock
	w       waiter
	first   Block
	n       int // blocks
	waits   int // operations under way
	err     error
	losses  uint64 // Backing.losses before it asked the index

	slots [regionBlocks]Slot // where each block was found, noSlot if it was not, leftSlot, or slowSlot
	sums  [regionBlocks]uint32
	masks [regionBlocks]uint8       // sectors that the slot had then
	again [regionBlocks / 64]uint64 // blocks that the SSD did not return right
	group [regionBlocks / 64]uint64 // those of them that one failed operation had to read
	buf   []byte                    // what a zero-copy fill goes through, each block at its place
	runs  []slotRun                 // of the fill
	miss  blockRange                // that the fill covers
	next  *readPiece
}

type readStep uint8

const (
	readFirst  readStep = iota // from where the index says
	readAgain                  // blocks that the SSD failed, from the backing device
	readRetry                  // blocks that did not match their checksums, from the backing device
	readFilled                 // the misses are being written to the SSD
)

// blockRange is blocks [from, to) of a piece.
type blockRange struct{ from, to int }

func (l *Lane) startRead(r *Request, s span, fill bool) {
	p := l.freeReads
	if p == nil {
		p = &readPiece{}
	} else {
		l.freeReads = p.next
	}
	p.r, p.span, p.fill, p.held, p.step, p.err = r, s, fill, false, readFirst, nil
	p.unfilled, p.failed, p.away, p.losses = false, false, false, r.b.losses.Load()
	p.direct, p.private = false, false
	p.first, p.n = s.first(), int(s.last()-s.first())+1
	p.again, p.group = [regionBlocks / 64]uint64{}, [regionBlocks / 64]uint64{}
	p.w = waiter{lane: l, owner: p}
	p.lookUp(l)
}

// run goes on when the fill of another request has let go of the blocks.
func (p *readPiece) run(l *Lane, _ error) { p.lookUp(l) }

// whole reports whether all of block i of the piece is wanted, and it is a full block.
func (p *readPiece) whole(i int) bool {
	at := int64(p.first)*BlockSize + int64(i)*BlockSize
	return at >= p.span.off && at+BlockSize <= p.span.off+p.span.len
}

// part is what is wanted of block i: bytes within the block, and where they go in the request.
func (p *readPiece) part(i int) (from, n, reqOff int) {
	return blockPart(p.span, p.r, p.first+Block(i))
}

// blockPart cuts a span of a request to one block.
func blockPart(s span, r *Request, blk Block) (from, n, reqOff int) {
	at := int64(blk) * BlockSize
	lo, hi := max(at, s.off), min(at+BlockSize, s.off+s.len)
	return int(lo - at), int(hi - lo), int(lo - r.Off)
}

// slowSlot marks in slots a block that needs an edge, leftSlot a pending one that is read from the backing device.
const (
	slowSlot = noSlot - 1
	leftSlot = noSlot - 2
)

// lookUp finds out where each block is, pins what is on the SSD and starts the reads.
func (p *readPiece) lookUp(l *Lane) {
	c, b := l.c, p.r.b
	health := c.health()
	lost, around := health == HealthLost, c.around(b)
	avoid := around
	if health != HealthOK && p.fill && !p.held && !mutated(mutStallAdmits) {
		p.fill = false
		p.r.notCached()
	}
	if lost && l.stopped(b) {
		p.fail(ErrSSDLost)
		p.finish(l, 0)
		return
	}
	timed := p.r.timed() && !p.private // what has begun is done, and is late
	if timed {
		if l.overdue(p.r) {
			p.giveUp(l)
			return
		}
		avoid = avoid || l.avoidsSSD(p.r)
	}
	s := c.index.stripeOf(b.id, p.first)
	hits, slow := 0, 0
	miss := blockRange{-1, 0}
	s.mu.Lock()
	for i := range p.n {
		k := makeKey(b.id, p.first+Block(i))
		e, ok := c.index.find(k)
		switch {
		case !ok:
			p.slots[i] = noSlot
			if p.whole(i) {
				if miss.from < 0 {
					miss.from = i
				}
				miss.to = i + 1
			}
			continue
		case avoid && e.st&stDirty == 0:
			p.slots[i] = noSlot
			continue
		case around && e.st.onBacking():
			p.slots[i] = leftSlot
			continue
		case lost:
			if from, n, _ := p.part(i); sectors(from, n)&e.st == 0 {
				p.slots[i] = noSlot
				continue
			}
			p.slots[i] = slowSlot
			slow++
			continue
		case !e.st.full() || e.st&stBad != 0 || (c.checksums && !p.whole(i)):
			p.slots[i] = slowSlot
			slow++
			continue
		}
		p.slots[i], p.sums[i], p.masks[i] = e.slot, e.sum, fullMask
		hits++
		c.buckets[c.bucketOf(e.slot)].pins.Add(1)
		if st := p.r.way.refs.apply(e.st); st != e.st && !p.private {
			c.index.setState(e.slot, st)
		}
	}
	granted := p.fillLock(l, s, miss)
	if !granted {
		p.unpinAll(c)
	}
	s.mu.Unlock()
	switch {
	case !granted:
		return
	case timed && l.hopeless(p.r, hits+slow > 0, hits+slow < p.n):
		p.unpinAll(c)
		p.giveUp(l)
		return
	}
	if p.direct = hits == p.n && p.mayPlace(); p.direct {
		p.submit(l)
		return
	}
	if hits+slow > 0 {
		p.countHits(l, hits+slow)
	}
	if hits+slow < p.n {
		io := &l.io[b.id]
		p.r.reached |= reachedBacking
		io.MissBlocks.Add(int64(p.n - hits - slow))
		if !p.held {
			io.BypassBytes.Add(int64(p.n-hits-slow) * BlockSize)
		}
	}
	p.submit(l)
}

func (p *readPiece) countHits(l *Lane, n int) {
	p.r.reached |= reachedSSD
	p.r.hits += int32(n)
	l.io[p.r.b.id].HitBlocks.Add(int64(n))
}

// fillLock takes, keeps or lets go of the fill lock as the misses need it; false if it has to
// be waited for. The stripe is locked.
func (p *readPiece) fillLock(l *Lane, s *stripe, miss blockRange) bool {
	if p.held {
		// Blocks that became misses while the lock was waited for are not under it.
		miss.from = max(miss.from, int(p.lock.first-p.first))
		miss.to = min(miss.to, int(p.lock.last-p.first)+1)
		if miss.from >= miss.to || p.lock.cancelled {
			s.release(&p.lock)
			p.held = false
			p.r.notCached()
		}
		p.miss = miss
		return true
	}
	if !p.fill || miss.from < 0 {
		return true
	}
	first, last := p.first+Block(miss.from), p.first+Block(miss.to-1)
	if s.changing(p.r.b.id, first, last) || l.c.alloc.freeCount.Load() <= 1 {
		if l.c.alloc.freeCount.Load() <= 1 {
			l.c.pokeBackground()
		}
		p.fill = false
		p.r.notCached()
		return true
	}
	p.miss, p.held = miss, true
	p.lock = rangeLock{backing: p.r.b.id, kind: lockFill, first: first, last: last, owner: p.w}
	granted := s.acquire(&p.lock)
	if !granted && p.r.timed() {
		// What it would wait for takes as long as what it can do itself, and has no deadline.
		s.release(&p.lock)
		p.held, p.fill = false, false
		p.r.notCached()
		return true
	}
	return granted
}

func (p *readPiece) unpinAll(c *Cache) {
	for i := range p.n {
		if p.slots[i] < leftSlot {
			c.unpin(p.slots[i])
		}
	}
}

func (c *Cache) unpin(s Slot) { c.buckets[c.bucketOf(s)].pins.Add(-1) }

// submit starts one operation per run of blocks, and an edge per slow block.
func (p *readPiece) submit(l *Lane) {
	c, b := l.c, p.r.b
	p.waits = 1
	if p.held && p.r.Data == nil {
		// The kernel lets the pages of a read be written to, but not read from, so that what
		// goes to the SSD has to be here.
		p.buf = l.region()
	}
	for i := 0; i < p.n; {
		slot, n := p.slots[i], 1
		switch slot {
		case slowSlot:
			p.waits++
			l.startReadEdge(p, i)
		case noSlot, leftSlot:
			for i+n < p.n && p.slots[i+n] == slot {
				n++
			}
			p.read(l, b.id, b.dataOff+int64(p.first)*BlockSize+int64(i)*BlockSize, i, n)
		default:
			for i+n < p.n && p.slots[i+n] == slot+Slot(n) &&
				c.bucketOf(slot) == c.bucketOf(slot+Slot(n)) {
				n++
			}
			p.read(l, SSD, c.geo.slotOff(slot), i, n)
		}
		i += n
	}
	p.opsDone(l)
}

// read starts the read of blocks [i, i+n), which lie from devOff on, as far as they are wanted.
func (p *readPiece) read(l *Lane, dev BackingID, devOff int64, i, n int) {
	from, _, reqOff := p.part(i)
	_, _, lastOff := p.part(i + n - 1)
	_, lastLen, _ := p.part(i + n - 1)
	p.waits++
	if p.direct {
		p.aim(l, devOff, i, n, reqOff)
		return
	}
	if p.buf != nil && dev != SSD {
		at := i*BlockSize + from
		l.moveFor(p.r, p, OpRead, dev, devOff+int64(from), p.buf[at:at+lastOff+lastLen-reqOff],
			uint32(i)<<16|uint32(n))
		return
	}
	l.transfer(p, OpRead, dev, devOff+int64(from), p.r, reqOff, lastOff+lastLen-reqOff,
		uint32(i)<<16|uint32(n))
}

func (p *readPiece) opDone(l *Lane, op *Op, err error) {
	i, n := int(op.arg>>16), int(op.arg&0xffff)
	switch {
	case err == nil && op.Dev != SSD && p.slots[i] == leftSlot && p.losses != p.r.b.losses.Load():
		for j := i; j < i+n; j++ { // it may be older than the blocks: where they are now is for edges to find out
			p.waits++
			l.startReadEdge(p, j)
		}
	case p.step == readRetry: // what came is looked at
	case p.step == readFilled:
		if err != nil {
			p.unfilled = true
			l.ssdWriteFailed(p.r.b, p.runs, err)
		}
	case p.direct:
		p.checkPlaced(l, op, i, n, err)
	case op.Dev == SSD:
		p.verify(l, op, i, n, err)
	case err != nil:
		p.fail(err)
	case p.buf != nil:
		_, _, reqOff := p.part(i)
		if err := l.d.CopyIn(p.r, reqOff, op.Mem); err != nil {
			p.fail(err)
		}
	}
	p.opsDone(l)
}

// verify checks the blocks that came from the SSD and marks those to be read again, which stay pinned: when they
// are judged, their slots must not have been used again.
func (p *readPiece) verify(l *Lane, op *Op, i, n int, err error) {
	c, good := l.c, int32(0)
	for j := i; j < i+n; j++ {
		bad := err != nil
		if !bad && c.checksums && op.Mem != nil && !mutated(mutNoVerify) {
			k := makeKey(p.r.b.id, p.first+Block(j))
			bad = dataSum(op.Mem[(j-i)*BlockSize:][:BlockSize], uint64(k)) != p.sums[j]
		}
		if bad {
			p.again[j/64] |= 1 << (j % 64)
		} else {
			good++
		}
		if err != nil && n > 1 && !errors.Is(err, errStuck) && !mutated(mutGroupLost) {
			p.group[j/64] |= 1 << (j % 64)
		}
	}
	if err != nil {
		p.failed = true
		p.away = p.away || !ofBucket(err)
		l.ssdReadFailed(p.r.b, p.slots[i], n, err)
	}
	c.buckets[c.bucketOf(p.slots[i])].pins.Add(-good)
}

// opsDone ends an operation and goes to the next step after the last.
func (p *readPiece) opsDone(l *Lane) {
	if p.waits--; p.waits > 0 {
		return
	}
	switch p.step {
	case readFirst:
		if p.direct {
			p.placed(l)
			return
		}
		if p.again != [regionBlocks / 64]uint64{} {
			p.step = readAgain
			p.readAgain(l)
			return
		}
		p.arrived(l)
	case readAgain:
		p.arrived(l)
	case readRetry:
		p.retried(l)
	case readFilled:
		p.insert(l)
	}
}

// readAgain deals with blocks that the SSD returned wrongly or not at all: clean ones leave the
// cache and are read from the backing device; of dirty ones there is no other copy. One bad sector
// fails the operation that reads many blocks, so these are tried each by itself first.
func (p *readPiece) readAgain(l *Lane) {
	p.waits = 1
	for i := range p.n {
		if p.again[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		slot := p.slots[i]
		if p.group[i/64]&(1<<(i%64)) != 0 {
			l.c.unpin(slot)
			p.waits++
			l.startReadEdge(p, i)
			continue
		}
		k := makeKey(p.r.b.id, p.first+Block(i))
		result := l.distrust(p.r.b, k, slot, p.failed)
		if result != distrustUnsure {
			l.c.unpin(slot)
		}
		switch result {
		case distrustUnsure:
			p.waits++
			g := l.newReadEdge(p, i)
			g.away, g.held = p.away, true
			g.await(l)
		case distrustLost:
			p.fail(fmt.Errorf("block %d of %s: %w", p.first+Block(i), p.r.b.name, ErrDirtyBad))
		case distrustChanged:
			// Overwritten meanwhile: where it is now is for an edge to find out.
			p.waits++
			l.startReadEdge(p, i)
		case distrustDropped, distrustClean, distrustLeft:
			b := p.r.b
			p.r.reached |= reachedBacking
			if result == distrustLeft {
				p.slots[i] = leftSlot
			}
			p.read(l, b.id, b.dataOff+int64(p.first+Block(i))*BlockSize, i, 1)
		}
	}
	p.opsDone(l)
}

func (p *readPiece) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// finish answers the piece; unused journal room is given back.
func (p *readPiece) finish(l *Lane, unused int) {
	p.place()
	l.c.journal.unreserve(unused)
	if p.held {
		s := l.c.index.stripeOf(p.r.b.id, p.first)
		s.mu.Lock()
		s.release(&p.lock)
		s.mu.Unlock()
		p.held = false
	}
	l.freeRegion(p.buf)
	r, err := p.r, p.err
	p.r, p.buf, p.next = nil, nil, l.freeReads
	l.freeReads = p
	l.pieceDone(r, err)
}

package cache

import "errors"

// errStuck is what a state machine gets instead of an operation on the SSD that does not end.
var errStuck = errors.New("the operation does not end")

// Swapper is a Driver that can give a read other memory. I/O that a device has cannot be taken back: it may
// write to the memory that it was given at any time, so that a request which is to be answered without it
// needs other memory first.
type Swapper interface {
	// Swap replaces r.Data by other memory with the same content; false if it cannot. old is for Reclaim,
	// when nothing is under way on the old memory any more.
	Swap(r *Request) (old int, ok bool)
	Reclaim(old int)
}

// orphan takes the place of a state machine that does not wait for an operation any more. Until that ends,
// the slots and the memory that it was given are not used for anything else. There are as many of them as
// operations under way at most.
type orphan struct {
	bucket BucketID
	read   bool
	page   []byte
	kept   *kept
}

// kept is memory that several of them share.
type kept struct {
	n      int
	region []byte // of the lane's pool
	mem    []byte // off the Go heap
	old    int    // of a request, if swap is set
	swap   Swapper
}

func (o *orphan) opDone(l *Lane, _ *Op, _ error) {
	if o.read {
		l.c.buckets[o.bucket].pins.Add(-1)
	} else {
		l.c.unwriting(o.bucket, 1)
	}
	l.freePage(o.page)
	k := o.kept
	if k == nil {
		return
	}
	if k.n--; k.n > 0 {
		return
	}
	l.freeRegion(k.region)
	if k.mem != nil {
		freeOffHeap(k.mem)
	}
	if k.swap != nil {
		k.swap.Reclaim(k.old)
	}
}

// abandonStuck lets requests go on without the operations on the SSD that take too long, as far as there is
// another way: reads of what the backing device has, and copies that nobody waits for, at once; with the
// SSD lost everything that can be. Requests whose memory the engine cannot see, or the driver not
// replace, wait: their pages belong to the operation until it ends.
func (l *Lane) abandonStuck() {
	now, lost := l.d.Now(), l.c.lost()
	if mutated(mutStuckKept) && !lost {
		return
	}
	for op, next := l.ssdOps.head, (*Op)(nil); op != nil; op = next {
		next = op.next
		if !lost && now-op.at < l.c.stallLimit {
			return
		}
		if op.Req != nil || op.Off < l.c.geo.DataOff || op.Kind > OpWrite {
			continue
		}
		switch m := op.done.(type) {
		case *readPiece:
			if op.Kind == OpWrite {
				l.abandonFill(m)
			} else {
				l.abandonReads(m.r)
			}
		case *edge:
			l.abandonEdge(op, m, lost)
		case *through:
			l.abandon(op, &orphan{})
		case *batch:
			if lost {
				l.abandonBatch(m)
			}
		case *writePiece:
			if lost {
				l.abandon(op, &orphan{})
			}
		}
	}
}

// abandon gives the state machine of an operation an error, and the operation to an orphan. It may be the
// end of the request.
func (l *Lane) abandon(op *Op, o *orphan) {
	c := l.c
	o.bucket = c.bucketOf(Slot((op.Off - c.geo.DataOff) / BlockSize))
	if o.read = op.Kind == OpRead; o.read {
		c.buckets[o.bucket].pins.Add(1)
	} else {
		c.buckets[o.bucket].writing.Add(1)
	}
	ghost := l.newOp(op.done)
	ghost.Kind, ghost.Dev, ghost.Off, ghost.Len, ghost.Mem, ghost.arg = op.Kind, op.Dev, op.Off, op.Len,
		op.Mem, op.arg
	ghost.track, ghost.begun, ghost.from = op.track, op.begun, op.from
	op.done, op.track, op.begun, op.from = o, nil, 0, nil
	l.stats.Abandoned.Add(1)
	l.conclude(ghost, errStuck)
}

// abandonFill abandons what is left of a fill: its operations share the memory of the piece.
func (l *Lane) abandonFill(p *readPiece) {
	var list []*Op
	for op := l.ssdOps.head; op != nil; op = op.next {
		if op.done == p {
			list = append(list, op)
		}
	}
	if len(list) != p.waits {
		return
	}
	k := &kept{n: len(list), region: p.buf}
	p.buf = nil
	for _, op := range list {
		l.abandon(op, &orphan{kept: k})
	}
}

// abandonBatch abandons the reads of a batch, whose lock is in the way of changes without the SSD. What others of its reads
// have returned may be written yet.
func (l *Lane) abandonBatch(t *batch) {
	buf, err := offHeap(regionBytes)
	if err != nil {
		return
	}
	var list []*Op
	for op := l.ssdOps.head; op != nil; op = op.next {
		if op.done == t {
			list = append(list, op)
		}
	}
	k := &kept{n: len(list), mem: t.buf}
	copy(buf, t.buf)
	t.buf = buf
	for _, op := range list {
		l.abandon(op, &orphan{kept: k})
	}
}

// abandonReads abandons the reads into a request's memory, which is replaced first. They have to be the
// only operations on it: what others are about to write must not get lost.
func (l *Lane) abandonReads(r *Request) {
	d, ok := l.d.(Swapper)
	if !ok {
		return
	}
	var list []*Op
	for op := l.ssdOps.head; op != nil; op = op.next {
		if p, ok := op.done.(*readPiece); ok && op.from == r && l.mayAbandon(op, p) {
			list = append(list, op)
		}
	}
	if len(list) == 0 || len(list) != int(r.flying) {
		return // the memory is not the driver's, or others write to it
	}
	old, ok := d.Swap(r)
	if !ok {
		return
	}
	k := &kept{n: len(list), old: old, swap: d}
	for _, op := range list {
		l.abandon(op, &orphan{kept: k})
	}
}

// mayAbandon reports whether a read takes too long and can be done without.
func (l *Lane) mayAbandon(op *Op, p *readPiece) bool {
	return l.c.lost() || l.d.Now()-op.at >= l.c.stallLimit && l.c.around(p.r.b) &&
		p.onBacking(l.c, int(op.arg>>16), int(op.arg&0xffff))
}

// onBacking reports whether the backing device has blocks [i, i+n) of the piece.
func (p *readPiece) onBacking(c *Cache, i, n int) bool {
	s := c.index.stripeOf(p.r.b.id, p.first)
	s.mu.Lock()
	defer s.mu.Unlock()
	for j := i; j < i+n; j++ {
		if e, ok := c.index.find(makeKey(p.r.b.id, p.first+Block(j))); ok && !e.st.onBacking() {
			return false
		}
	}
	return true
}

func (l *Lane) abandonEdge(op *Op, g *edge, lost bool) {
	switch {
	case g.step == edgeSlot && (lost || l.c.around(g.b) && g.onBacking(l.c)):
		o := &orphan{page: g.page}
		g.page = l.page()
		l.abandon(op, o)
	case g.step == edgeStore && lost:
		o := &orphan{page: g.page}
		g.page = nil
		l.abandon(op, o)
	}
}

func (g *edge) onBacking(c *Cache) bool {
	s := c.index.stripeOf(g.b.id, g.blk)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := c.index.find(g.key())
	return !ok || e.st.onBacking()
}

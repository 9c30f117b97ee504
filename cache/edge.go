package cache

import (
	"fmt"
	"syscall"
)

// edge handles one block whose data has to pass through memory of the engine: it is read in
// part and verified as a whole, or only part of it is on the SSD, or a write covers only part
// of it.
type edge struct {
	blk   Block
	b     *Backing
	r     *Request
	span  span
	read  *readPiece  // a read, or
	write *writePiece // a merge for a write
	at    int         // index of the block in its piece
	e     entry
	page  []byte // the slot's data
	under []byte // the backing device's data, where the slot lacks some
	step  edgeStep
	w     waiter
	want  uint64 // the probe of the SSD whose outcome is waited for, 0 if none is
	tried bool   // the SSD has failed to return it once, and was there
	gone  bool   // it fails for lack of an SSD
	away  bool   // what it waits for was not read because the SSD was away: that is no verdict
	held  bool   // the slot is pinned: it must not be used again before it is judged
	next  *edge

	losses uint64 // Backing.losses before the block was found pending, noLosses if it was not: see Cache.lose
}

type edgeStep uint8

const (
	edgeSlot    edgeStep = iota // the slot is being read
	edgeBacking                 // the backing device is being read into under
	edgeDirect                  // the backing device is being read into the request
	edgeStore                   // the merged page is being written to its new slot
)

func (l *Lane) newEdge(r *Request, s span, blk Block) *edge {
	g := l.freeEdges
	if g == nil {
		g = &edge{}
	} else {
		l.freeEdges = g.next
	}
	*g = edge{r: r, b: r.b, span: s, blk: blk, losses: noLosses}
	return g
}

func (l *Lane) startReadEdge(p *readPiece, i int) { l.newReadEdge(p, i).lookUp(l) }

// newReadEdge is for a block whose slot has been looked at and is not to be read now.
func (l *Lane) newReadEdge(p *readPiece, i int) *edge {
	g := l.newEdge(p.r, p.span, p.first+Block(i))
	g.read, g.at, g.e.slot = p, i, p.slots[i]
	return g
}

func (l *Lane) startWriteEdge(p *writePiece, i int) {
	g := l.newEdge(p.r, p.span, p.first+Block(i))
	g.write, g.at = p, i
	if g.page = l.page(); g.page == nil {
		g.finish(l, errNoMemory)
		return
	}
	g.lookUp(l)
}

// errNoMemory fails the requests that cannot do without memory of the engine when there is none.
var errNoMemory = fmt.Errorf("no memory for a part of a block: %w", syscall.ENOMEM)

func (g *edge) key() key { return makeKey(g.b.id, g.blk) }

// sectors is the mask of the sectors of a part of a block.
func sectors(from, n int) state {
	first, last := from/SectorSize, (from+n-1)/SectorSize
	return state(1<<(last+1) - 1<<first)
}

// lookUp finds the block and starts to read it.
func (g *edge) lookUp(l *Lane) {
	c := l.c
	if g.write != nil {
		if _, n, _ := blockPart(g.span, g.r, g.blk); n == g.b.blockBytes(g.blk) {
			clear(g.page)
			g.merge(l, 0) // all that there is of the device's last block
			return
		}
	}
	lost := c.lost()
	g.losses = g.b.losses.Load()
	s := c.index.stripeOf(g.b.id, g.blk)
	s.mu.Lock()
	e, ok := c.index.find(g.key())
	if ok && e.st&stBad == 0 && !lost {
		c.buckets[c.bucketOf(e.slot)].pins.Add(1)
	}
	s.mu.Unlock()
	if g.e = e; e.st&stPending == 0 {
		g.losses = noLosses
	}
	switch {
	case lost:
		g.withoutSSD(l, ok)
	case ok && e.st&stBad != 0:
		if from, n, _ := blockPart(g.span, g.r, g.blk); g.write == nil && sectors(from, n)&e.st == 0 {
			g.direct(l) // replaced since
			return
		}
		g.lost(l)
	case ok:
		if g.page == nil {
			g.page = l.page()
		}
		if g.page == nil {
			c.unpin(e.slot)
			g.finish(l, errNoMemory)
			return
		}
		g.step = edgeSlot
		l.moveFor(g.r, g, OpRead, SSD, c.geo.slotOff(e.slot), g.page, 0)
	case g.write != nil:
		clear(g.page)
		g.merge(l, 0)
	default:
		g.direct(l)
	}
}

// direct reads what is wanted straight from the backing device.
func (g *edge) direct(l *Lane) {
	from, n, reqOff := blockPart(g.span, g.r, g.blk)
	g.step = edgeDirect
	l.transfer(g, OpRead, g.b.id, g.b.dataOff+int64(g.blk)*BlockSize+int64(from), g.r, reqOff, n, 0)
}

func (g *edge) opDone(l *Lane, op *Op, err error) {
	if err == nil && op.Dev != SSD && g.losses != noLosses && g.losses != g.b.losses.Load() {
		g.lookUp(l) // it may be older than the block
		return
	}
	switch g.step {
	case edgeSlot:
		g.held = true
		if err != nil {
			l.ssdReadFailed(g.b, g.e.slot, 1, err)
			g.away = !ofBucket(err)
		}
		if err != nil || (l.c.checksums && !mutated(mutNoVerify) && dataSum(g.page, uint64(g.key())) != g.e.sum) {
			g.untrusted(l, err != nil)
			return
		}
		g.unpin(l)
		g.haveSlot(l)
	case edgeBacking:
		if err != nil {
			g.finish(l, err)
			return
		}
		if g.write != nil {
			for i := range sectorsPerBlock {
				if g.e.st&(1<<i) == 0 {
					clear(g.page[i*SectorSize : (i+1)*SectorSize])
				}
			}
			g.merge(l, g.e.st&stMask)
			return
		}
		overlay(g.under, g.page, g.e.st)
		g.copyIn(l, g.under)
	case edgeDirect:
		g.finish(l, err)
	case edgeStore:
		g.finish(l, err)
	}
}

func (g *edge) unpin(l *Lane) {
	if g.held {
		l.c.unpin(g.e.slot)
		g.held = false
	}
}

// haveSlot goes on with the slot's data in page.
func (g *edge) haveSlot(l *Lane) {
	if g.write != nil {
		g.merge(l, g.e.st&stMask)
		return
	}
	// Should the client's checksum not match, it is this one that is looked at.
	g.read.slots[g.at], g.read.masks[g.at] = g.e.slot, uint8(g.e.st&stMask)
	from, n, _ := blockPart(g.span, g.r, g.blk)
	if sectors(from, n)&^g.e.st == 0 {
		g.copyIn(l, g.page)
		return
	}
	if g.under == nil {
		g.under = l.page()
	}
	if g.under == nil {
		g.finish(l, errNoMemory)
		return
	}
	g.step = edgeBacking
	// No more than is wanted: a bad sector beside it is nobody's concern.
	l.moveFor(g.r, g, OpRead, g.b.id, g.b.dataOff+int64(g.blk)*BlockSize+int64(from),
		g.under[from:from+n:from+n], 0)
}

// restore reads the whole block from the backing device, where the slot's data should have been.
func (g *edge) restore(l *Lane) {
	clear(g.page)
	g.step = edgeBacking
	n := g.b.blockBytes(g.blk)
	l.moveFor(g.r, g, OpRead, g.b.id, g.b.dataOff+int64(g.blk)*BlockSize, g.page[:n:n], 0)
}

// overlay copies the valid sectors of src over dst.
func overlay(dst, src []byte, valid state) {
	for i := range sectorsPerBlock {
		if valid&(1<<i) != 0 {
			copy(dst[i*SectorSize:(i+1)*SectorSize], src[i*SectorSize:])
		}
	}
}

func (g *edge) copyIn(l *Lane, page []byte) {
	from, n, reqOff := blockPart(g.span, g.r, g.blk)
	g.finish(l, l.d.CopyIn(g.r, reqOff, page[from:from+n]))
}

// merge lays the written part over page, of which have is valid, and writes it to its new slot.
func (g *edge) merge(l *Lane, have state) {
	from, n, reqOff := blockPart(g.span, g.r, g.blk)
	if err := l.d.CopyOut(g.r, reqOff, g.page[from:from+n]); err != nil {
		g.finish(l, err)
		return
	}
	p := g.write
	p.masks[g.at] = uint8(have | sectors(from, n))
	if mutated(mutFullMask) {
		p.masks[g.at] = fullMask
	}
	if l.c.checksums {
		p.sums[g.at] = dataSum(g.page, uint64(g.key()))
	}
	g.step = edgeStore
	l.moveFor(g.r, g, OpWrite, SSD, l.c.geo.slotOff(p.slot(g.at)), g.page, 0)
}

// untrusted goes on after the slot was not returned right, or, with failed, not at all.
func (g *edge) untrusted(l *Lane, failed bool) {
	losses := g.b.losses.Load()
	result := l.distrust(g.b, g.key(), g.e.slot, failed)
	if result == distrustUnsure {
		g.await(l)
		return
	}
	g.unpin(l)
	switch result {
	case distrustLost:
		g.lost(l)
	case distrustChanged:
		g.lookUp(l)
	case distrustDropped, distrustClean:
		if g.write != nil {
			clear(g.page)
			g.merge(l, 0) // the backing device keeps its promises
			return
		}
		g.direct(l)
	case distrustLeft:
		g.losses = losses
		if g.write != nil && l.c.lost() {
			g.withoutSSD(l, true) // there is no new slot
			return
		}
		if g.write != nil {
			// The new slot takes over what the old one promises.
			g.restore(l)
			return
		}
		g.direct(l)
	}
}

func (g *edge) lost(l *Lane) {
	g.finish(l, fmt.Errorf("block %d of %s: %w", g.blk, g.b.name, ErrDirtyBad))
}

func (g *edge) finish(l *Lane, err error) {
	l.freePage(g.page)
	l.freePage(g.under)
	r, w, stored := g.read, g.write, g.step == edgeStore || g.gone
	*g = edge{next: l.freeEdges}
	l.freeEdges = g
	if r != nil {
		if err != nil {
			r.fail(err)
		}
		r.opsDone(l)
		return
	}
	if err != nil && !stored {
		w.lost, err = err, nil // not for lack of an SSD: the old data is gone
	}
	w.opsDone(l, err)
}

// await waits until it is known whether the block is bad or the whole SSD: a probe that begins now
// says so.
func (g *edge) await(l *Lane) {
	h := &l.c.ssdHealth
	g.want = h.begun.Load() + 1
	storeMax(&h.wanted, g.want)
	g.park(l)
}

func (g *edge) park(l *Lane) {
	g.w = waiter{lane: l, owner: g}
	l.c.ssdHealth.park(l.c, &g.w)
}

// run goes on with what was waited for.
func (g *edge) run(l *Lane, _ error) {
	switch {
	case l.c.lost() || g.want == 0:
		g.want = 0
		g.unpin(l)
		g.lookUp(l)
	case l.c.ssdHealth.good.Load() < g.want:
		g.park(l)
	case g.away || l.c.ssdHealth.bad.Load() >= g.want: // perhaps it was the whole SSD
		g.want, g.away = 0, false
		g.unpin(l)
		g.lookUp(l)
	case !g.tried && !mutated(mutGroupLost): // errors may pass
		g.want, g.tried = 0, true
		g.unpin(l)
		g.lookUp(l)
	default:
		g.want = 0
		g.untrusted(l, false)
	}
}

// withoutSSD goes on with a block of which the SSD is lost. cached says that it has it.
func (g *edge) withoutSSD(l *Lane, cached bool) {
	if g.write != nil { // the piece goes to the backing device
		g.gone = true
		g.finish(l, ErrSSDLost)
		return
	}
	from, n, _ := blockPart(g.span, g.r, g.blk)
	switch {
	case l.stopped(g.b):
		g.finish(l, ErrSSDLost)
	case !cached || g.e.st.onBacking() || sectors(from, n)&g.e.st == 0:
		g.r.reached |= reachedBacking
		g.direct(l)
	case l.holds(g.b) && !l.overdue(g.r):
		g.park(l)
	default:
		g.finish(l, fmt.Errorf("block %d of %s: %w", g.blk, g.b.name, ErrSSDLost))
	}
}

package cache

import (
	"fmt"

	"ubcache/attrs"
)

// ErrMismatch is the error of a request whose data does not match its checksums. A write had no
// effect; the data of a read must not be used.
var ErrMismatch = fmt.Errorf("the data does not match its checksums: %w", attrs.ErrnoMismatch)

// sumCheck is the checksum attribute of a request at work.
type sumCheck struct {
	attrs.Checksum        // of algorithm 0 if there is nothing to do
	seen           int    // blocks that were looked at
	bad            uint32 // the first that differs
	mismatch       bool
}

// decideChecksum promises to look at the data, if it can be seen.
func (l *Lane) decideChecksum(r *Request) {
	switch {
	case r.Op > ReqWrite:
		r.res.Ignore(attrs.IDChecksum, attrs.ReasonDirection)
	case r.Data == nil:
		r.res.Ignore(attrs.IDChecksum, attrs.ReasonHidden)
	default:
		l.tracked(r).sum.Checksum = r.Attrs.Checksum()
		r.res.Handle(attrs.IDChecksum)
	}
}

// verifyWrite looks at all data of a write, before anything is done with it.
func (t *track) verifyWrite(r *Request) bool {
	for i := range int(r.Len / BlockSize) {
		t.sum.seen++
		if !t.look(r, i) {
			t.differs(i)
			return false
		}
	}
	return true
}

// look computes the checksum of block i of the request, keeps it if it is to be returned and says
// whether it is the expected one.
func (t *track) look(r *Request, i int) bool {
	c := &t.sum.Checksum
	sum := c.Algorithm.Sum(r.Data[i*BlockSize:][:BlockSize])
	if c.Return {
		c.Algorithm.AppendSum(t.sums[:i*c.Algorithm.Width()], sum)
	}
	return len(c.Sums) == 0 || sum == c.Sum(i)
}

// differs notes that block i of the request does not match.
func (t *track) differs(i int) {
	if !t.sum.mismatch || uint32(i) < t.sum.bad {
		t.sum.mismatch, t.sum.bad = true, uint32(i)
	}
}

// answerSums keeps the promise of decideChecksum. A request that failed before all of its data
// was looked at has no answer, unless what was looked at did not match: that counts most.
func (t *track) answerSums(r *Request) {
	c := &t.sum
	switch {
	case c.Algorithm == 0:
	case c.mismatch:
		r.Err = ErrMismatch
		r.res.SetMismatch(c.Algorithm, c.bad)
	case c.seen != int(r.Len/BlockSize):
		r.res.Answer(attrs.IDChecksum, attrs.NotHandled, attrs.ReasonNone)
	case c.Return:
		r.res.SetChecksums(c.Algorithm, t.sums[:c.seen*c.Algorithm.Width()])
	default:
		r.res.SetChecksums(c.Algorithm, nil)
	}
}

// arrived looks at the data of the piece, which is all there, before it is given out or stored.
func (p *readPiece) arrived(l *Lane) {
	t := p.r.track
	if t == nil || t.sum.Algorithm == 0 || p.err != nil {
		p.maybeFill(l)
		return
	}
	reread, retry := p.again, false
	p.again = [regionBlocks / 64]uint64{}
	for i := range p.n {
		t.sum.seen++
		switch {
		case t.look(p.r, p.inRequest(i)):
		case reread[i/64]&(1<<(i%64)) == 0 && p.elsewhere(l.c, i):
			p.again[i/64] |= 1 << (i % 64)
			retry = true
		default:
			p.mismatch(t, i)
		}
	}
	if !retry {
		p.maybeFill(l)
		return
	}
	p.retry(l)
}

// inRequest is the number of block i of the piece in its request, both of whole blocks.
func (p *readPiece) inRequest(i int) int {
	return int((p.span.off-p.r.Off)/BlockSize) + i
}

// mismatch fails the piece, which then fills nothing either.
func (p *readPiece) mismatch(t *track, i int) {
	t.differs(p.inRequest(i))
	p.fail(ErrMismatch)
}

// elsewhere reports whether a block that the SSD returned is on the backing device too. One that may still be lost there
// is marked.
func (p *readPiece) elsewhere(c *Cache, i int) bool {
	if p.slots[i] == noSlot || p.slots[i] == leftSlot {
		return false
	}
	k := makeKey(p.r.b.id, p.first+Block(i))
	s := c.index.stripeOf(p.r.b.id, p.first)
	s.mu.Lock()
	e, ok := c.index.find(k)
	s.mu.Unlock()
	if e.st&stPending != 0 {
		p.slots[i] = leftSlot
	}
	return !ok || e.st.onBacking()
}

// retry reads the blocks marked in again from the backing device: what the SSD returned for them is
// not what the client expects. The client may be wrong, so the copies stay where they are until the
// backing device has shown that they are bad.
func (p *readPiece) retry(l *Lane) {
	b := p.r.b
	p.step, p.waits = readRetry, 1
	p.r.reached |= reachedBacking
	for i := range p.n {
		if p.again[i/64]&(1<<(i%64)) != 0 {
			p.sums[i] = p.slotSum(i)
			p.read(l, b.id, b.dataOff+int64(p.first+Block(i))*BlockSize, i, 1)
		}
	}
	p.opsDone(l)
}

// retried looks at what the backing device returned. A read that failed left something that does
// not match.
func (p *readPiece) retried(l *Lane) {
	t := p.r.track
	for i := range p.n {
		switch {
		case p.again[i/64]&(1<<(i%64)) == 0:
		case t.look(p.r, p.inRequest(i)):
			// Of a copy of some sectors the others may be what has changed.
			if p.slotSum(i) != p.sums[i] {
				l.dropClean(p.r.b, makeKey(p.r.b.id, p.first+Block(i)), p.slots[i], p.masks[i])
			}
		default:
			p.mismatch(t, i)
		}
	}
	p.maybeFill(l)
}

// slotSum is a checksum of the sectors of block i, in the request's data, that its slot had.
func (p *readPiece) slotSum(i int) (sum uint32) {
	data := p.r.Data[p.inRequest(i)*BlockSize:][:BlockSize]
	for j := range sectorsPerBlock {
		if p.masks[i]>>j&1 != 0 {
			sum = dataSum(data[j*SectorSize:][:SectorSize], uint64(sum))
		}
	}
	return sum
}

// dropClean takes a block whose slot, which was read, holds wrong data out of the cache, if it is there still
// and clean: a write may have given it another one meanwhile, or have taken some of its sectors, which were
// then what was wrong.
func (l *Lane) dropClean(b *Backing, k key, slot Slot, mask uint8) {
	c := l.c
	room := c.journal.reserve(1)
	s := c.index.stripeOf(b.id, k.block())
	s.mu.Lock()
	if e, ok := c.index.find(k); ok && e.slot == slot && e.st&stDirty == 0 && uint8(e.st&stMask) == mask {
		room = l.heal(b, s, k, e, room)
	}
	s.mu.Unlock()
	if room {
		c.journal.unreserve(1)
	}
}

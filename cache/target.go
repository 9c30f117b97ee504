package cache

import (
	"fmt"
	"syscall"
	"unsafe"

	"ubcache/attrs/shm/hostile"
)

// A read that comes with the client's memory (Request.Target) has its hits read straight into that. Nothing that goes
// wrong there says anything of the SSD: the client may have changed what was read before it was checked, or have no
// memory there, so that the read failed. The piece is then read once more into the engine's own memory, and that
// counts. What the engine itself has to look at, or to store, never goes through the client's memory.

// summed reports whether the request's data is looked at for its issuer's sake.
func (r *Request) summed() bool { return r.track != nil && r.track.sum.Algorithm != 0 }

// mayPlace reports whether a piece of which the SSD has all can be read straight into the client's memory. A device
// might not take memory that is not aligned.
func (p *readPiece) mayPlace() bool {
	if !p.r.Placed || p.private || (p.span.off|p.span.len)%BlockSize != 0 {
		return false
	}
	return uintptr(unsafe.Pointer(&p.r.Target[p.span.off-p.r.Off]))%BlockSize == 0
}

// aim starts the read of blocks [i, i+n), which lie from devOff on, into the client's memory.
func (p *readPiece) aim(l *Lane, devOff int64, i, n, reqOff int) {
	op := l.newOp(p)
	op.Kind, op.Dev, op.Off, op.Len, op.arg = OpRead, SSD, devOff, int64(n)*BlockSize, uint32(i)<<16|uint32(n)
	op.Mem, op.aimed = p.r.Target[reqOff:reqOff+n*BlockSize:reqOff+n*BlockSize], true
	l.issue(op, p.r)
}

// checkPlaced looks at what has been read into the client's memory.
func (p *readPiece) checkPlaced(l *Lane, op *Op, i, n int, err error) {
	c := l.c
	if err == nil && c.checksums && !mutated(mutTargetUnchecked) {
		var right bool
		right, err = p.placedRight(op.Mem, i, n)
		p.private = p.private || !right
	}
	p.private = p.private || err != nil
	c.buckets[c.bucketOf(p.slots[i])].pins.Add(-int32(n))
}

// placedRight compares blocks [i, i+n), which are in mem, with their checksums.
func (p *readPiece) placedRight(mem []byte, i, n int) (right bool, err error) {
	touching := true
	defer func() {
		if touching {
			err = hostile.Fault(recover())
		}
	}()
	right = true
	for j := 0; j < n && right; j++ {
		k := makeKey(p.r.b.id, p.first+Block(i+j))
		right = dataSum(mem[j*BlockSize:][:BlockSize], uint64(k)) == p.sums[i+j]
	}
	touching = false
	return right, nil
}

// placed ends the reads into the client's memory, or begins anew with the engine's.
func (p *readPiece) placed(l *Lane) {
	if p.private {
		p.direct = false
		p.lookUp(l)
		return
	}
	p.countHits(l, p.n)
	p.arrived(l)
}

// place copies what has come another way to the client's memory. What the SSD has left there and is not the client's is
// removed, if nothing comes in its place.
func (p *readPiece) place() {
	if p.direct || !p.r.Placed || p.err != nil && !p.private {
		return
	}
	at, n := p.span.off-p.r.Off, p.span.len
	if p.err != nil {
		clear(p.r.Data[at : at+n])
	}
	if hostile.Copy(p.r.Target[at:at+n], p.r.Data[at:at+n]) != nil {
		p.fail(fmt.Errorf("give out what was read: %w: %w", hostile.ErrFault, syscall.EFAULT))
	}
}

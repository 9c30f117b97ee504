package shm

import (
	"errors"
	"fmt"
	"sync/atomic"

	"ubcache/attrs"
)

// Ticket stands for a request with attributes that is under way.
type Ticket struct {
	start, length int64
	seq           uint32
}

// Issue writes the attributes of a request to the slots of its pages: off is where its data lies in
// the data area, n how many bytes it has. A request without data has n 0 and names a page by off.
// The request is started after it, and Collect called when it is over.
//
// It fails, and nothing is written, if the set has no encoding or does not fit into the slots of the
// request's pages ([attrs.ErrSpace]).
func (r *Region) Issue(off int64, n int, s *attrs.Set) (Ticket, error) {
	// Nearly all requests are of one page, with a set that was prepared and is short.
	body, size := s.Short()
	page := uint64(off) / PageBytes
	if size == attrs.NoShort || page >= uint64(r.pages) || uint64(n) > PageBytes-uint64(off)%PageBytes {
		return r.issue(off, n, s)
	}
	p := r.at(int(page))
	body.CopyTo(p.set.body[:])
	t := Ticket{start: off, length: int64(n), seq: r.nextSeq()}
	p.name(t, uint32(page), 0, size)
	return t, nil
}

// issue is Issue for all requests.
func (r *Region) issue(off int64, n int, s *attrs.Set) (Ticket, error) {
	if !r.holds(off, int64(n)) || n > maxRequest {
		return Ticket{}, fmt.Errorf("%w: %d bytes at %d", ErrPlace, n, off)
	}
	first, count := pagesOf(off, int64(n))
	// Most sets fit into one slot, and are written there at once. Nobody looks at it before it has its
	// number.
	size, err := s.Encode(r.at(first).set.body[:])
	if err != nil {
		if !errors.Is(err, attrs.ErrSpace) || count == 1 {
			return Ticket{}, err
		}
		if size, err = r.spread(first, count, s); err != nil {
			return Ticket{}, err
		}
	}
	t := Ticket{start: off, length: int64(n), seq: r.nextSeq()}
	for i := range count {
		r.at(first+i).name(t, uint32(first), uint32(i), uint32(size))
	}
	return t, nil
}

// name gives the page to a request: it is the one with that number of the request's pages.
func (p *pageSlots) name(t Ticket, first, number, size uint32) {
	p.set.first, p.set.number = first, number
	p.set.start, p.set.length = uint64(t.start), uint32(t.length)
	p.set.setBytes, p.set.overflow = size, 0
	// Nobody looks for a place to answer in before the number is there.
	p.free(t.seq)
	atomic.StoreUint32(&p.set.seq, t.seq)
}

// spread writes a set that is too long for one slot to as many as it takes.
func (r *Region) spread(first, count int, s *attrs.Set) (int, error) {
	var scratch [attrs.MaxBytes]byte
	size, err := s.Encode(scratch[:min(len(scratch), count*BodyBytes)])
	if err != nil {
		return 0, err
	}
	for i := 0; i*BodyBytes < size; i++ {
		copy(r.at(first + i).set.body[:], scratch[i*BodyBytes:size])
	}
	return size, nil
}

// maxRequest is the largest request in bytes, as in the kernel.
const maxRequest = 1<<31 - PageBytes

// nextSeq is never 0, which is the number of no request.
func (r *Region) nextSeq() uint32 {
	for {
		if n := r.seq.Add(1); n != 0 {
			return n
		}
	}
}

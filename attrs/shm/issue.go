package shm

import (
	"errors"
	"fmt"

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
	if !r.holds(off, int64(n)) || n > maxRequest {
		return Ticket{}, fmt.Errorf("%w: %d bytes at %d", ErrPlace, n, off)
	}
	first, count := pagesOf(off, int64(n))
	t := Ticket{start: off, length: int64(n)}
	body := r.slot(first) + slotHeaderBytes
	// Most sets fit into one slot, and are written there at once. Nobody looks at it before it has its
	// number.
	size, err := s.Encode(r.mem[body : body+BodyBytes])
	if errors.Is(err, attrs.ErrSpace) && count > 1 {
		size, err = r.spread(first, count, s)
	}
	if err != nil {
		return Ticket{}, err
	}
	t.seq = r.nextSeq()
	for i := range count {
		at := r.slot(first + i)
		b := r.mem[at : at+slotHeaderBytes]
		le.PutUint32(b[slotFirst:], uint32(first))
		le.PutUint64(b[slotStart:], uint64(off))
		le.PutUint32(b[slotLength:], uint32(n))
		le.PutUint32(b[slotNumber:], uint32(i))
		le.PutUint32(b[slotSetBytes:], uint32(size))
		le.PutUint32(b[slotOverflow:], 0)
		// Nobody looks for a place to answer in before the number is there.
		for k := range Answers {
			*r.long(r.answer(first+i, k) + answerClaim) = claimOf(t.seq, 0)
		}
	}
	for i := range count {
		r.store(r.slot(first+i)+slotSeq, t.seq)
	}
	return t, nil
}

// spread writes a set that is too long for one slot to as many as it takes.
func (r *Region) spread(first, count int, s *attrs.Set) (int, error) {
	var scratch [attrs.MaxBytes]byte
	size, err := s.Encode(scratch[:min(len(scratch), count*BodyBytes)])
	if err != nil {
		return 0, err
	}
	for i := 0; i*BodyBytes < size; i++ {
		at := r.slot(first+i) + slotHeaderBytes
		copy(r.mem[at:at+BodyBytes], scratch[i*BodyBytes:size])
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

// clear makes the slots of a request empty: what goes out from these pages next has no attributes,
// and no server finds a place to answer in.
func (r *Region) clear(t Ticket) {
	first, count := pagesOf(t.start, t.length)
	for i := range count {
		for k := range Answers {
			*r.long(r.answer(first+i, k) + answerClaim) = 0
		}
		r.store(r.slot(first+i)+slotSeq, 0)
	}
}

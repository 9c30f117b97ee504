package shm

import (
	"runtime/debug"
	"sync/atomic"

	"ubcache/attrs"
	"ubcache/attrs/shm/hostile"
)

// Request is a server's copy of what a client said with a request, or with one piece of it. It is
// used again for one request after the other; about 1 KiB, and 8 more once something was long.
type Request struct {
	// Set has the attributes. It refers to this Request, and is good until the next Read.
	Set attrs.Set
	// Results get the answers. Read leaves them as they are.
	Results attrs.Results
	// Memo is of the thread that reads and answers the requests; without it nothing is remembered.
	Memo *Memo
	// Tag is the server's own.
	Tag uint32

	view          *View // that it was read from
	start, length int64 // of the piece, in the data area
	page          int   // that it begins in
	seq           uint32
	body          slotBody // Set refers to it, if that came in one slot
	long          *long    // nil until something does not fit one slot
}

// long has a set, to which Request.Set refers then, and an answer that take several slots. That is rare, and a server
// has many Requests, which are read faster if they are small.
type long struct{ set, answer [attrs.MaxBytes]byte }

func (q *Request) longer() *long {
	if q.long == nil {
		q.long = new(long)
	}
	return q.long
}

// Memo is what a server's thread remembers from one request to the next: what clients say is mostly the same, and
// so is what they are answered. The zero value is ready. The thread's faults are panics: [hostile.Always].
type Memo struct {
	sets    attrs.SetDecoder
	results attrs.ResultsEncoder
}

// Given says whether the client gave attributes, readable or not: then it waits for answers.
func (q *Request) Given() bool { return q.seq != 0 }

// Place is where the piece lies in the data area.
func (q *Request) Place() (off, n int64) { return q.start, q.length }

// Read takes the attributes of the request whose data begins at byte off of the data area, and
// returns how many of the n bytes from there on belong to that request: all of them, unless
// the block layer has merged several. Those are read one after the other:
//
//	for n > 0 {
//		part, err := v.Read(q, off, n)
//		… // a request of its own, with q.Set and an answer
//		off, n = off+part, n-part
//	}
//
// Of a request that was split the set is that of the piece. Each slot is copied once, and what the
// client does to it later changes nothing. A slot that makes no sense counts as one that is not
// there. With n 0 the request has no data and off names its page.
func (v *View) Read(q *Request, off, n int64) (int64, error) {
	q.view, q.start, q.length, q.page, q.seq = v, off, n, int(uint64(off)/PageBytes), 0
	if !v.holds(off, n) {
		q.Set.Clear()
		return 0, ErrPlace
	}
	if q.Memo != nil {
		switch done, err := v.readMost(q); {
		case err != nil:
			q.Set.Clear()
			return 0, err
		case done:
			return n, nil
		}
	}
	h, err := v.head(q, q.page)
	if err != nil {
		q.Set.Clear()
		return 0, err
	}
	if !h.covers(off, n) {
		q.Set.Clear()
		q.length, err = v.plain(off, n)
		return q.length, err
	}
	q.length = min(n, h.start+h.length-off)
	q.seq = h.seq
	if err := v.readSet(q, &h); err != nil {
		return q.length, err
	}
	if q.length < h.length {
		first := (q.start - h.start) / attrs.BlockSize
		q.Set.Piece(int(first), int((q.length+attrs.BlockSize-1)/attrs.BlockSize))
	}
	return q.length, nil
}

// readMost reads what most requests are: without attributes and of one page, or just what was asked for with the same
// said as of the one before. It returns false for all others.
func (v *View) readMost(q *Request) (done bool, err error) {
	touching := true
	defer func() {
		if touching {
			err = hostile.Fault(recover())
		}
	}()
	s := &v.at(q.page).set
	seq, size := atomic.LoadUint32(&s.seq), atomic.LoadUint32(&s.setBytes)
	// As this is mostly so, it is one question.
	other := (atomic.LoadUint64(&s.start) ^ uint64(q.start)) | (uint64(atomic.LoadUint32(&s.length)) ^ uint64(q.length)) |
		uint64(atomic.LoadUint32(&s.first)^uint32(q.page)) | uint64(atomic.LoadUint32(&s.number))
	if seq == 0 {
		if done = uint64(q.start)%PageBytes+uint64(q.length) <= PageBytes; done {
			q.Set.Clear()
		}
	} else if last, n := q.Memo.sets.Last(); other|uint64(size^n|n>>31)|last.Other(s.body.short()) == 0 {
		done, q.seq = true, seq
		q.Memo.sets.Again(&q.Set)
	}
	touching = false
	return done, nil
}

// head is what the attribute slot of a page says of the request that has the page.
type head struct {
	seq           uint32
	first, number int
	setBytes      int
	start, length int64
}

// head reads the slot of a page: its head, each field once, and to q.body what it has of a set. Without a
// request, or with one that is impossible, the head is empty.
func (v *View) head(q *Request, page int) (h head, err error) {
	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
	s := &v.at(page).set
	h = head{
		seq: atomic.LoadUint32(&s.seq), first: int(atomic.LoadUint32(&s.first)),
		number: int(atomic.LoadUint32(&s.number)), setBytes: int(atomic.LoadUint32(&s.setBytes)),
		start: int64(atomic.LoadUint64(&s.start)), length: int64(atomic.LoadUint32(&s.length)),
	}
	if h.seq == 0 || !v.holds(h.start, h.length) || h.setBytes > attrs.MaxBytes {
		return head{}, nil
	}
	first, count := pagesOf(h.start, h.length)
	if h.first != first || page != first+h.number || h.number >= count ||
		h.setBytes > count*BodyBytes {
		return head{}, nil
	}
	n := min(h.setBytes-h.number*BodyBytes, BodyBytes)
	if n > 0 {
		copy(q.body[:], s.body[:n])
	}
	return h, nil
}

// covers says whether a piece of n bytes from byte off on begins within the request; one without
// data is it or is not.
func (h *head) covers(off, n int64) bool {
	if n == 0 || h.length == 0 {
		return h.seq != 0 && n == h.length && off == h.start
	}
	return h.seq != 0 && off >= h.start && off-h.start < h.length
}

// readSet decodes the set, which is gathered from the slots of the request's first pages. q.body has that of the
// piece's first page, which is not read again.
func (v *View) readSet(q *Request, h *head) error {
	var set []byte
	if h.first == q.page && h.setBytes <= BodyBytes {
		set = q.body[:h.setBytes:h.setBytes]
	} else {
		set = q.longer().set[:h.setBytes:h.setBytes]
		if err := v.gather(q, h, set); err != nil {
			q.Set.Clear()
			return err
		}
	}
	// What cannot be decoded is known to the set, and answered.
	switch {
	case h.setBytes == 0:
		q.Set.Clear()
	case q.Memo != nil:
		_ = q.Memo.sets.Decode(&q.Set, set)
	default:
		_ = q.Set.Decode(set)
	}
	return nil
}

// gather copies a set from the slots of the request's first pages.
func (v *View) gather(q *Request, h *head, set []byte) error {
	for i := 0; i*BodyBytes < h.setBytes; i++ {
		if h.first+i != q.page || i > 0 {
			o, err := v.head(q, h.first+i)
			if err != nil {
				return err
			}
			if o.seq != h.seq || o.start != h.start || o.setBytes != h.setBytes {
				h.setBytes = 0 // being changed
				return nil
			}
		}
		copy(set[i*BodyBytes:], q.body[:])
	}
	return nil
}

// plain is how many of n bytes belong to no request with attributes: up to the page of the next.
func (v *View) plain(off, n int64) (part int64, err error) {
	page, count := pagesOf(off, n)
	if count == 1 {
		return n, nil
	}
	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
	for i := 1; i < count; i++ {
		if atomic.LoadUint32(&v.at(page+i).set.seq) != 0 {
			return int64(page+i)*PageBytes - off, nil
		}
	}
	return n, nil
}

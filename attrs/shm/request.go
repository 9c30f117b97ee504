package shm

import (
	"runtime/debug"

	"ubcache/attrs"
)

// Request is a server's copy of what a client said with a request, or with one piece of it. It is
// used again for one request after the other; about 10 KiB.
type Request struct {
	// Set has the attributes. It refers to this Request, and is good until the next Read.
	Set attrs.Set
	// Results get the answers.
	Results attrs.Results

	start, length int64 // of the piece, in the data area
	seq           uint32
	again         bool // what the slot has is what was decoded last, and was not copied
	sets          attrs.SetDecoder
	// Set refers to the slot if it came in one, else to buf.
	slot [SlotBytes]byte
	buf  [attrs.MaxBytes]byte
	out  [attrs.MaxBytes]byte // of an answer that takes more than one slot
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
	q.start, q.length, q.seq = off, n, 0
	q.Set.Clear()
	if !v.holds(off, n) {
		return 0, ErrPlace
	}
	page := int(off / PageBytes)
	h, err := v.head(q, page)
	if err != nil {
		return 0, err
	}
	if !h.covers(off, n) {
		q.length, err = v.plain(off, n)
		return q.length, err
	}
	q.length = min(n, h.start+h.length-off)
	q.seq = h.seq
	q.Results.Clear()
	return q.length, v.readSet(q, &h, page)
}

// head is what the attribute slot of a page says of the request that has the page.
type head struct {
	seq           uint32
	first, number int
	setBytes      int
	start, length int64
}

// head copies the slot of a page, as far as it has anything, to q.slot and decodes its head. Without a
// request, or with one that is impossible, the head is empty.
func (v *View) head(q *Request, page int) (h head, err error) {
	defer guard(&err, debug.SetPanicOnFault(true))
	slot := v.mem[v.slot(page):][:SlotBytes]
	b := q.slot[:]
	q.again = false
	copy(b[:slotHeaderBytes], slot)
	h = head{
		seq: le.Uint32(b[slotSeq:]), first: int(le.Uint32(b[slotFirst:])),
		number: int(le.Uint32(b[slotNumber:])), setBytes: int(le.Uint32(b[slotSetBytes:])),
		start: int64(le.Uint64(b[slotStart:])), length: int64(le.Uint32(b[slotLength:])),
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
	if n <= 0 {
		return h, nil
	}
	body := slot[slotHeaderBytes:][:n]
	if q.again = n == h.setBytes && q.sets.Is(body); !q.again {
		copy(b[slotHeaderBytes:], body)
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

// readSet gathers the set from the slots of the request's first pages and narrows it to the piece.
// q.slot has that of the piece's first page, which is not read again.
func (v *View) readSet(q *Request, h *head, page int) error {
	set := q.buf[:h.setBytes:h.setBytes]
	if h.first == page && h.setBytes <= BodyBytes {
		set = q.slot[slotHeaderBytes:][:h.setBytes:h.setBytes]
	} else if err := v.gather(q, h, page); err != nil {
		return err
	}
	if h.setBytes == 0 {
		return nil
	}
	if q.again {
		q.sets.Again(&q.Set)
	} else {
		// What cannot be decoded is known to the set, and answered.
		_ = q.sets.Decode(&q.Set, set)
	}
	if q.length < h.length {
		first := (q.start - h.start) / attrs.BlockSize
		q.Set.Piece(int(first), int((q.length+attrs.BlockSize-1)/attrs.BlockSize))
	}
	return nil
}

// gather copies a set to q.buf from the slots of the request's first pages.
func (v *View) gather(q *Request, h *head, page int) error {
	for i := 0; i*BodyBytes < h.setBytes; i++ {
		if h.first+i != page || i > 0 {
			o, err := v.head(q, h.first+i)
			if err != nil {
				return err
			}
			if o.seq != h.seq || o.start != h.start || o.setBytes != h.setBytes {
				h.setBytes = 0 // being changed
				return nil
			}
		}
		copy(q.buf[i*BodyBytes:h.setBytes], q.slot[slotHeaderBytes:])
	}
	return nil
}

// plain is how many of n bytes belong to no request with attributes: up to the page of the next.
func (v *View) plain(off, n int64) (part int64, err error) {
	page, count := pagesOf(off, n)
	if count == 1 {
		return n, nil
	}
	defer guard(&err, debug.SetPanicOnFault(true))
	for i := 1; i < count; i++ {
		if v.load(v.slot(page+i)+slotSeq) != 0 {
			return int64(page+i)*PageBytes - off, nil
		}
	}
	return n, nil
}

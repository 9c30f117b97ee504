package shm

import (
	"errors"
	"runtime/debug"
	"sync/atomic"

	"ubcache/attrs"
)

// ErrNoRoom: other devices have answered already, in all places that there are. The client learns
// that an answer is missing.
var ErrNoRoom = errors.New("no answer slot is free")

// Answer writes q.Results, of the device with that number (which is not 0), to where the client looks
// for them. It is called before the request is completed; of a request without attributes it does
// nothing.
//
// Checksums that do not fit are left out and answered so. When another server has answered the same
// piece each has a slot of its own; a server that does a request once more replaces its answer.
func (v *View) Answer(q *Request, device uint32) error {
	if q.seq == 0 {
		return nil
	}
	first, count := pagesOf(q.start, q.length)
	if q.Results.Plain() || q.Results.EncodedSize() <= BodyBytes {
		return v.put(q, device, first, 0, whole)
	}
	size, err := q.Results.Encode(q.out[:min(len(q.out), count*BodyBytes)])
	if errors.Is(err, attrs.ErrSpace) {
		return v.without(q, device, first)
	}
	if err != nil {
		return err
	}
	// The last part first: once the first one is there the answer counts.
	chunks := (size + BodyBytes - 1) / BodyBytes
	for i := chunks - 1; i >= 0; i-- {
		err := v.put(q, device, first+i, i, size)
		if i > 0 && errors.Is(err, ErrNoRoom) {
			return v.without(q, device, first)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// whole is the size of an answer that fits one slot, and is written there at once.
const whole = 0

// without answers without checksums, which fits one slot.
func (v *View) without(q *Request, device uint32, page int) error {
	q.Results.DropChecksums(attrs.ReasonSpace)
	return v.put(q, device, page, 0, whole)
}

// put writes one part of an answer to a slot of a page.
func (v *View) put(q *Request, device uint32, page, chunk, size int) (err error) {
	if q.Results.Several() {
		return attrs.ErrSeveral
	}
	defer guard(&err, debug.SetPanicOnFault(true))
	at := v.take(q, device, page, chunk)
	if at == 0 {
		if chunk == 0 {
			atomic.AddUint32(v.word(v.slot(page)+slotOverflow), 1)
		}
		return ErrNoRoom
	}
	b := v.mem[at : at+SlotBytes]
	if size != whole {
		copy(b[slotHeaderBytes:], q.out[chunk*BodyBytes:size])
	} else if size, err = q.Results.Encode(b[slotHeaderBytes:]); err != nil {
		return err
	}
	le.PutUint32(b[answerBytes:], uint32(size))
	le.PutUint64(b[answerStart:], uint64(q.start))
	le.PutUint32(b[answerLength:], uint32(q.length))
	le.PutUint32(b[answerChunk:], uint32(chunk))
	v.store(at+answerDone, q.seq)
	return nil
}

// take finds the slot that this device has used for this part before, or claims a free one. A claim
// can only succeed if the slots are still those of this request: the client may have given it up and
// gone on. It returns 0 if there is none.
func (v *View) take(q *Request, device uint32, page, chunk int) int64 {
	mine := claimOf(q.seq, device)
	for k := range Answers {
		at := v.answer(page, k)
		b := v.mem[at : at+slotHeaderBytes]
		if atomic.LoadUint64(v.long(at+answerClaim)) == mine && v.load(at+answerDone) == q.seq &&
			le.Uint64(b[answerStart:]) == uint64(q.start) &&
			le.Uint32(b[answerChunk:]) == uint32(chunk) {
			return at
		}
	}
	for k := range Answers {
		at := v.answer(page, k)
		if atomic.CompareAndSwapUint64(v.long(at+answerClaim), claimOf(q.seq, 0), mine) {
			return at
		}
	}
	return 0
}

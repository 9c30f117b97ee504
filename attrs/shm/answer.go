package shm

import (
	"errors"
	"runtime/debug"
	"sync/atomic"

	"ubcache/attrs"
	"ubcache/attrs/shm/hostile"
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
	if q.seq == 0 || answerAgain([]*Request{q}, device) == 1 {
		return nil
	}
	if q.Results.Plain() || q.Results.EncodedSize() <= BodyBytes {
		return v.put(q, device, q.page, 0, whole)
	}
	first, count := pagesOf(q.start, q.length)
	out := &q.longer().answer
	size, err := q.Results.Encode(out[:min(len(out), count*BodyBytes)])
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

// AnswerAll is [View.Answer] for one request after the other, and faster for several. What cannot be answered is not.
func AnswerAll(list []*Request, device uint32) {
	for len(list) > 0 {
		if list = list[answerAgain(list, device):]; len(list) > 0 {
			_ = list[0].view.Answer(list[0], device)
			list = list[1:]
		}
	}
}

// answerAgain answers requests that are answered as one before them was, to the first slot, as nearly all are. It returns
// how many it has answered, before the first that is another one.
func answerAgain(list []*Request, device uint32) (n int) {
	was, touching := debug.SetPanicOnFault(true), true
	defer func() {
		if debug.SetPanicOnFault(was); touching {
			_ = hostile.Fault(recover())
		}
	}()
	for n < len(list) {
		q := list[n]
		if q.seq == 0 || q.Memo == nil {
			break
		}
		body, size := q.Memo.results.Short(&q.Results)
		if size == attrs.NoShort {
			break
		}
		a := &q.view.at(q.page).answers[0]
		if !atomic.CompareAndSwapUint64(&a.claim, claimOf(q.seq, 0), claimOf(q.seq, device)) {
			break
		}
		body.CopyTo(a.body[:])
		a.finish(q, 0, int(size))
		n++
	}
	touching = false
	return n
}

// finish says whose the answer is that the slot has, and that it is there.
func (a *answerSlot) finish(q *Request, chunk, size int) {
	a.bytes, a.start = uint32(size), uint64(q.start)
	a.length, a.chunk = uint32(q.length), uint32(chunk)
	atomic.StoreUint32(&a.done, q.seq)
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
	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
	p := v.at(page)
	a := p.take(q, device, chunk)
	if a == nil {
		if chunk == 0 {
			atomic.AddUint32(&p.set.overflow, 1)
		}
		return ErrNoRoom
	}
	if size != whole {
		copy(a.body[:], q.long.answer[chunk*BodyBytes:size])
	} else if size, err = q.encode(a.body[:]); err != nil {
		return err
	}
	a.finish(q, chunk, size)
	return nil
}

func (q *Request) encode(b []byte) (int, error) {
	if q.Memo == nil {
		return q.Results.Encode(b)
	}
	return q.Memo.results.Encode(&q.Results, b)
}

// take finds the slot that this device has used for this part before, or claims a free one. Slots are claimed in
// their order and stay so, so that one it has used comes before any that is free. A claim can only succeed if
// the slots are still those of this request: the client may have given it up and gone on. It returns nil if
// there is none.
func (p *pageSlots) take(q *Request, device uint32, chunk int) *answerSlot {
	mine, free := claimOf(q.seq, device), claimOf(q.seq, 0)
	for k := range p.answers {
		a := &p.answers[k]
		switch claim := atomic.LoadUint64(&a.claim); {
		case claim == free:
			if atomic.CompareAndSwapUint64(&a.claim, free, mine) {
				return a
			}
		case claim == mine && atomic.LoadUint32(&a.done) == q.seq && a.start == uint64(q.start) &&
			a.chunk == uint32(chunk):
			return a
		}
	}
	return nil
}

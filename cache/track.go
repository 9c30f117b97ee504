package cache

import (
	"fmt"
	"math/bits"

	"ubcache/attrs"
)

// track is what the engine keeps of a request whose attributes need more than a decision: clocks,
// a deadline, checksums, a place for answers that nobody wants. It comes from the lane's pool,
// which grows with such requests in flight, and goes back after Driver.Finish.
type track struct {
	answers  attrs.Results // of a request without Results
	watch    watch
	deadline deadline
	sum      sumCheck
	traced   bool
	next     *track

	// sums are the checksums to return; of no meaning beyond sum.seen blocks.
	sums [attrs.MaxBlocks * 8]byte
}

// tracked is the request's track, which it gets if it has none.
func (l *Lane) tracked(r *Request) *track {
	if r.track != nil {
		return r.track
	}
	t := l.freeTracks
	if t == nil {
		t = &track{}
	} else {
		l.freeTracks = t.next
	}
	t.watch, t.deadline, t.sum, t.traced, t.next = watch{}, deadline{}, sumCheck{}, false, nil
	r.track = t
	return t
}

// observed are the attributes that decideObserved answers.
const observed = 1<<attrs.IDChecksum | 1<<attrs.IDDeadline | 1<<attrs.IDTiming | 1<<attrs.IDTrace

// decideObserved promises what the attributes ask that watch a request more than they direct it. The
// promises are kept, or taken back, by answer.
func (l *Lane) decideObserved(r *Request) {
	for left := r.Attrs.Came() & observed; left != 0; left &= left - 1 {
		id := attrs.ID(bits.TrailingZeros16(left))
		if !r.res.Pending(r.Attrs, id) {
			continue
		}
		if id == attrs.IDChecksum {
			l.decideChecksum(r)
			continue
		}
		t := l.tracked(r)
		switch id {
		case attrs.IDDeadline:
			l.decideDeadline(r, t)
		case attrs.IDTrace:
			t.traced, t.watch.on = true, true
		case attrs.IDTiming:
			t.watch.on = true
		}
		r.res.Handle(id)
	}
}

// accept decides on the way of a request and compares the checksums of what it writes. An error is
// for a request that must fail, and has had no effect.
func (l *Lane) accept(r *Request) error {
	if errno := l.decide(r); errno != 0 {
		return fmt.Errorf("a required attribute is not handled: %w", errno)
	}
	if t := r.track; t != nil && t.sum.Algorithm != 0 && r.Op == ReqWrite && !t.verifyWrite(r) {
		return ErrMismatch
	}
	return nil
}

// finish gives a request back to the driver; there is no other way. What the answers refer to is
// good until Driver.Finish returns.
func (l *Lane) finish(r *Request) {
	l.leave(r)
	t := r.track
	switch {
	case r.res == nil:
	case t == nil && l.attrs.known(r):
		r.answerOrigin()
		l.attrs.last.kind.count(r, l.d.Now()-r.started)
	default:
		l.answer(r, t)
	}
	l.d.Finish(r)
	if t != nil {
		t.next = l.freeTracks
		l.freeTracks = t
	}
}

// answer completes the answers when it is known how the request went, and counts them.
func (l *Lane) answer(r *Request, t *track) {
	now := l.d.Now()
	if t != nil {
		if t.watch.on || t.deadline.at != 0 {
			now = l.d.Clock()
		}
		t.answerSums(r)
		t.answerDeadline(r, now)
		if r.res.For(attrs.IDTiming).Status == attrs.Handled {
			r.res.SetTiming(t.watch.timing(r.started, now))
		}
	}
	r.answerOrigin()
	l.attrs.count(r, now-r.started)
	if t != nil && t.traced {
		l.traces.add(r, t.watch.timing(r.started, now))
	}
}

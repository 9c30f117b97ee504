package cache

import (
	"fmt"
	"time"

	"ubcache/attrs"
)

// ErrLate is the error of a request that was given up at its deadline, without effect.
var ErrLate = fmt.Errorf("the deadline was over before the I/O could begin: %w", attrs.ErrnoDeadline)

// deadline is when a request is to be done.
//
// No timer watches it: it is looked at whenever a part of the request is about to start its I/O,
// after it has waited for locks, for room in the journal, or for its turn. From then on devices
// move the request's memory, or their own, and the request is answered when they are done, late if
// need be. So a read fails if any part of it would begin too late, or has hardly a chance to be done
// in time, and a write only as a whole, when it begins too late.
type deadline struct {
	at    int64 // on Driver.Clock; 0 if there is none
	begun bool  // I/O that changes something has begun
	late  bool  // given up
}

// decideDeadline starts the time, and with the lane's first deadline the measuring of its devices.
func (l *Lane) decideDeadline(r *Request, t *track) {
	t.deadline.at = r.started + int64(r.Attrs.Deadline())
	if l.latency == nil {
		l.latency = &latencies{}
	}
}

// timed reports whether the request has a deadline.
func (r *Request) timed() bool { return r.track != nil && r.track.deadline.at != 0 }

// overdue reports that a part of the request must not start, for the deadline is over.
func (l *Lane) overdue(r *Request) bool {
	if !r.timed() || r.track.deadline.begun {
		return false
	}
	d := &r.track.deadline
	d.late = d.late || l.d.Clock() >= d.at
	return d.late
}

// tooLate is overdue for a change that begins now if it does not say so.
func (l *Lane) tooLate(r *Request) bool {
	if r.track == nil {
		return false
	}
	if l.overdue(r) {
		return true
	}
	r.track.deadline.begun = true
	return false
}

func (t *track) answerDeadline(r *Request, now int64) {
	switch d := &t.deadline; {
	case d.at == 0:
	case d.late:
		if !t.sum.mismatch {
			r.Err = ErrLate
		}
		r.res.Answer(attrs.IDDeadline, attrs.Handled, attrs.ReasonLate)
	case now >= d.at && r.Err == nil:
		r.res.Answer(attrs.IDDeadline, attrs.Handled, attrs.ReasonOverdue)
	}
}

// latencies are what the lane has seen of its devices' reads; it measures while there are deadlines.
type latencies [MaxBackings + 1]latency

type latency struct {
	mean   int64 // moving, ns; of reads that are not too long
	n      int   // how many reads it is of
	at     int64 // when the newest sample came
	flying int32
	since  int64 // nothing has come back since then, if flying
}

const (
	// sampleBytes is the longest read that is measured: longer ones say little about others.
	sampleBytes = 64 << 10
	// sampleAge is how long a mean is believed.
	sampleAge = int64(time.Second)
	// sampleMin is of how many reads a mean has to be for others to be given up for it.
	sampleMin = 8
)

func (t *latencies) begin(op *Op, now int64) {
	if op.Kind != OpRead || op.Len > sampleBytes {
		return
	}
	op.begun = now
	d := &t[op.Dev]
	if d.flying++; d.flying == 1 {
		d.since = now
	}
}

func (t *latencies) end(op *Op, now int64, err error) {
	d := &t[op.Dev]
	d.flying--
	d.since = now
	switch took := now - op.begun; {
	case err != nil:
	case d.at == 0 || now-d.at > sampleAge:
		d.mean, d.n, d.at = took, 1, now
	default:
		d.mean, d.n, d.at = d.mean+(took-d.mean)/8, d.n+1, now
	}
}

// expect is how long a read may take that begins now, judging by at least so many; 0 if nothing is
// known. A device that is silent for longer than it usually takes may go on to be.
func (t *latencies) expect(dev BackingID, now int64, samples int) (ns int64) {
	d := &t[dev]
	if d.n >= samples && now-d.at <= sampleAge {
		ns = d.mean
	}
	if d.flying > 0 {
		ns = max(ns, now-d.since)
	}
	return ns
}

// avoidsSSD reports whether a read with a deadline should take clean blocks from the backing device: the SSD will
// not have them in time, and the backing device may.
func (l *Lane) avoidsSSD(r *Request) bool {
	now := l.d.Now()
	left := r.track.deadline.at - now
	return l.latency.expect(SSD, now, 1) > left && l.latency.expect(r.b.id, now, 1) < left
}

// hopeless reports that a read with a deadline had better fail at once: a device that it needs is
// expected to take more than twice the time that is left. As what was measured is believed for
// sampleAge only, a few reads now and then find out whether that is so still.
func (l *Lane) hopeless(r *Request, ssd, backing bool) bool {
	d := &r.track.deadline
	now := l.d.Now()
	left := d.at - now
	late := func(dev BackingID) bool { return l.latency.expect(dev, now, sampleMin) > 2*left }
	d.late = d.late || ssd && late(SSD) || backing && late(r.b.id)
	return d.late
}

// giveUp fails a read that has started nothing.
func (p *readPiece) giveUp(l *Lane) {
	p.fail(ErrLate)
	p.finish(l, 0)
}

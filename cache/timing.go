package cache

import (
	"time"

	"ubcache/attrs"
)

// watch measures where a request spends its time: per device, the time in which at least one
// operation of it is under way, which is not the sum of the operations' times.
//
// It reads the clock for each operation (Driver.Clock): the one of the loop's round would put all that
// the round does, such as the checksums of other requests, on one device or the other.
type watch struct {
	on           bool
	first        int64 // when the first I/O began, 0 if none has
	ssd, backing stopwatch
}

// stopwatch runs while something is under way.
type stopwatch struct {
	flying int32
	since  int64
	total  int64
}

func (w *stopwatch) begin(now int64) {
	if w.flying++; w.flying == 1 {
		w.since = now
	}
}

func (w *stopwatch) end(now int64) {
	if w.flying--; w.flying == 0 {
		w.total += now - w.since
	}
}

func (w *watch) device(dev BackingID) *stopwatch {
	if dev == SSD {
		return &w.ssd
	}
	return &w.backing
}

func (w *watch) begin(dev BackingID, now int64) {
	if w.first == 0 {
		w.first = now
	}
	w.device(dev).begin(now)
}

// timing is the outcome for a request that took from started to now.
func (w *watch) timing(started, now int64) attrs.Timing {
	queued := now
	if w.first != 0 {
		queued = w.first
	}
	return attrs.Timing{
		Queued: time.Duration(queued - started), SSD: time.Duration(w.ssd.total),
		Backing: time.Duration(w.backing.total), Total: time.Duration(now - started),
	}
}

// commitBegins and commitEnds are around a request's wait for a commit of the journal, which counts as
// time at the SSD: the commit is shared, so that none of its operations is the request's own.
func (l *Lane) commitBegins(r *Request) {
	if t := r.track; t != nil && t.watch.on {
		t.watch.begin(SSD, l.d.Clock())
	}
}

func (l *Lane) commitEnds(r *Request) {
	if t := r.track; t != nil && t.watch.on {
		t.watch.ssd.end(l.d.Clock())
	}
}

// issue hands an operation to the driver, on account of a request if it is for one.
func (l *Lane) issue(op *Op, r *Request) {
	if r != nil && r.track != nil {
		l.attribute(op, r.track)
	}
	if op.Dev != SSD {
		op.owner = r
		if !l.reach(op) {
			return
		}
	}
	if l.latency != nil {
		l.latency.begin(op, l.d.Now())
	}
	l.send(op)
}

func (l *Lane) attribute(op *Op, t *track) {
	if t.watch.on {
		op.track = t
		t.watch.begin(op.Dev, l.d.Clock())
	}
}

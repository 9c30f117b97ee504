package cache

import "sync/atomic"

// onSSD lists a lane's operations on the SSD that are under way, in the order in which they were
// submitted. It belongs to the lane's thread; the background reads oldest.
type onSSD struct {
	head, tail *Op
	oldest     atomic.Int64 // Driver.Now when head was submitted; 0 if there is none
}

func (q *onSSD) add(op *Op, now int64) {
	op.at, op.prev, op.next = now, q.tail, nil
	if q.tail == nil {
		q.head = op
		q.publish()
	} else {
		q.tail.next = op
	}
	q.tail = op
}

func (q *onSSD) remove(op *Op) {
	if op.next == nil {
		q.tail = op.prev
	} else {
		op.next.prev = op.prev
	}
	if op.prev == nil {
		q.head = op.next
		q.publish()
	} else {
		op.prev.next = op.next
	}
	op.prev, op.next = nil, nil
}

// publish tells the background of a new head. Operations of one round have the same time, so that
// most of them cost it nothing.
func (q *onSSD) publish() {
	at := int64(0)
	if q.head != nil {
		at = q.head.at
	}
	if q.oldest.Load() != at {
		q.oldest.Store(at)
	}
}

// send hands an operation to the driver. A lost SSD gets none: the operation fails soon, as the
// device would have made it fail.
func (l *Lane) send(op *Op) {
	if op.Dev != SSD {
		l.d.Submit(op)
		return
	}
	if l.c.lost() && !op.probe {
		op.next, l.refused = l.refused, op
		l.d.Wake()
		return
	}
	l.ssdOps.add(op, l.d.Now())
	l.d.Submit(op)
}

// refuseOps ends the operations that were not sent, but for those that come of that.
func (l *Lane) refuseOps() {
	list := l.refused
	l.refused = nil
	for op := list; op != nil; op = list {
		list, op.next = op.next, nil
		l.conclude(op, ErrSSDLost)
	}
}

package cache

// runner is a state machine that continues on its lane.
type runner interface {
	run(l *Lane, err error)
}

// waiter makes a state machine continue on its lane when somebody, on any lane, wakes it. It
// lives in the machine, so waiting allocates nothing; it can be in one queue at a time.
type waiter struct {
	lane  *Lane
	owner runner
	next  *waiter
	lsn   LSN
	err   error
}

// wake lets the owner run soon, on its own lane. Any thread may call it.
func (w *waiter) wake(err error) {
	w.err = err
	w.lane.post(w)
}

// waitList is a queue of waiters, in order.
type waitList struct{ head, tail *waiter }

func (q *waitList) push(w *waiter) {
	w.next = nil
	if q.head == nil {
		q.head = w
	} else {
		q.tail.next = w
	}
	q.tail = w
}

func (q *waitList) pop() *waiter {
	w := q.head
	if w != nil {
		if q.head = w.next; q.head == nil {
			q.tail = nil
		}
		w.next = nil
	}
	return w
}

func (q *waitList) takeAll() waitList {
	all := *q
	*q = waitList{}
	return all
}

func (q *waitList) join(o waitList) {
	if o.head == nil {
		return
	}
	if q.head == nil {
		*q = o
		return
	}
	q.tail.next, q.tail = o.head, o.tail
}

// takeDurable takes those who wait for a record before upTo.
func (q *waitList) takeDurable(upTo LSN) (done waitList) {
	rest := waitList{}
	for w := q.pop(); w != nil; w = q.pop() {
		if w.lsn < upTo {
			done.push(w)
		} else {
			rest.push(w)
		}
	}
	*q = rest
	return done
}

func (q *waitList) wakeAll(err error) {
	for w := q.pop(); w != nil; w = q.pop() {
		w.wake(err)
	}
}

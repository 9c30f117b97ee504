package client

import (
	"errors"
	"sync"

	"ubcache/attrs"
)

// async does the requests of Submit on the channels that go through the kernel, Shared and Plain. Those
// whose data lies in the region, and flushes, are done by one thread with an io_uring; what is left
// by a few workers with system calls. All that is started for the first request that needs it, and
// lives until Close: for a request nothing is started and nothing allocated.
type async struct {
	d     *Device
	depth int
	start sync.Once // of the thread
	// thread is nil where io_uring is not to be had, as in many containers.
	thread  *thread
	workers sync.WaitGroup
	room    sync.Cond // for one more request; of mu
	work    sync.Cond // for workers; of mu

	mu struct {
		sync.Mutex
		under   int  // requests under way
		rings   list // for the thread
		calls   list // for the workers
		asleep  bool // the thread is to be woken
		closing bool
		started int // workers
		idle    int // of them
	}
}

// maxWorkers bounds the workers, each of which is a thread while it waits in the kernel.
const maxWorkers = 32

func (a *async) init(d *Device) {
	a.d, a.depth = d, d.o.Depth
	a.room.L, a.work.L = &a.mu, &a.mu
}

// list is requests in the order in which they came, chained by their field next.
type list struct {
	first, last *Op
	n           int
}

func (l *list) push(op *Op) {
	op.next = nil
	if l.first == nil {
		l.first = op
	} else {
		l.last.next = op
	}
	l.last = op
	l.n++
}

func (l *list) pop() *Op {
	op := l.first
	if op != nil {
		l.first, op.next = op.next, nil
		l.n--
	}
	return op
}

// Submit starts a request and returns; Op.Wait waits for its end. If as many as Options.Depth are
// under way it waits for one of them. Submit fails only if the device is closed, or the request is
// under way already.
func (d *Device) Submit(op *Op) error {
	if op.d != nil {
		return errors.New("submit: the request is under way (Wait ends it)")
	}
	if err := d.enter(); err != nil {
		return err
	}
	op.N, op.Err, op.Results = 0, nil, attrs.Results{}
	op.d = d
	op.over.Add(1)
	if d.broken() {
		d.revive()
	}
	d.use.RLock()
	switch {
	case !d.prepare(op):
		d.use.RUnlock()
		op.over.Done()
	case d.ring != nil:
		d.ring.submit(op)
	default:
		d.async.submit(op)
	}
	return nil
}

// Wait waits for the end of a request that was submitted; its fields then have the outcome, and it may
// be used again. One goroutine may wait for a request.
func (op *Op) Wait() error {
	d := op.d
	if d == nil {
		return errors.New("wait: the request was not submitted")
	}
	op.over.Wait()
	d.finish(op)
	op.d = nil
	d.life.busy.Done()
	return op.Err
}

// submit hands a request to the thread or to a worker when there is room for it. d.use is read-locked, and
// unlocked when the request is done.
func (a *async) submit(op *Op) {
	rings := a.byRing(op)
	if rings {
		a.start.Do(a.startThread)
		rings = a.thread != nil
	}
	a.mu.Lock()
	for a.mu.under == a.depth {
		a.room.Wait()
	}
	a.mu.under++
	wake := false
	if rings {
		a.mu.rings.push(op)
		wake, a.mu.asleep = a.mu.asleep, false
	} else {
		a.mu.calls.push(op)
		if a.mu.idle < a.mu.calls.n && a.mu.started < min(maxWorkers, a.depth) {
			a.mu.started++
			a.workers.Go(a.worker)
		}
	}
	a.mu.Unlock()
	if wake {
		a.thread.wake()
	} else if !rings {
		a.work.Signal()
	}
}

// byRing says whether the thread can do the request. The kernel may look at the memory of a submission at
// any time, so that must not be the Go heap's; and what changes no data is not the same on all kernels.
func (a *async) byRing(op *Op) bool {
	if op.Kind == Flush {
		return true
	}
	if !op.data() {
		return false
	}
	_, ok := a.d.region.Offset(op.memory())
	return ok
}

// worker does requests by system calls until the end.
func (a *async) worker() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		op := a.mu.calls.pop()
		if op == nil {
			if a.mu.closing {
				return
			}
			a.mu.idle++
			a.work.Wait()
			a.mu.idle--
			continue
		}
		a.mu.Unlock()
		a.d.transfer(op)
		a.ended(op)
		a.mu.Lock()
	}
}

// ended ends a request, which is not touched after it.
func (a *async) ended(op *Op) {
	a.d.use.RUnlock()
	a.mu.Lock()
	a.mu.under--
	a.mu.Unlock()
	a.room.Signal()
	op.over.Done()
}

// close ends the thread and the workers; nothing is under way.
func (a *async) close() {
	a.mu.Lock()
	a.mu.closing = true
	a.mu.Unlock()
	a.work.Broadcast()
	a.workers.Wait()
	a.start.Do(func() {}) // none is started any more
	if a.thread != nil {
		a.thread.wake()
		<-a.thread.over
	}
}

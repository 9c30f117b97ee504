package ublk

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
	"ubcache/ublk/internal/sys"
)

// serve is the body of a queue's thread: set up, loop, tear down. The thread is locked and ends
// with it, taking its affinity and its IO_FLUSHER state along. It reports to ready twice: when the
// handler has started, and, after fetch has said that all queues have come that far, when the
// driver has all tags. Before that the device is as it was: Linux 6.12 does not allow a second
// recovery after one that got further.
func (q *Queue) serve(charFD int, o *Options, info *sys.DevInfo, fetch <-chan bool,
	ready chan<- error,
) error {
	runtime.LockOSThread()
	// The thread's own allocations must not start writeback to a device that it serves itself.
	// Without CAP_SYS_RESOURCE there is no way to say so.
	_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
	err := q.init(charFD, o, info)
	if err == nil {
		q.aff.init(q, o.Affinity)
		err = q.h.Start(q)
	}
	ready <- q.startError(err)
	if !<-fetch || err != nil {
		if err == nil {
			return q.finish()
		}
		q.release(q.drain())
		return q.startError(err)
	}
	err = q.fetchAll(charFD, info)
	ready <- q.startError(err)
	if err == nil {
		err = q.loop()
	}
	return errors.Join(err, q.finish())
}

func (q *Queue) startError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("ublk%d: start queue %d: %w", q.dev.id, q.id, err)
}

// fetchAll asks the driver for requests on all tags. The driver answers a fetch that it refuses at
// once, so that START_DEV, which waits for all tags, is sent only if it can succeed.
func (q *Queue) fetchAll(charFD int, info *sys.DevInfo) (err error) {
	if q.fake == nil {
		q.descs, err = sys.MapDescriptors(charFD, q.id, q.depth, descSize(info), os.Getpagesize())
		if err == unix.EINVAL && q.dev.recover {
			return fmt.Errorf("map descriptors: %w (another server began to recover this device "+
				"and died; this kernel allows one attempt: delete the device)", err)
		}
		if err != nil {
			return fmt.Errorf("map descriptors: %w", err)
		}
	}
	q.armWake()
	for i := range q.reqs {
		q.reqs[i].state = tagFetched
		q.fetched++
		q.command(sys.IOFetchReq, uint16(i), 0, q.reqs[i].addr, kindTag)
	}
	for q.ring.Pending() > 0 {
		if err := q.ring.Submit(); err != nil {
			return err
		}
	}
	if q.ring.Ready() > 0 {
		q.reap()
	}
	return q.startErr
}

func (q *Queue) armWake() {
	s := q.ring.NextSQE()
	// Multishot polls are edge-triggered: each write to the eventfd completes once, unread.
	s.PrepPollAdd(uring.FD(q.wakeFD), unix.POLLIN, true)
	s.UserData = ownUserData | kindWake<<kindShift
}

// loop serves until the driver has given back all tags.
func (q *Queue) loop() error {
	idle := 0
	for {
		if q.pending.Load() != 0 && q.pending.Swap(0) != 0 {
			q.guard(q.h.Woken)
		}
		if q.killed.Load() || q.aborted == q.depth {
			return nil
		}
		timeout := time.Duration(0)
		if q.aborted > 0 && q.owned == 0 {
			// After STOP_DEV the remaining tags come at once. After QUIESCE_DEV those that were
			// with the server at that time stay fetched for ever: nothing will come on them.
			if q.quiesced.Load() && idle > 0 || idle > quiesceRounds {
				return nil
			}
			timeout = quiesceRound
		}
		err := q.round(timeout)
		switch {
		case errors.Is(err, uring.ErrTimeout):
			idle++
		case err != nil:
			q.fatal(err)
			return err
		default:
			idle = 0
		}
		q.reap()
	}
}

const (
	quiesceRound  = 10 * time.Millisecond
	quiesceRounds = 50
)

// round submits and waits for at least one completion.
func (q *Queue) round(timeout time.Duration) error {
	q.guard(q.h.BeforeWait)
	q.sleeping.Store(1)
	n := uint32(1)
	if q.pending.Load() != 0 {
		n = 0
	}
	err := q.ring.SubmitAndWait(n, timeout)
	q.sleeping.Store(0)
	return err
}

// reap delivers the completions that are there. A panic in Handle costs one request, and the rest
// is delivered in another pass.
func (q *Queue) reap() {
	for !q.reapSome() {
		continue
	}
}

func (q *Queue) reapSome() (done bool) {
	defer q.recovered()
	for n := q.ring.Ready(); n > 0; n-- {
		c := q.ring.Peek()
		if c == nil {
			break
		}
		userData, res, flags := c.UserData, c.Res, c.Flags
		q.ring.Advance(1)
		if userData&ownUserData == 0 {
			if flags&uring.CQEMore == 0 {
				q.own--
			}
			q.h.Completion(q, userData, res, flags)
			continue
		}
		q.driverEvent(userData, res, flags)
	}
	return true
}

// recovered turns a panic in Handle into EIO for that request. A panic anywhere else leaves unknown
// requests unanswered, which would hang for ever, so it is fatal.
func (q *Queue) recovered() {
	p := recover()
	if p == nil {
		return
	}
	err := fmt.Errorf("ublk%d: queue %d: panic: %v\n%s", q.dev.id, q.id, p, debug.Stack())
	tag := q.current
	q.current = -1
	if tag < 0 {
		q.fatal(err)
		return
	}
	if q.reqs[tag].state == tagOwned {
		q.Complete(uint16(tag), -int32(unix.EIO))
	}
	q.dev.onError(err)
}

// guard runs a hook of the handler whose panic is fatal.
func (q *Queue) guard(hook func(*Queue)) {
	defer q.recovered()
	hook(q)
}

// fatal reports that the queue cannot go on. It returns only if Options.OnFatal does.
func (q *Queue) fatal(err error) {
	q.killed.Store(true)
	q.dev.onFatal(err)
}

// driverEvent handles a completion of this package's own submissions.
func (q *Queue) driverEvent(userData uint64, res int32, flags uint32) {
	tag := uint16(userData)
	switch userData >> kindShift & 0xff {
	case kindWake:
		if flags&uring.CQEMore == 0 && q.wakeFD >= 0 && !q.stopped() {
			q.armWake()
		}
	case kindTag:
		q.tagEvent(&q.reqs[tag], res)
	case kindBuffer:
		q.bufferEvent(&q.reqs[tag], res)
	case kindCopyOut:
		q.copiedOut(&q.reqs[tag], res)
	case kindCopyIn:
		q.copyInFailed(&q.reqs[tag], res)
	}
}

func (q *Queue) stopped() bool { return q.aborted == q.depth || q.killed.Load() }

// tagEvent handles the end of a fetch: a request, or the end.
func (q *Queue) tagEvent(r *Request, res int32) {
	if r.state != tagFetched {
		panic(fmt.Sprintf("ublk: queue %d tag %d: the driver completed a fetch it did not have",
			q.id, r.Tag))
	}
	q.fetched--
	if res != sys.ResOK {
		r.state = tagIdle
		q.aborted++
		if res != sys.ResAbort && res != -int32(unix.ECANCELED) {
			q.fetchFailed(r, res)
		}
		return
	}
	r.load(q.descs.At(r.Tag))
	q.owned++
	q.aff.arrived(r)
	if r.Flags&sys.IONeedRegBuf != 0 {
		r.Flags &^= sys.IONeedRegBuf
		r.state = tagRegistering
		q.command(sys.IORegisterBuf, r.Tag, 0, uint64(r.BufIndex), kindBuffer)
		return
	}
	q.handle(r)
}

// handle gives a request to the handler, in mode RingCopy after a write's data has been copied.
func (q *Queue) handle(r *Request) {
	if q.mode == RingCopy && r.Op == OpWrite && r.Flags&InShared == 0 {
		q.copyOut(r)
		return
	}
	q.deliver(r)
}

func (q *Queue) deliver(r *Request) {
	r.state = tagOwned
	if q.mode.buffered() && r.HasData() && r.Flags&InShared == 0 {
		r.Data = q.Buffer(r)
	}
	q.current = int(r.Tag)
	q.h.Handle(q, r)
	q.current = -1
}

// bufferEvent handles the registration of a request's buffer by command, after which the request
// goes its usual way.
func (q *Queue) bufferEvent(r *Request, res int32) {
	if res < 0 {
		r.state = tagOwned
		q.Complete(r.Tag, -int32(unix.EIO))
		q.dev.onError(fmt.Errorf("ublk%d: queue %d: register buffer of tag %d: %w", q.dev.id, q.id,
			r.Tag, unix.Errno(-res)))
		return
	}
	r.manual = true
	q.handle(r)
}

// fetchFailed: a refused FETCH fails the start. A refused COMMIT leaves a request unanswered, and
// there is no second way to answer it.
func (q *Queue) fetchFailed(r *Request, res int32) {
	err := fmt.Errorf("ublk%d: queue %d: fetch tag %d: %w", q.dev.id, q.id, r.Tag, unix.Errno(-res))
	if !q.dev.live.Load() {
		q.startErr = errors.Join(q.startErr, err)
		return
	}
	q.fatal(err)
}

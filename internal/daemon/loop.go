package daemon

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm/hostile"
	"ubcache/cache"
	"ubcache/internal/uring"
)

// loop is a lane with a thread and a ring of its own: for the background work of a cache, or for
// requests that do not come through a block device. Other threads reach it with Wake and do.
type loop struct {
	driver
	loopHooks
	ring   *uring.Ring
	wakeFD int
	own    int // submissions of the driver in flight
	// spoil changes results; tests only.
	spoil func(userData uint64, res int32) int32

	pending, sleeping atomic.Uint32
	stopping          atomic.Bool
	tick              bool // the lane does the background work
	done              chan struct{}
	err               error // of the ring; written before done is closed

	calls threadCalls
}

// loopHooks are what somebody does who has requests on a loop. They are called on its thread.
type loopHooks struct {
	// finish answers a request that was submitted to the loop's lane.
	finish func(*cache.Request)
	// before is called before each wait; it may submit requests. After again there is no wait.
	before func()
	// event takes the completions of submissions made with newEvent.
	event func(number uint32, flags uint32)
}

const (
	loopEntries = 512
	wakeData    = 1 << 62
	// eventData marks the user data of events; below it is their number.
	eventData = 1 << 61
	// noEvent is the number of a submission whose completion is of no interest.
	noEvent = 1<<32 - 1
)

// startLoop starts a loop of c. Its devices are those that setup gives it, on the loop's thread.
// With background set the lane does the background work.
func startLoop(c *cache.Cache, background bool, setup func(*loop) error) (*loop, error) {
	l := &loop{wakeFD: -1, tick: background, done: make(chan struct{})}
	ready := make(chan error)
	go l.run(c, setup, ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("start loop: %w", err)
	}
	return l, nil
}

// setFile makes dev the device of that number on this ring. The ring holds a reference until
// dropFile or its end, and the end comes after the last of its I/O.
func (l *loop) setFile(id cache.BackingID, dev device) error {
	if err := l.ring.RegisterFile(int(id), dev.fd); err != nil {
		return err
	}
	l.files[id] = deviceFile{file: uring.Fixed(int(id)), device: dev}
	return nil
}

// dropFile gives up a device that has no I/O under way.
func (l *loop) dropFile(id cache.BackingID) error {
	l.files[id] = noDevice
	return l.ring.RegisterFile(int(id), -1)
}

// do runs f on the loop's thread and waits for it.
func (l *loop) do(f func() error) error {
	return l.calls.do(f, l.Wake, l.done)
}

// stop ends the loop after its I/O and waits for it.
func (l *loop) stop() error {
	l.stopping.Store(true)
	l.Wake()
	<-l.done
	return l.err
}

// NewSQE implements port.
func (l *loop) NewSQE(userData uint64) *uring.SQE {
	s := l.ring.NextSQE()
	s.SetUserData(userData)
	l.own++
	return s
}

// newEvent is a submission that is not the engine's, such as a poll. The loop does not wait for its
// end before it stops.
func (l *loop) newEvent(number uint32) *uring.SQE {
	s := l.ring.NextSQE()
	s.SetUserData(eventData | uint64(number))
	return s
}

// again makes the loop go round once more without a wait. For hook before.
func (l *loop) again() { l.pending.Store(1) }

// Wake makes the loop run its lane soon. Any thread may call it, and never too late: the
// descriptor is closed when the process ends.
func (l *loop) Wake() {
	// The loop stores sleeping before it looks at pending; here it is the other way round, so
	// one of the two sees the other.
	if l.pending.Swap(1) != 0 || l.sleeping.Load() == 0 {
		return
	}
	one := [8]byte{1}
	for {
		if _, err := unix.Write(l.wakeFD, one[:]); err != unix.EINTR {
			return
		}
	}
}

// Finish implements cache.Driver. A lane that is only for the background work has no requests.
func (l *loop) Finish(r *cache.Request) {
	if l.finish == nil {
		panic("daemon: request on a loop that has none")
	}
	l.finish(r)
}

// CopyOut implements cache.Driver.
func (l *loop) CopyOut(r *cache.Request, off int, dst []byte) error {
	copy(dst, r.Data[off:])
	return nil
}

// CopyIn implements cache.Driver.
func (l *loop) CopyIn(r *cache.Request, off int, src []byte) error {
	copy(r.Data[off:], src)
	return nil
}

// run is the body of the loop's thread.
func (l *loop) run(c *cache.Cache, setup func(*loop) error, ready chan<- error) {
	runtime.LockOSThread()
	defer crashOnPanic()
	hostile.Always()
	// The thread's own allocations must not start writeback to a device that it serves itself.
	_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
	err := l.open()
	if err == nil {
		err = setup(l)
	}
	if err != nil {
		l.close()
		ready <- err
		return
	}
	l.lane = c.NewLane(l)
	if l.tick {
		c.StartBackground(l.lane)
	}
	ready <- nil
	l.err = l.work()
	l.close()
	close(l.done)
}

func (l *loop) open() (err error) {
	l.ring, err = uring.New(loopEntries, uring.Options{SingleIssuer: true, Hold: true})
	if err != nil {
		return err
	}
	l.init(l, loopEntries)
	if err := l.ring.RegisterFileTable(cache.MaxBackings + 1); err != nil {
		return err
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	l.armWake()
	return nil
}

func (l *loop) armWake() {
	s := l.ring.NextSQE()
	// Multishot polls are edge-triggered: each write to the eventfd completes once, unread.
	s.PrepPollAdd(uring.FD(l.wakeFD), unix.POLLIN, true)
	s.SetUserData(wakeData)
}

// close drops the devices at once; the poll of the eventfd ends with the ring.
func (l *loop) close() {
	if l.ring != nil {
		_ = l.ring.UnregisterFiles()
		_ = l.ring.Close()
	}
	l.gathers.close()
}

// work is the loop: run what is woken, tick, submit and wait.
func (l *loop) work() error {
	next := time.Now()
	for {
		if l.pending.Load() != 0 && l.pending.Swap(0) != 0 {
			l.calls.run()
			l.lane.Run()
			next = time.Time{}
		}
		if l.stopping.Load() && l.own == 0 && l.gathers.open == noFlight {
			return nil
		}
		timeout := time.Duration(0)
		if l.tick {
			now := time.Now()
			if !now.Before(next) {
				next = now.Add(l.lane.Tick())
			}
			timeout = max(time.Until(next), time.Microsecond)
		}
		if err := l.round(timeout); err != nil && !errors.Is(err, uring.ErrTimeout) {
			return err
		}
		l.reap()
	}
}

func (l *loop) round(timeout time.Duration) error {
	if l.before != nil {
		l.before()
	}
	l.sendHeld()
	l.sleeping.Store(1)
	n := uint32(1)
	if l.pending.Load() != 0 {
		n = 0
	}
	err := l.ring.SubmitAndWait(n, timeout)
	l.sleeping.Store(0)
	l.now = 0
	return err
}

func (l *loop) reap() {
	for n := l.ring.Ready(); n > 0; n-- {
		c := l.ring.Peek()
		if c == nil {
			return
		}
		userData, res, flags := c.UserData, c.Res, c.Flags
		l.ring.Advance(1)
		if userData == wakeData {
			if flags&uring.CQEMore == 0 {
				l.armWake()
			}
			continue
		}
		if userData&eventData != 0 {
			if n := uint32(userData); n != noEvent {
				l.event(n, flags)
			}
			continue
		}
		l.own--
		if l.spoil != nil {
			res = l.spoil(userData, res)
		}
		l.complete(userData, res)
	}
}

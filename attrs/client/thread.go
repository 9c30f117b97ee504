package client

import (
	"runtime"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// thread submits and reaps what is done by io_uring, all of it on one locked thread: the kernel does part of a
// request's work on the thread that has submitted it, and cancels what is under way when that
// ends, so that goroutines, which change threads, had better not submit themselves. All of a round
// is one system call.
type thread struct {
	a     *async
	ring  *uring.Ring
	file  uring.File
	fixed bool         // the region is registered with the ring
	mem   *uring.Arena // to which the eventfd is read
	event int          // eventfd by which others wake the thread
	armed bool         // a read of it is under way
	ops   []*Op        // under way, by the number that is their user data
	free  []uint32     // numbers that are not
	over  chan struct{}
}

const (
	// threadEntries bounds what a round submits at a time; more of it takes another system call.
	threadEntries = 256
	wakeNumber    = ^uint64(0)
)

// startThread starts the thread. Without io_uring the workers do everything.
func (a *async) startThread() {
	t := &thread{a: a, event: -1, over: make(chan struct{})}
	for i := range a.depth {
		t.free = append(t.free, uint32(i))
	}
	t.ops = make([]*Op, a.depth)
	ready := make(chan error)
	go t.run(ready)
	if <-ready == nil {
		a.thread = t
	}
}

func (t *thread) run(ready chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(t.over)
	defer t.release()
	err := t.setup()
	ready <- err
	if err == nil {
		t.loop()
	}
}

// setup makes the ring, on the thread that it belongs to. What is registered with it only spares
// work: how much memory a user may pin is limited.
func (t *thread) setup() (err error) {
	if t.mem, err = uring.NewArena(8); err != nil {
		return err
	}
	if t.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	t.ring, err = uring.New(uint32(min(t.a.depth+1, threadEntries)), uring.Options{
		CQEntries: uint32(2 * t.a.depth), SingleIssuer: true,
	})
	if err != nil {
		return err
	}
	t.file = uring.FD(t.a.d.fd)
	if t.ring.RegisterFileTable(1) == nil && t.ring.RegisterFile(0, t.a.d.fd) == nil {
		t.file = uring.Fixed(0)
	}
	t.fixed = t.ring.RegisterBufferTable(1) == nil &&
		t.ring.RegisterBuffer(0, t.a.d.region.Data()) == nil
	return nil
}

// release gives everything back at once: whoever closes a device may want to unmount next.
func (t *thread) release() {
	if t.ring != nil {
		_ = t.ring.UnregisterBuffers()
		_ = t.ring.UnregisterFiles()
		_ = t.ring.Close()
	}
	if t.event >= 0 {
		_ = unix.Close(t.event)
	}
	_ = t.mem.Free()
}

// wake makes the thread look for requests. Any goroutine may call it.
func (t *thread) wake() {
	one := [8]byte{1}
	for {
		if _, err := unix.Write(t.event, one[:]); err != unix.EINTR {
			return
		}
	}
}

// loop goes round until the device is closed. It does not end while the kernel has a submission that
// names memory.
func (t *thread) loop() {
	for {
		op, closing := t.take()
		for op != nil {
			next := op.next
			op.next = nil
			t.submit(op)
			op = next
		}
		if closing && !t.armed {
			return
		}
		if !t.armed {
			t.arm()
		}
		n := uint32(1)
		if t.more() {
			n = 0
		}
		if err := t.ring.SubmitAndWait(n, 0); err != nil {
			panic(err) // it is used wrongly
		}
		for c := t.ring.Peek(); c != nil; c = t.ring.Peek() {
			number, res := c.UserData, c.Res
			t.ring.Advance(1)
			t.reaped(number, res)
		}
	}
}

// take takes all requests that have come.
func (t *thread) take() (first *Op, closing bool) {
	a := t.a
	a.mu.Lock()
	defer a.mu.Unlock()
	first = a.mu.rings.first
	a.mu.rings = list{}
	return first, a.mu.closing
}

// more says whether requests have come since. If not, the next one wakes the thread.
func (t *thread) more() bool {
	a := t.a
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.asleep = a.mu.rings.first == nil
	return !a.mu.asleep
}

// arm waits for the eventfd.
func (t *thread) arm() {
	s := t.ring.NextSQE()
	s.PrepRead(uring.FD(t.event), t.mem.Slice(0, 8), 0, 0)
	s.SetUserData(wakeNumber)
	t.armed = true
}

func (t *thread) submit(op *Op) {
	last := len(t.free) - 1
	number := t.free[last]
	t.free = t.free[:last]
	t.ops[number] = op
	t.prepare(op, number)
}

// prepare fills in a submission.
func (t *thread) prepare(op *Op, number uint32) {
	s := t.ring.NextSQE()
	s.SetUserData(uint64(number))
	b, flags := op.memory(), uint32(0)
	if op.FUA && op.Kind == Write {
		flags = uring.RWFDSync
	}
	switch off := uint64(op.Off); {
	case op.Kind == Flush:
		s.PrepFsync(t.file, true)
	case op.Kind == Read && t.fixed:
		s.PrepReadFixed(t.file, 0, uring.Addr(b), uint32(len(b)), off, flags)
	case op.Kind == Read:
		s.PrepRead(t.file, b, off, flags)
	case t.fixed:
		s.PrepWriteFixed(t.file, 0, uring.Addr(b), uint32(len(b)), off, flags)
	default:
		s.PrepWrite(t.file, b, off, flags)
	}
}

// reaped takes a completion.
func (t *thread) reaped(number uint64, res int32) {
	if number == wakeNumber {
		t.armed = false
		return
	}
	op := t.ops[number]
	if unix.Errno(-res) == unix.EINTR {
		t.prepare(op, uint32(number))
		return
	}
	t.ops[number] = nil
	t.free = append(t.free, uint32(number))
	if op.N = int(res); res < 0 {
		op.N, op.Err = 0, unix.Errno(-res)
	}
	t.a.ended(op)
}

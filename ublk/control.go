package ublk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
	"ubcache/ublk/internal/sys"
)

const (
	controlPath  = "/dev/ublk-control"
	controlSlots = 32
	payloadBytes = 512

	// commandTimeout bounds commands that wait for nobody.
	commandTimeout = 30 * time.Second
)

// control is the process's connection to the driver: one ring on one locked thread that lives as
// long as the process. Threads that come and go with their rings make some kernels lose commands
// (6.18 and 7.0 queue them to io-wq and never run them).
type control struct {
	fd     int
	wakeFD int
	ring   *uring.Ring
	mem    *uring.Arena // payloadBytes for each slot
	slots  [controlSlots]*command
	free   []int

	// addDel holds one token: the driver serializes ADD_DEV and DEL_DEV by a mutex anyway, and
	// waiting here instead of in an io-wq worker keeps workers for other commands.
	addDel chan struct{}
	lost   atomic.Bool // an ADD_DEV or DEL_DEV was never answered

	mu struct {
		sync.Mutex
		queue []*command
	}
}

// command is one control command. buf is copied to and from memory that the kernel sees, so that a
// caller that gave up does not take it along.
type command struct {
	op   uint32
	cmd  sys.CtrlCmd
	buf  [payloadBytes]byte
	done chan int32 // receives the result once, never blocks the control thread
}

var shared struct {
	sync.Mutex
	c *control
}

// openControl returns the process's control connection and opens it at first.
func openControl() (*control, error) {
	shared.Lock()
	defer shared.Unlock()
	if shared.c != nil {
		return shared.c, nil
	}
	fd, err := unix.Open(controlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, controlOpenError(err)
	}
	c := &control{fd: fd, wakeFD: -1, addDel: make(chan struct{}, 1)}
	c.addDel <- struct{}{}
	ready := make(chan error)
	go c.serve(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	shared.c = c
	return c, nil
}

// serve is the control thread. It is never unlocked and never ends once it is ready.
func (c *control) serve(ready chan<- error) {
	runtime.LockOSThread()
	err := c.setup()
	if err != nil {
		c.close()
	}
	ready <- err
	if err != nil {
		return
	}
	for {
		c.start()
		if err := c.ring.SubmitAndWait(1, 0); err != nil {
			panic(fmt.Sprintf("ublk: control ring: %v", err))
		}
		for cqe := c.ring.Peek(); cqe != nil; cqe = c.ring.Peek() {
			c.complete(cqe)
			c.ring.Advance(1)
		}
	}
}

func (c *control) setup() (err error) {
	c.ring, err = uring.New(2*controlSlots, uring.Options{SQE128: true, SingleIssuer: true})
	if err != nil {
		return err
	}
	if c.mem, err = uring.NewArena(controlSlots * payloadBytes); err != nil {
		return err
	}
	if c.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	for i := range controlSlots {
		c.free = append(c.free, i)
	}
	c.armWake()
	return nil
}

func (c *control) close() {
	if c.ring != nil {
		_ = c.ring.Close()
	}
	_ = c.mem.Free()
	if c.wakeFD >= 0 {
		_ = unix.Close(c.wakeFD)
	}
	_ = unix.Close(c.fd)
}

const controlWake = ^uint64(0)

func (c *control) armWake() {
	s := c.ring.NextSQE()
	s.PrepPollAdd(uring.FD(c.wakeFD), unix.POLLIN, true)
	s.SetUserData(controlWake)
}

// start submits queued commands as far as there are slots.
func (c *control) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.mu.queue) > 0 && len(c.free) > 0 {
		cmd := c.mu.queue[0]
		c.mu.queue = c.mu.queue[1:]
		slot := c.free[len(c.free)-1]
		c.free = c.free[:len(c.free)-1]
		c.slots[slot] = cmd
		payload := c.mem.Slice(slot*payloadBytes, payloadBytes)
		copy(payload, cmd.buf[:])
		hdr := cmd.cmd
		if hdr.Len != 0 {
			hdr.Addr = uint64(uring.Addr(payload))
		}
		s := c.ring.NextSQE()
		s.PrepUringCmd(uring.FD(c.fd), cmd.op)
		sys.PutCtrlCmd(s.Cmd(), hdr)
		s.SetUserData(uint64(slot))
	}
}

func (c *control) complete(cqe *uring.CQE) {
	if cqe.UserData == controlWake {
		if cqe.Flags&uring.CQEMore == 0 {
			c.armWake()
		}
		return
	}
	slot := int(cqe.UserData)
	cmd := c.slots[slot]
	c.slots[slot] = nil
	copy(cmd.buf[:], c.mem.Slice(slot*payloadBytes, payloadBytes))
	c.free = append(c.free, slot)
	cmd.done <- cqe.Res
}

// run sends cmd and waits for the result. If ctx ends first, the command stays with the driver and
// its slot stays taken until the driver answers.
func (c *control) run(ctx context.Context, cmd *command) (int32, error) {
	cmd.done = make(chan int32, 1)
	c.mu.Lock()
	c.mu.queue = append(c.mu.queue, cmd)
	c.mu.Unlock()
	one := [8]byte{1}
	for {
		if _, err := unix.Write(c.wakeFD, one[:]); err != unix.EINTR {
			break
		}
	}
	select {
	case res := <-cmd.done:
		return res, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// do runs a command on device id and maps its result. what names it in errors. The driver may
// complete any waiting command with EINTR, which only means: again.
func (c *control) do(ctx context.Context, what string, op uint32, id int, data uint64,
	in, out []byte,
) (int32, error) {
	start := time.Now()
	for {
		cmd := &command{op: op}
		cmd.cmd = sys.CtrlCmd{DevID: uint32(id), QueueID: 0xffff, Data: [1]uint64{data}}
		cmd.cmd.Len = uint16(max(len(in), len(out)))
		copy(cmd.buf[:], in)
		res, err := c.run(ctx, cmd)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return 0, lostError(what, id, time.Since(start))
		case err != nil:
			return 0, fmt.Errorf("ublk%d: %s: %w", id, what, err)
		case res == -int32(unix.EINTR):
			continue
		case res < 0:
			return 0, commandError(what, id, syscall.Errno(-res))
		}
		copy(out, cmd.buf[:])
		return res, nil
	}
}

// quick is do for commands that wait for nobody.
func (c *control) quick(what string, op uint32, id int, data uint64, in, out []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	_, err := c.do(ctx, what, op, id, data, in, out)
	return err
}

package ublk

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFatalPanic(t *testing.T) {
	fatal := make(chan error, 1)
	h := newIOHandler(t)
	h.completion = func(*Queue, uint64, int32, uint32) { panic("boom") }
	k := startFake(t, Options{OnFatal: func(err error) { fatal <- err }}, h)
	k.deliver(request(OpFlush, 0, 0))
	if err := <-fatal; !strings.Contains(err.Error(), "boom") {
		t.Errorf("OnFatal: %v", err)
	}
	if err := k.ended(); err != nil {
		t.Error(err)
	}
}

func TestRefusedFetch(t *testing.T) {
	stopped := false
	k := newFake(t, Options{}, &hooks{stop: func(*Queue) { stopped = true }})
	k.q.dev.opts.OnFatal = func(err error) { t.Errorf("OnFatal: %v", err) }
	k.mu.refuse[3] = -int32(unix.EINVAL)
	if err := k.start(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("start with a refused fetch: %v", err)
	}
	<-k.end
	if !stopped {
		t.Error("Stop was not called after a successful Start")
	}
}

func TestRefusedCommit(t *testing.T) {
	fatal := make(chan error, 1)
	k := startFake(t, Options{OnFatal: func(err error) { fatal <- err }}, HandlerFunc(
		func(q *Queue, r *Request) { q.CompleteOK(r.Tag) }))
	tag, _ := k.deliver(request(OpRead, 0, 1))
	k.result()
	k.mu.Lock()
	k.post(tag, -int32(unix.EINVAL), kindTag)
	k.mu.Unlock()
	if err := <-fatal; !errors.Is(err, unix.EINVAL) {
		t.Errorf("OnFatal: %v", err)
	}
	_ = k.ended()
}

// The driver aborts idle tags while the handler still has requests: the queue serves them first.
func TestAbortWithHeldRequests(t *testing.T) {
	var held []uint16
	stopped := make(chan struct{})
	h := &hooks{
		handle: func(_ *Queue, r *Request) { held = append(held, r.Tag) },
		woken: func(q *Queue) {
			for _, tag := range held {
				q.CompleteOK(tag)
			}
			held = nil
		},
		stop: func(q *Queue) {
			if q.InFlight() != 0 {
				t.Errorf("Stop with %d requests in flight", q.InFlight())
			}
			close(stopped)
		},
	}
	k := startFake(t, Options{}, h)
	for range 3 {
		k.deliver(request(OpRead, 0, 8))
	}
	k.abort()
	select {
	case <-stopped:
		t.Fatal("the queue stopped with requests in flight")
	case <-time.After(50 * time.Millisecond):
	}
	k.q.Wake()
	for range 3 {
		if r := k.result(); r.res != 4096 {
			t.Errorf("held request: %d", r.res)
		}
	}
	k.stop() // ends the fetches that came with the commits
	<-stopped
}

// After QUIESCE_DEV the tags that were with the server stay fetched: the driver does not end them.
func TestQuiesceLeavesFetches(t *testing.T) {
	release := make(chan struct{})
	h := &hooks{
		handle: func(*Queue, *Request) {},
		woken: func(q *Queue) {
			select {
			case <-release:
				q.CompleteOK(0)
			default:
			}
		},
	}
	k := startFake(t, Options{}, h)
	k.deliver(request(OpRead, 0, 8))
	k.abort()
	k.q.quiesced.Store(true)
	k.q.Wake()
	select {
	case <-k.end:
		t.Fatal("the queue ended with a request in flight")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	k.q.Wake()
	k.result()
	if err := k.ended(); err != nil {
		t.Error(err)
	}
}

// Timers and polls of the handler end with the queue, and each is told.
func TestStopCancelsTimers(t *testing.T) {
	var told []uint64
	h := &hooks{
		start: func(q *Queue) error {
			q.Ring().PrepTimeout(q.NewSQE(1), time.Hour, 0)
			fds := make([]int, 2)
			if err := unix.Pipe2(fds, unix.O_CLOEXEC); err != nil {
				return err
			}
			f, err := q.AddFile(fds[0])
			if err != nil {
				return err
			}
			_ = unix.Close(fds[0])
			t.Cleanup(func() { _ = unix.Close(fds[1]) })
			q.NewSQE(2).PrepPollAdd(f, unix.POLLIN, true)
			return nil
		},
		completion: func(q *Queue, userData uint64, res int32, _ uint32) {
			if res != -int32(unix.ECANCELED) {
				t.Errorf("completion %d: %d", userData, res)
			}
			if told = append(told, userData); len(told) == 1 {
				q.NewSQE(3).PrepNop()
				told = append(told, 3)
			}
		},
	}
	base := h.completion
	h.completion = func(q *Queue, userData uint64, res int32, flags uint32) {
		if userData != 3 {
			base(q, userData, res, flags)
		}
	}
	k := startFake(t, Options{}, h)
	k.stop()
	if len(told) != 3 {
		t.Errorf("completions: %v", told)
	}
}

func TestNoDescriptorsLeftByQueue(t *testing.T) {
	open := func() int {
		l, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	h := HandlerFunc(func(q *Queue, r *Request) { q.CompleteOK(r.Tag) })
	k := startFake(t, Options{}, h)
	k.stop()
	before := open()
	for range 10 {
		k := newFake(t, Options{}, h)
		if err := k.start(); err != nil {
			t.Fatal(err)
		}
		k.stop()
		_ = k.mu.ring.Close()
	}
	if after := open(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

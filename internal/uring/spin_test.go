package uring

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSpinnerLearns(t *testing.T) {
	s := spinner{most: 50 * time.Microsecond}
	for range 10 {
		s.waited(20 * time.Microsecond)
	}
	if s.limit < 20*time.Microsecond || s.limit > s.most {
		t.Errorf("after waits of 20 µs the limit is %v", s.limit)
	}
	s.waited(s.limit) // within the limit: nothing to change
	for range 10 {
		s.waited(45 * time.Microsecond)
	}
	if s.limit != s.most {
		t.Errorf("after waits of 45 µs the limit is %v", s.limit)
	}
	for range 10 {
		s.waited(time.Millisecond)
	}
	if s.limit != 0 {
		t.Errorf("after waits of 1 ms the limit is %v", s.limit)
	}
}

// TestSpinFindsEvents: an event that comes during the spin ends the wait; a spin that looked at
// nothing would end at its limit.
func TestSpinFindsEvents(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := New(8, Options{SingleIssuer: true})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("skipped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const limit, event = 5 * time.Second, 20 * time.Millisecond
	if r.SetSpin(limit); r.spin.most == 0 {
		t.Skip("skipped: this kernel has no IORING_SETUP_TASKRUN_FLAG")
	}
	r.spin.limit = r.spin.most
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s := r.NextSQE()
	s.PrepPollAdd(FD(fd), unix.POLLIN, false)
	s.SetUserData(7)
	start := time.Now()
	time.AfterFunc(event, func() { _, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	for r.Ready() == 0 {
		if err := r.SubmitAndWait(1, 0); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d >= limit || d < event {
		t.Errorf("the wait took %v", d)
	}
	if c := r.Peek(); c.UserData != 7 || c.Res&unix.POLLIN == 0 {
		t.Errorf("completion %+v", *c)
	}
}

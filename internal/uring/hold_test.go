package uring_test

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// TestHoldLetsTheWorldStop collects garbage, which has to stop all goroutines, while one is in
// waits that the runtime does not know of. The collector must neither fail nor wait for long.
func TestHoldLetsTheWorldStop(t *testing.T) {
	stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		r := newRing(t, 4, uring.Options{SingleIssuer: true, Hold: true})
		for i := 0; ; i++ {
			if i == 1 {
				close(ready)
			}
			select {
			case <-stop:
				return
			default:
			}
			// Shorter than the held part of a wait, so that no other wait is ever begun.
			r.PrepTimeout(r.NextSQE(), time.Millisecond, 0)
			if err := r.SubmitAndWait(1, 0); err != nil {
				t.Error(err)
				return
			}
			for r.Peek() != nil {
				r.Advance(1)
			}
		}
	}()
	select {
	case <-ready:
	case <-done:
		return
	}
	const collections = 50
	start := time.Now()
	for range collections {
		runtime.GC()
	}
	took := time.Since(start)
	close(stop)
	<-done
	if took > collections*100*time.Millisecond {
		t.Errorf("%d collections took %v", collections, took)
	}
}

// TestHoldLongWait waits longer than a P is held.
func TestHoldLongWait(t *testing.T) {
	r := newRing(t, 4, uring.Options{SingleIssuer: true, Hold: true})
	for _, timeout := range []time.Duration{0, time.Second} {
		r.PrepTimeout(r.NextSQE(), 80*time.Millisecond, 0)
		for r.Ready() == 0 {
			if err := r.SubmitAndWait(1, timeout); err != nil {
				t.Fatal(err)
			}
		}
		if c := r.Peek(); c.Res != -int32(unix.ETIME) {
			t.Fatalf("result %d", c.Res)
		}
		r.Advance(1)
	}
	for _, timeout := range []time.Duration{10 * time.Millisecond, 80 * time.Millisecond} {
		start := time.Now()
		err := r.SubmitAndWait(1, timeout)
		if took := time.Since(start); err != uring.ErrTimeout || took < timeout {
			t.Fatalf("wait of %v for nothing: %v after %v", timeout, err, took)
		}
	}
}

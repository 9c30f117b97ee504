package uring_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// newRing makes a ring on the test's goroutine, which stays on its thread: deferred rings insist.
func newRing(t testing.TB, entries uint32, o uring.Options) *uring.Ring {
	t.Helper()
	if o.SingleIssuer {
		runtime.LockOSThread()
		t.Cleanup(runtime.UnlockOSThread)
	}
	r, err := uring.New(entries, o)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("skipped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := r.Overflow(); n != 0 {
			t.Errorf("%d completions lost", n)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

var ringKinds = map[string]uring.Options{
	"plain":    {},
	"deferred": {SingleIssuer: true},
	"holding":  {SingleIssuer: true, Hold: true},
	"sqe128":   {SQE128: true},
}

func eachKind(t *testing.T, f func(t *testing.T, o uring.Options)) {
	for name, o := range ringKinds {
		t.Run(name, func(t *testing.T) { f(t, o) })
	}
}

// await waits for n completions and returns their results by user data.
func await(t testing.TB, r *uring.Ring, n int) map[uint64]int32 {
	t.Helper()
	got := map[uint64]int32{}
	deadline := time.Now().Add(10 * time.Second)
	for len(got) < n {
		if err := r.SubmitAndWait(1, 5*time.Second); err != nil {
			t.Fatalf("%d of %d completions: %v", len(got), n, err)
		}
		for c := r.Peek(); c != nil; c = r.Peek() {
			if _, twice := got[c.UserData]; twice {
				t.Fatalf("two completions for %d", c.UserData)
			}
			got[c.UserData] = c.Res
			r.Advance(1)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d completions", len(got), n)
		}
	}
	return got
}

// More submissions than either queue holds: NextSQE submits by itself, overflown completions come.
func TestManyNops(t *testing.T) {
	eachKind(t, func(t *testing.T, o uring.Options) {
		r := newRing(t, 8, o)
		const n = 1000
		for i := range n {
			s := r.NextSQE()
			s.PrepNop()
			s.SetUserData(uint64(i))
		}
		for ud, res := range await(t, r, n) {
			if res != 0 {
				t.Errorf("nop %d: %d", ud, res)
			}
		}
		if r.Pending() != 0 {
			t.Errorf("%d submissions left", r.Pending())
		}
	})
}

func TestTimeouts(t *testing.T) {
	eachKind(t, func(t *testing.T, o uring.Options) {
		r := newRing(t, 8, o)
		if err := r.SubmitAndWait(1, 5*time.Millisecond); !errors.Is(err, uring.ErrTimeout) {
			t.Errorf("wait without completions: %v, want ErrTimeout", err)
		}
		start := time.Now()
		s := r.NextSQE()
		r.PrepTimeout(s, 20*time.Millisecond, 0)
		s.SetUserData(1)
		if got := await(t, r, 1)[1]; got != -int32(unix.ETIME) {
			t.Errorf("timeout: %d", got)
		}
		if d := time.Since(start); d < 20*time.Millisecond {
			t.Errorf("timeout after %v", d)
		}
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		s = r.NextSQE()
		r.PrepTimeout(s, time.Duration(now.Nano())+20*time.Millisecond, uring.TimeoutAbs)
		s.SetUserData(2)
		if got := await(t, r, 1)[2]; got != -int32(unix.ETIME) {
			t.Errorf("absolute timeout: %d", got)
		}
		if d := time.Since(start); d < 19*time.Millisecond || d > 5*time.Second {
			t.Errorf("absolute timeout after %v", d)
		}
		s = r.NextSQE()
		r.PrepTimeout(s, time.Hour, 0)
		s.SetUserData(3)
		s = r.NextSQE()
		s.PrepTimeoutRemove(3)
		s.SetUserData(4)
		if got := await(t, r, 2); got[3] != -int32(unix.ECANCELED) || got[4] != 0 {
			t.Errorf("removed timeout: %v", got)
		}
	})
}

func TestPollAndCancel(t *testing.T) {
	eachKind(t, func(t *testing.T, o uring.Options) {
		r := newRing(t, 8, o)
		efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(efd)
		s := r.NextSQE()
		s.PrepPollAdd(uring.FD(efd), unix.POLLIN, true)
		s.SetUserData(1)
		if err := r.Submit(); err != nil {
			t.Fatal(err)
		}
		// Edge-triggered: each write completes once although nobody reads.
		for i := range 3 {
			if _, err := unix.Write(efd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
				t.Fatal(err)
			}
			if err := r.SubmitAndWait(1, 5*time.Second); err != nil {
				t.Fatalf("write %d: %v", i, err)
			}
			c := r.Peek()
			if c == nil || c.UserData != 1 || c.Res < 0 || c.Flags&uring.CQEMore == 0 {
				t.Fatalf("write %d: %+v", i, c)
			}
			r.Advance(1)
		}
		s = r.NextSQE()
		r.PrepTimeout(s, time.Hour, 0)
		s.SetUserData(2)
		for i, op := range []uint8{uring.OpTimeout, uring.OpPollAdd} {
			s = r.NextSQE()
			s.PrepCancel(0, op, uring.CancelOp|uring.CancelAll)
			s.SetUserData(uint64(10 + i))
		}
		got := await(t, r, 4)
		if got[1] != -int32(unix.ECANCELED) || got[2] != -int32(unix.ECANCELED) ||
			got[10] != 1 || got[11] != 1 {
			t.Errorf("cancel by operation: %v", got)
		}
	})
}

// A message from another thread arrives on a deferred ring.
func TestMsgRing(t *testing.T) {
	to := newRing(t, 8, uring.Options{SingleIssuer: true})
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		from, err := uring.New(8, uring.Options{})
		if err != nil {
			done <- err
			return
		}
		defer from.Close()
		s := from.NextSQE()
		s.PrepMsgRing(uring.FD(to.FD()), 42, 77)
		done <- from.SubmitAndWait(1, 5*time.Second)
	}()
	if got := await(t, to, 1); got[77] != 42 {
		t.Errorf("message: %v", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSupports(t *testing.T) {
	r := newRing(t, 4, uring.Options{})
	if !r.Supports(uring.OpNop) || !r.Supports(uring.OpRead) || r.Supports(250) {
		t.Error("the probe is wrong about NOP, READ or 250")
	}
}

func TestLinkedFailure(t *testing.T) {
	r := newRing(t, 8, uring.Options{})
	s := r.NextSQE()
	s.PrepFsync(uring.FD(-1), false)
	s.SetUserData(1)
	s.Link()
	s = r.NextSQE()
	s.PrepNop()
	s.SetUserData(2)
	got := await(t, r, 2)
	if got[1] != -int32(unix.EBADF) || got[2] != -int32(unix.ECANCELED) {
		t.Errorf("linked after a failure: %v", got)
	}
}

func TestRegisterErrors(t *testing.T) {
	r := newRing(t, 4, uring.Options{})
	if err := r.RegisterFileTable(0); err == nil {
		t.Error("a table of no files")
	}
	if err := r.RegisterBufferTable(1 << 20); err == nil {
		t.Error("a table of 2^20 buffers")
	}
	if err := r.RegisterFileTable(1); err != nil {
		t.Fatal(err)
	}
	if err := r.RegisterFile(1, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a slot beyond the table: %v", err)
	}
	if err := r.RegisterFile(0, 12345); !errors.Is(err, unix.EBADF) {
		t.Errorf("a closed descriptor: %v", err)
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	count := func() int {
		l, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	cycle := func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r, err := uring.New(8, uring.Options{SingleIssuer: true})
		if err != nil {
			t.Skipf("skipped: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatalf("second Close: %v", err)
		}
	}
	cycle()
	before := count()
	for range 100 {
		cycle()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestNoAllocations(t *testing.T) {
	r := newRing(t, 32, uring.Options{SingleIssuer: true})
	fd := newFile(t)
	a := newArena(t, 4096)
	if _, err := unix.Pwrite(fd, a.Bytes(), 0); err != nil {
		t.Fatal(err)
	}
	allocs := testing.AllocsPerRun(200, func() {
		for i := range 8 {
			s := r.NextSQE()
			s.PrepRead(uring.FD(fd), a.Bytes(), 0, 0)
			s.SetUserData(uint64(i))
		}
		s := r.NextSQE()
		r.PrepTimeout(s, time.Microsecond, 0)
		for n := 0; n < 9; {
			if err := r.SubmitAndWait(1, time.Second); err != nil {
				t.Fatal(err)
			}
			for c := r.Peek(); c != nil; c = r.Peek() {
				n++
				r.Advance(1)
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a round", allocs)
	}
}

func BenchmarkNop(b *testing.B) {
	for name, o := range map[string]uring.Options{"plain": {}, "deferred": {SingleIssuer: true}} {
		for _, batch := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/batch=%d", name, batch), func(b *testing.B) {
				r := newRing(b, 64, o)
				for b.Loop() {
					for range batch {
						r.NextSQE().PrepNop()
					}
					for n := 0; n < batch; {
						if err := r.SubmitAndWait(uint32(batch-n), 0); err != nil {
							b.Fatal(err)
						}
						ready := r.Ready()
						r.Advance(ready)
						n += int(ready)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/nop")
			})
		}
	}
}

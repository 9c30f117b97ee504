package uring

import (
	"sync/atomic"
	"syscall"
	"time"
)

// spinner decides how long a wait looks at the ring before it sleeps. To sleep and be woken costs
// both sides: the waker an interrupt to another CPU, the sleeper the way out of an idle state. With
// many requests in flight the next event is often nearer than that. As with the halt polling of KVM
// the limit grows while waits turn out short, and goes to nothing while they do not.
type spinner struct {
	most  time.Duration // 0: never spin
	limit time.Duration
}

// spinStep is the first limit after none.
const spinStep = 5 * time.Microsecond

// waited learns from a wait that took d in all, spun or slept.
func (s *spinner) waited(d time.Duration) {
	switch {
	case d <= s.limit:
	case d <= s.most:
		s.limit = min(max(2*s.limit, spinStep), s.most)
	default:
		if s.limit /= 2; s.limit < spinStep {
			s.limit = 0
		}
	}
}

// SetSpin lets waits without a timeout look at the ring for up to most before they sleep; 0, the
// default, is never. It has no effect where the kernel does not tell in shared memory that there
// is work (IORING_SETUP_TASKRUN_FLAG, with Options.SingleIssuer).
func (r *Ring) SetSpin(most time.Duration) {
	if r.flags&setupTaskrunFlag != 0 {
		r.spin = spinner{most: most, limit: min(r.spin.limit, most)}
	}
}

// due reports whether an enter would find n completions or could make some.
func (r *Ring) due(n uint32) bool {
	return r.Ready() >= n || atomic.LoadUint32(r.sqFlagsK)&(sqTaskrun|sqCQOverflow) != 0
}

// spinWait is wait without a timeout, with a look at the ring before the sleep.
func (r *Ring) spinWait(pending, n uint32) (took int, e syscall.Errno) {
	if pending != 0 || r.due(n) {
		took, e = sysEnter(r.enterFD, pending, r.enterFix|enterGetEvents)
		if e != 0 || uint32(took) < pending || r.Ready() >= n {
			return took, e
		}
	}
	start := time.Now()
	for time.Since(start) < r.spin.limit {
		if !r.due(n) {
			continue
		}
		_, e = sysEnter(r.enterFD, 0, r.enterFix|enterGetEvents)
		if e != 0 || r.Ready() >= n {
			r.spin.waited(time.Since(start))
			return took, e
		}
	}
	_, e = r.wait(0, n, 0)
	r.spin.waited(time.Since(start))
	return took, e
}

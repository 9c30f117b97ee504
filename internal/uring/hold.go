package uring

import (
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A goroutine in an ordinary blocking system call gives up its P only when the runtime's monitor
// thread takes it. From 10 ms after it was last scheduled the monitor does so at every look, and after
// it has taken one it looks every 20 µs for a while: some sixty looks for each wait. A locked goroutine
// that lives in waits is never scheduled, so the monitor and the threads that it wakes cost more than
// the goroutine itself. A ring with Options.Hold therefore begins each wait in a raw system call, for
// which the runtime sees a running goroutine, and goes over to an ordinary one after holdTime. To stop
// the world, or to preempt, the runtime sends a signal, which interrupts the wait.

// holdTime is longer than a thread that has work, or does some every now and then, waits for more.
const holdTime = 50 * time.Millisecond

// holdWait is the part of a wait for which the P is held. Unless over is set the wait has to go on.
func (r *Ring) holdWait(pending, n uint32, timeout time.Duration) (
	took int, e syscall.Errno, over bool,
) {
	left := holdTime
	whole := timeout > 0 && timeout <= holdTime
	if whole {
		left = timeout
	}
	end := time.Now().Add(left)
	for {
		arg, size := r.timeoutArg(left)
		took, e = sysEnterHold(r.enterFD, pending, n, r.enterFix|enterGetEvents|enterExtArg, arg, size)
		if e != unix.ETIME && e != unix.EINTR {
			return took, e, true
		}
		// Calls of Go functions are where the runtime gets what it has sent the signal for.
		if left = time.Until(end); left <= 0 || e == unix.ETIME {
			return 0, unix.ETIME, whole
		}
		pending = r.Pending()
	}
}

// holders makes up for the Ps that waiting threads hold: each ring adds one.
var holders struct {
	sync.Mutex
	base, rings int
}

func addHolder() {
	holders.Lock()
	defer holders.Unlock()
	have := runtime.GOMAXPROCS(0)
	if holders.base == 0 {
		holders.base = have
	}
	holders.rings++
	if want := holders.base + holders.rings; want > have {
		runtime.GOMAXPROCS(want)
	}
}

// dropHolder leaves the number of Ps as it is: the next ring will need it, and it costs little.
func dropHolder() {
	holders.Lock()
	holders.rings--
	holders.Unlock()
}

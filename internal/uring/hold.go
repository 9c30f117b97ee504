package uring

import (
	"runtime"
	"sync"
	"time"
)

// A goroutine in an ordinary blocking system call gives up its P only when the runtime's monitor
// thread takes it, and from 10 ms after it was last scheduled the monitor does so at every look,
// and looks every 20 µs. A locked goroutine that lives in short waits is never scheduled, so the
// monitor and the threads that it wakes cost more than the goroutine itself. A ring with
// Options.Hold therefore begins each wait in a raw system call, for which the runtime sees a running
// goroutine, and goes over to an ordinary one after holdTime. To stop the world, or to preempt, the
// runtime sends a signal, which ends the wait.

// holdTime is longer than a busy queue waits for its next event.
const holdTime = 5 * time.Millisecond

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

package ublk

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// drainLimit bounds how long a stopping queue waits for the handler's own submissions.
const drainLimit = 60 * time.Second

// finish ends the queue: no request is left.
func (q *Queue) finish() error {
	q.guard(q.h.Stop)
	drained := q.drain()
	q.release(drained)
	if !drained {
		return fmt.Errorf("ublk%d: queue %d: %d submissions of the handler did not end in %v; "+
			"their memory is leaked", q.dev.id, q.id, q.own, drainLimit)
	}
	return nil
}

// drain waits for the handler's own submissions. Reads and writes end by themselves, timeouts and
// polls are cancelled.
func (q *Queue) drain() bool {
	deadline := time.Now().Add(drainLimit)
	for q.own > 0 {
		for _, op := range []uint8{uring.OpTimeout, uring.OpPollAdd} {
			s := q.ring.NextSQE()
			s.PrepCancel(0, op, uring.CancelOp|uring.CancelAll)
			s.UserData = ownUserData | kindIgnore<<kindShift
		}
		if q.ring.SubmitAndWait(3, 50*time.Millisecond) != nil && time.Now().After(deadline) {
			return false
		}
		q.reap()
		if q.own > 0 && !time.Now().Before(deadline) {
			return false
		}
	}
	return true
}

// release gives everything back. The order matters: registered files before the ring, so that the
// driver sees /dev/ublkcN released at once, and memory last.
func (q *Queue) release(free bool) {
	if q.ring != nil {
		if free {
			_ = q.ring.UnregisterFiles()
			_ = q.ring.UnregisterBuffers()
		}
		_ = q.ring.Close()
	}
	_ = q.descs.Unmap()
	if free {
		if q.memFile != nil {
			_ = q.memFile.Free()
		} else {
			_ = q.mem.Free()
		}
	}
	q.wakeMu.Lock()
	if q.wakeFD >= 0 {
		_ = unix.Close(q.wakeFD)
		q.wakeFD = -1
	}
	q.wakeMu.Unlock()
}

// Package uring drives io_uring in pure Go.
//
// A [Ring] belongs to one thread at a time: nothing in it is locked. With [Options.SingleIssuer]
// the kernel insists that it stays the thread that called [New], so that goroutine must have called
// runtime.LockOSThread before.
//
// Three rules keep the garbage collector out of the kernel's way:
//
//   - Everything the kernel reads or writes after the call returns lies outside the Go heap. Rings,
//     their arguments and time specifications are mapped by New; data belongs in an [Arena].
//     A goroutine's stack moves, and memory that only a submission refers to is freed.
//   - No finalizers. Close frees the ring, [Arena.Free] frees the memory, in that order.
//   - An enter that may sleep goes through syscall.Syscall, so that the scheduler can hand the
//     processor on; one that cannot goes through RawSyscall, which costs half.
//
// The Prep methods of [SQE] fill in one submission each and leave the user data alone. A typical
// round is:
//
//	s := ring.NextSQE()
//	s.PrepRead(uring.FD(fd), arena.Slice(0, 4096), 0, 0)
//	s.SetUserData(7)
//	if err := ring.SubmitAndWait(1, 0); err != nil { … }
//	for c := ring.Peek(); c != nil; c = ring.Peek() {
//		use(c.UserData, c.Res)
//		ring.Advance(1)
//	}
package uring

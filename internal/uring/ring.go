package uring

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	timespecSize  = int(unsafe.Sizeof(Timespec{}))
	argsTimespecs = 64 // offset of the wait's Timespec; getEventsArg lies before it
)

// NextSQE returns a zeroed submission, valid until the next Submit. When the queue is full it
// submits first, which may run completion work but consumes no completion.
func (r *Ring) NextSQE() *SQE {
	if r.sqTail-atomic.LoadUint32(r.sqHeadK) >= r.sqEntries {
		r.makeRoom(1)
	}
	s := (*SQE)(unsafe.Add(r.sqes, uintptr(r.sqTail&r.sqMask)<<r.sqeShift))
	*s = SQE{}
	if r.sqeShift == 7 {
		*(*SQE)(unsafe.Add(unsafe.Pointer(s), 64)) = SQE{}
	}
	r.sqTail++
	return s
}

// Room makes sure that the next n submissions enter the kernel together, as a chain of linked ones
// has to.
func (r *Ring) Room(n uint32) {
	if r.sqEntries-(r.sqTail-atomic.LoadUint32(r.sqHeadK)) < n {
		r.makeRoom(n)
	}
}

// makeRoom submits until n slots are free. The kernel takes every entry unless it is out of memory,
// which passes; a queue that stays full is a broken ring.
func (r *Ring) makeRoom(n uint32) {
	for range 100_000 {
		if err := r.Submit(); err != nil {
			panic(err)
		}
		if r.sqEntries-(r.sqTail-atomic.LoadUint32(r.sqHeadK)) >= n {
			return
		}
		runtime.Gosched()
	}
	panic("uring: submission queue stays full: the kernel takes no more entries")
}

// Pending is the number of prepared entries that the kernel has not taken yet.
func (r *Ring) Pending() uint32 { return r.sqTail - atomic.LoadUint32(r.sqHeadK) }

// publish makes prepared submissions and consumed completions visible to the kernel. The stores
// pair with the acquire load of the SQ tail in io_sqring_entries and of the CQ head in
// io_cqring_queued.
func (r *Ring) publish() (pending uint32) {
	if r.cqHead != r.cqHeadSeen {
		atomic.StoreUint32(r.cqHeadK, r.cqHead)
		r.cqHeadSeen = r.cqHead
	}
	pending = r.Pending()
	if pending != 0 {
		atomic.StoreUint32(r.sqTailK, r.sqTail)
	}
	return pending
}

// Submit hands all prepared entries to the kernel without waiting and runs deferred completion
// work.
func (r *Ring) Submit() error { return r.SubmitAndWait(0, 0) }

// SubmitAndWait submits and waits until at least n completions are there, or until the timeout is
// over if it is not zero. It may return nil early, after a signal or when the kernel is short of
// memory, so callers loop; entries not taken stay prepared for the next call.
func (r *Ring) SubmitAndWait(n uint32, timeout time.Duration) error {
	pending := r.publish()
	for {
		var took int
		var e syscall.Errno
		if n == 0 || r.Ready() >= n {
			if pending == 0 && !r.needEnter() {
				return nil
			}
			took, e = sysEnter(r.enterFD, pending, r.enterFix|enterGetEvents)
		} else {
			if r.spin.most > 0 && timeout <= 0 {
				took, e = r.spinWait(pending, n)
			} else {
				took, e = r.wait(pending, n, timeout)
			}
		}
		switch e {
		case 0:
			// The kernel stops before the wait if it could not take all entries.
			if uint32(took) >= pending || took == 0 {
				return nil
			}
			pending = r.publish()
		case unix.ETIME:
			return ErrTimeout
		case unix.EINTR, unix.EAGAIN, unix.EBUSY:
			// EAGAIN and EBUSY: no memory for requests, or completions have overflown.
			// Both pass when the caller consumes completions.
			return nil
		default:
			return fmt.Errorf("io_uring_enter: %w", e)
		}
	}
}

func (r *Ring) wait(pending, n uint32, timeout time.Duration) (int, syscall.Errno) {
	if r.hold {
		took, e, over := r.holdWait(pending, n, timeout)
		if over {
			return took, e
		}
		pending = r.Pending()
		if timeout > 0 {
			timeout -= holdTime
		}
	}
	flags := r.enterFix | enterGetEvents
	if timeout <= 0 {
		return sysEnterWait(r.enterFD, pending, n, flags, 0, 8)
	}
	arg, size := r.timeoutArg(timeout)
	return sysEnterWait(r.enterFD, pending, n, flags|enterExtArg, arg, size)
}

// timeoutArg is the argument of an enter that waits so long. It lies in mapped memory.
func (r *Ring) timeoutArg(timeout time.Duration) (arg, size uintptr) {
	a := (*getEventsArg)(unsafe.Pointer(unsafe.SliceData(r.args.b)))
	ts := (*Timespec)(unsafe.Pointer(&r.args.b[argsTimespecs]))
	*ts = timespec(timeout)
	*a = getEventsArg{ts: uint64(uintptr(unsafe.Pointer(ts)))}
	return uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a)
}

// needEnter reports whether an enter without submissions can do anything: deferred work runs only
// there, and overflown completions are flushed only there.
func (r *Ring) needEnter() bool {
	return r.Deferred() || atomic.LoadUint32(r.sqFlagsK)&sqCQOverflow != 0
}

// Ready is the number of completions that Peek would deliver. The load pairs with the release
// store of the CQ tail in io_commit_cqring.
func (r *Ring) Ready() uint32 {
	r.cqTail = atomic.LoadUint32(r.cqTailK)
	return r.cqTail - r.cqHead
}

// Peek returns the next completion, or nil. It stays valid until Advance has consumed it and the
// ring is entered again.
func (r *Ring) Peek() *CQE {
	if r.cqHead == r.cqTail && r.Ready() == 0 {
		return nil
	}
	return (*CQE)(unsafe.Add(r.cqes, uintptr(r.cqHead&r.cqMask)*unsafe.Sizeof(CQE{})))
}

// Advance consumes n completions.
func (r *Ring) Advance(n uint32) {
	r.cqHead += n
	// The kernel learns of it at the next enter; before that only if room could become short.
	if r.cqHead-r.cqHeadSeen >= r.cqEntries/4 {
		atomic.StoreUint32(r.cqHeadK, r.cqHead)
		r.cqHeadSeen = r.cqHead
	}
}

// Overflow counts completions that the kernel dropped for want of memory; it should stay zero.
func (r *Ring) Overflow() uint32 { return atomic.LoadUint32(r.cqOverflowK) }

func timespec(d time.Duration) Timespec {
	return Timespec{Sec: int64(d / time.Second), Nsec: int64(d % time.Second)}
}

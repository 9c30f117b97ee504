package uring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options say how a ring is made. The zero value is a plain ring that any one thread at a time may
// use.
type Options struct {
	// CQEntries is the size of the completion queue; 0 means twice the submissions.
	CQEntries uint32
	// SingleIssuer promises that only the thread that calls New submits and waits. With it the
	// kernel defers completion work to that thread's enters (SINGLE_ISSUER, DEFER_TASKRUN),
	// and the ring's descriptor is registered with the thread.
	SingleIssuer bool
	// Hold is for rings of locked goroutines that wait often and not for long: a wait keeps its P
	// for a while, which spares the runtime's monitor much work. New raises GOMAXPROCS by one for
	// each such ring, so that others do not want for one.
	Hold bool
	// SQE128 makes submissions of 128 bytes, as ublk's control commands need them.
	SQE128 bool
}

// Ring is one io_uring. See the package comment for who may call.
type Ring struct {
	fd       int
	enterFD  int    // fd, or its index if it is registered with the thread
	enterFix uint32 // IORING_ENTER_REGISTERED_RING or 0
	flags    uint32
	features uint32

	// Submission queue. sqTail counts prepared entries; the kernel sees it at the next enter.
	sqHeadK, sqTailK, sqFlagsK *uint32
	sqTail                     uint32
	sqMask, sqEntries          uint32
	sqes                       unsafe.Pointer
	sqeShift                   uint

	// Completion queue. cqHead counts consumed entries; the kernel sees it at the next enter.
	cqHeadK, cqTailK, cqOverflowK *uint32
	cqHead, cqHeadSeen, cqTail    uint32
	cqMask, cqEntries             uint32
	cqes                          unsafe.Pointer

	ringMem, sqeMem []byte
	args            *Arena // getEventsArg, then one Timespec for the wait and one per SQ slot

	spin           spinner
	hold           bool // Options.Hold
	files, buffers bool // tables are registered
}

// ErrTimeout is returned by SubmitAndWait when the time is over before enough completions came.
var ErrTimeout = errors.New("io_uring wait: timed out")

// New makes a ring with room for entries submissions, rounded up to a power of two. Flags that the
// running kernel does not know are left out one after the other.
func New(entries uint32, o Options) (*Ring, error) {
	flags := uint32(setupClamp | setupSubmitAll | setupNoSQArray)
	if o.CQEntries != 0 {
		flags |= setupCQSize
	}
	if o.SQE128 {
		flags |= setupSQE128
	}
	if o.SingleIssuer {
		flags |= setupSingleIssuer | setupDeferTaskrun | setupCoopTaskrun | setupTaskrunFlag
	}
	var p params
	var fd int
	// Newest first: NO_SQARRAY is Linux 6.6, DEFER_TASKRUN 6.1, SINGLE_ISSUER 6.0,
	// COOP_TASKRUN 5.19, SUBMIT_ALL 5.18. The kernel answers EINVAL to what it does not know.
	drop := []uint32{
		0, setupNoSQArray, setupDeferTaskrun, setupSingleIssuer,
		setupCoopTaskrun | setupTaskrunFlag, setupSubmitAll,
	}
	var e syscall.Errno
	for _, d := range drop {
		flags &^= d
		if flags&setupDeferTaskrun != 0 {
			// DEFER_TASKRUN makes COOP_TASKRUN pointless but accepts it.
			flags |= setupCoopTaskrun
		}
		p = params{flags: flags, cqEntries: o.CQEntries}
		if fd, e = sysSetup(entries, &p); e != unix.EINVAL {
			break
		}
	}
	if e != 0 {
		return nil, setupError(e)
	}
	r := &Ring{fd: fd, enterFD: fd, flags: flags, features: p.features}
	if err := r.mapRings(&p); err != nil {
		_ = r.Close()
		return nil, err
	}
	if o.SingleIssuer {
		r.registerRingFD()
	}
	if r.hold = o.Hold; r.hold {
		addHolder()
	}
	return r, nil
}

func setupError(e syscall.Errno) error {
	switch e {
	case unix.ENOSYS:
		return fmt.Errorf("io_uring_setup: %w (the kernel is built without io_uring)", e)
	case unix.EPERM:
		return fmt.Errorf("io_uring_setup: %w (see sysctl kernel.io_uring_disabled)", e)
	case unix.ENOMEM:
		return fmt.Errorf("io_uring_setup: %w (raise RLIMIT_MEMLOCK)", e)
	case unix.EMFILE, unix.ENFILE:
		return fmt.Errorf("io_uring_setup: %w (raise RLIMIT_NOFILE)", e)
	}
	return fmt.Errorf("io_uring_setup: %w", e)
}

func (r *Ring) mapRings(p *params) error {
	if p.features&(featSingleMmap|featNoDrop|featExtArg) != featSingleMmap|featNoDrop|featExtArg {
		return fmt.Errorf("io_uring_setup: features %#x: needs Linux 5.11", p.features)
	}
	if r.flags&setupSQE128 != 0 {
		r.sqeShift = 7
	} else {
		r.sqeShift = 6
	}
	size := p.cqOff.cqes + p.cqEntries*uint32(unsafe.Sizeof(CQE{}))
	if r.flags&setupNoSQArray == 0 {
		size = max(size, p.sqOff.array+p.sqEntries*4)
	}
	var err error
	const prot, how = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.ringMem, err = unix.Mmap(r.fd, offSQRing, int(size), prot, how); err != nil {
		return fmt.Errorf("map io_uring rings: %w", err)
	}
	r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)<<r.sqeShift, prot, how)
	if err != nil {
		return fmt.Errorf("map io_uring submissions: %w", err)
	}
	if r.args, err = NewArena(argsTimespecs + (int(p.sqEntries)+1)*timespecSize); err != nil {
		return err
	}
	_ = unix.Madvise(r.ringMem, unix.MADV_DONTFORK)
	_ = unix.Madvise(r.sqeMem, unix.MADV_DONTFORK)

	base := unsafe.Pointer(unsafe.SliceData(r.ringMem))
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Add(base, off)) }
	r.sqHeadK, r.sqTailK, r.sqFlagsK = at(p.sqOff.head), at(p.sqOff.tail), at(p.sqOff.flags)
	r.sqEntries, r.sqMask = p.sqEntries, *at(p.sqOff.mask)
	r.sqes = unsafe.Pointer(unsafe.SliceData(r.sqeMem))
	r.sqTail = atomic.LoadUint32(r.sqTailK)
	r.cqHeadK, r.cqTailK, r.cqOverflowK = at(p.cqOff.head), at(p.cqOff.tail), at(p.cqOff.overflow)
	r.cqEntries, r.cqMask = p.cqEntries, *at(p.cqOff.mask)
	r.cqes = unsafe.Add(base, p.cqOff.cqes)
	if r.flags&setupNoSQArray == 0 {
		// Slot i always holds entry i, so that the indirection is filled in once.
		for i := range r.sqEntries {
			*at(p.sqOff.array + 4*i) = i
		}
	}
	return nil
}

// Close unmaps the rings and closes the descriptor. The kernel cancels what is in flight and drops
// registered files and buffers some time later; [Ring.UnregisterFiles] does it at once. Memory
// named by submissions still in flight must stay mapped.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	r.unregisterRingFD()
	if r.hold {
		dropHolder()
	}
	var errs []error
	if r.sqeMem != nil {
		errs = append(errs, unix.Munmap(r.sqeMem))
	}
	if r.ringMem != nil {
		errs = append(errs, unix.Munmap(r.ringMem))
	}
	errs = append(errs, unix.Close(r.fd), r.args.Free())
	r.sqeMem, r.ringMem, r.fd, r.enterFD = nil, nil, -1, -1
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close io_uring: %w", err)
	}
	return nil
}

// FD is the ring's descriptor, as MSG_RING of another ring names it.
func (r *Ring) FD() int { return r.fd }

// Deferred reports whether completion work runs only inside this ring's enters (DEFER_TASKRUN).
func (r *Ring) Deferred() bool { return r.flags&setupDeferTaskrun != 0 }

// Entries returns the sizes of the submission and the completion queue.
func (r *Ring) Entries() (sq, cq uint32) { return r.sqEntries, r.cqEntries }

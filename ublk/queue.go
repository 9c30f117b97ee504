package ublk

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
	"ubcache/ublk/internal/sys"
)

// Ring, SQE and File are the io_uring types that a handler meets.
type (
	Ring = uring.Ring
	SQE  = uring.SQE
	File = uring.File
)

// charSlot is the slot of /dev/ublkcN in the ring's registered files. As the ring holds that
// reference, the driver does not let a new server recover the device before all I/O that a dead
// server had submitted through this ring is over.
const charSlot = 0

// memSlot is the slot of the queue's memory in mode RingCopy. The handler's files follow.
const memSlot = charSlot + 1

// ownUserData marks submissions of this package. Below it come the kind and the tag.
const (
	ownUserData = 1 << 63
	kindShift   = 32

	kindTag     = iota - 2 // fetch or commit
	kindWake               // poll of the eventfd
	kindIgnore             // a command whose result does not matter
	kindBuffer             // registration of a request's buffer by command
	kindCopyOut            // mode RingCopy: a write's data has been copied
	kindCopyIn             // mode RingCopy: a read's data could not be copied
)

// Queue is one queue of a device: a ring, a thread and the tags. All methods but Wake, ID and
// Device belong to the queue's thread.
type Queue struct {
	dev   *Device
	id    int
	depth int
	mode  CopyMode

	ring  *uring.Ring
	h     Handler
	descs *sys.Descriptors
	reqs  []Request
	mem   *uring.Arena // buffers of bufBytes, two for each tag, if mode.buffered
	spare []int        // offsets of those that no tag has
	aff   affinity
	fake  fakeDriver // tests only

	memFile *uring.FileArena // mode RingCopy: it holds mem

	owned    int // tags that the server has
	fetched  int // tags that the driver has
	aborted  int // tags that the driver has given back for good
	own      int // submissions of the handler in flight
	current  int // tag whose Handle is running, or -1
	files    []bool
	buffers  []bool
	startErr error

	wakeFD   int
	wakeMu   sync.Mutex // guards wakeFD against the queue's end
	pending  atomic.Uint32
	sleeping atomic.Uint32
	quiesced atomic.Bool // QUIESCE_DEV has succeeded: what it left fetched stays so
	killed   atomic.Bool // end without the driver's leave
}

// ID is the queue's number, from 0.
func (q *Queue) ID() int { return q.id }

// Depth is the number of tags.
func (q *Queue) Depth() int { return q.depth }

// Device is the queue's device.
func (q *Queue) Device() *Device { return q.dev }

// Mode is how request data is reached.
func (q *Queue) Mode() CopyMode { return q.mode }

// Ring is the queue's ring. Submissions must come from NewSQE, which counts them.
func (q *Queue) Ring() *Ring { return q.ring }

// InFlight is the number of requests that the handler has.
func (q *Queue) InFlight() int { return q.owned }

// Request is the request of a tag that the handler has.
func (q *Queue) Request(tag uint16) *Request { return &q.reqs[tag] }

// NewSQE returns a zeroed submission with user data set, to be filled in by a Prep method before
// the next call of a method of q. Its completion goes to Handler.Completion. The top bit of
// userData must be 0.
func (q *Queue) NewSQE(userData uint64) *SQE {
	if userData&ownUserData != 0 {
		panic(fmt.Sprintf("ublk: NewSQE: user data %#x has the top bit set", userData))
	}
	s := q.ring.NextSQE()
	s.UserData = userData
	q.own++
	return s
}

// AddFile registers fd with the ring and returns how submissions name it. The ring holds its own
// reference until the queue ends or RemoveFile.
func (q *Queue) AddFile(fd int) (File, error) {
	for i, used := range q.files {
		if used {
			continue
		}
		slot := memSlot + 1 + i
		if err := q.ring.RegisterFile(slot, fd); err != nil {
			return File{}, err
		}
		q.files[i] = true
		return uring.Fixed(slot), nil
	}
	return File{}, fmt.Errorf("register file: all %d slots taken (raise Options.Files)",
		len(q.files))
}

// RemoveFile gives back a file of AddFile.
func (q *Queue) RemoveFile(f File) error {
	slot, ok := f.Slot()
	i := slot - memSlot - 1
	if !ok || i < 0 || i >= len(q.files) || !q.files[i] {
		return fmt.Errorf("unregister file: not from AddFile")
	}
	q.files[i] = false
	return q.ring.RegisterFile(slot, -1)
}

// AddBuffer registers memory outside the Go heap with the ring and returns the buffer index for
// PrepReadFixed and PrepWriteFixed, which then take addresses inside it.
func (q *Queue) AddBuffer(b []byte) (uint16, error) {
	for i, used := range q.buffers {
		if used {
			continue
		}
		if err := q.ring.RegisterBuffer(q.depth+i, b); err != nil {
			return 0, err
		}
		q.buffers[i] = true
		return uint16(q.depth + i), nil
	}
	return 0, fmt.Errorf("register buffer: all %d slots taken (raise Options.Buffers)",
		len(q.buffers))
}

// RemoveBuffer gives back a buffer of AddBuffer.
func (q *Queue) RemoveBuffer(index uint16) error {
	i := int(index) - q.depth
	if i < 0 || i >= len(q.buffers) || !q.buffers[i] {
		return fmt.Errorf("unregister buffer %d: not from AddBuffer", index)
	}
	q.buffers[i] = false
	return q.ring.RegisterBuffer(int(index), nil)
}

// Wake makes the loop call Handler.Woken soon. Any thread may call it, at any time; calls that come
// before the loop gets to it are one.
func (q *Queue) Wake() {
	// The loop stores sleeping before it looks at pending; here it is the other way round, so
	// one of the two sees the other.
	if q.pending.Swap(1) != 0 || q.sleeping.Load() == 0 {
		return
	}
	q.wakeMu.Lock()
	defer q.wakeMu.Unlock()
	if q.wakeFD < 0 {
		return
	}
	for {
		if _, err := unix.Write(q.wakeFD, wakeOne[:]); err != unix.EINTR {
			return
		}
	}
}

var wakeOne = [8]byte{1}

// Complete ends a request. res is the number of bytes for reads and writes, 0 for the other
// operations, or a negated errno. A count that is not the whole request becomes -EIO: the driver
// takes short counts for whole ones in some modes. The request must not be touched afterwards.
// Completing a tag that the handler does not have is a bug in the handler and panics.
func (q *Queue) Complete(tag uint16, res int32) {
	if int(tag) >= len(q.reqs) || q.reqs[tag].state != tagOwned {
		panic(fmt.Sprintf("ublk: Complete: queue %d tag %d is not with the handler", q.id, tag))
	}
	r := &q.reqs[tag]
	if res >= 0 {
		switch {
		case !r.HasData():
			res = 0
		case int64(res) != r.Bytes():
			res = -int32(unix.EIO)
		}
	}
	copied := q.mode == RingCopy && res > 0 && r.Op == OpRead && r.Data != nil
	if copied {
		q.copyIn(r)
	}
	if r.manual {
		s := q.command(sys.IOUnregisterBuf, tag, 0, uint64(r.BufIndex), kindIgnore)
		if copied {
			s.Link()
		}
	}
	r.state = tagFetched
	r.Data = nil
	q.owned--
	q.fetched++
	q.command(sys.IOCommitAndFetchReq, tag, res, r.addr, kindTag)
}

// CompleteOK ends a request successfully.
func (q *Queue) CompleteOK(tag uint16) {
	res := int32(0)
	if int(tag) < len(q.reqs) && q.reqs[tag].HasData() {
		res = int32(q.reqs[tag].Bytes())
	}
	q.Complete(tag, res)
}

// CompleteErr fails a request. The block layer keeps EOPNOTSUPP, ETIMEDOUT, ENOSPC, ENOLINK,
// EREMOTEIO, EBADE, ENODATA, EILSEQ, ENOMEM, EBUSY, EAGAIN, ENODEV, ETOOMANYREFS, EOVERFLOW, ETIME
// and EINVAL and makes EIO of all others. EAGAIN and EOPNOTSUPP make some clients try the same
// again.
func (q *Queue) CompleteErr(tag uint16, errno syscall.Errno) {
	if errno == 0 {
		errno = unix.EIO
	}
	q.Complete(tag, -int32(errno))
}

// command sends an I/O command to the driver at the next enter.
func (q *Queue) command(op uint32, tag uint16, res int32, addr uint64, kind uint64) *SQE {
	if q.fake != nil {
		return q.fake.command(q, op, tag, res, addr)
	}
	s := q.ring.NextSQE()
	s.PrepUringCmd(uring.Fixed(charSlot), op)
	s.UserData = ownUserData | kind<<kindShift | uint64(tag)
	sys.PutIOCmd(s.Cmd(), sys.IOCmd{QueueID: uint16(q.id), Tag: tag, Result: res, Addr: addr})
	if q.mode.registers() && kind == kindTag {
		// struct ublk_auto_buf_reg travels in the submission's addr: buffer index, flags.
		s.Addr = uint64(tag) | sys.AutoBufRegFallback<<16
	}
	return s
}

// fakeDriver stands in for the driver's side of the I/O commands.
type fakeDriver interface {
	command(q *Queue, op uint32, tag uint16, res int32, addr uint64) *SQE
}

package daemon

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm/hostile"
	"ubcache/cache"
	"ubcache/internal/uring"
	"ubcache/ublk"
)

// queue serves one ublk queue of a backing device: it is the queue's ublk.Handler and the
// cache.Driver of its lane, and everything in it happens on the queue's thread.
type queue struct {
	driver
	q       *ublk.Queue
	c       *cache.Cache
	backing cache.BackingID
	ssd     device
	disk    device
	reqs    []cache.Request // by tag
	attrs   attributes
	pi      *integrity // nil: the device has no integrity metadata
	shared  *sharedTable
	parts   parts
	number  uint32 // of the device, in answers
	fail    func(error)
	failed  func(*cache.Request) // is told of requests that failed

	calls threadCalls
	ended chan struct{} // closed when the thread takes no calls any more
}

// reqOps are the engine's names of the driver's requests.
var reqOps = [...]cache.ReqOp{
	ublk.OpRead: cache.ReqRead, ublk.OpWrite: cache.ReqWrite, ublk.OpFlush: cache.ReqFlush,
	ublk.OpDiscard: cache.ReqDiscard, ublk.OpWriteZeroes: cache.ReqWriteZeroes,
}

func known(op ublk.Op) bool {
	return op <= ublk.OpFlush || op == ublk.OpDiscard || op == ublk.OpWriteZeroes
}

// Start implements ublk.Handler.
func (h *queue) Start(q *ublk.Queue) error {
	h.q = q
	hostile.Always()
	h.init(q, 4*q.Depth())
	h.reqs = make([]cache.Request, q.Depth())
	h.attrs.init(q.Depth())
	h.parts.init(q.Depth())
	h.where = h.place
	var err error
	if h.pi, err = integrityOf(q, h.fail); err != nil {
		return err
	}
	for id, d := range map[cache.BackingID]device{cache.SSD: h.ssd, h.backing: h.disk} {
		file, err := q.AddFile(d.fd)
		if err != nil {
			return err
		}
		h.files[id] = deviceFile{file: file, device: d}
	}
	h.lane = h.c.NewLane(h)
	return nil
}

// Handle implements ublk.Handler: it makes the request one of the engine's.
func (h *queue) Handle(q *ublk.Queue, r *ublk.Request) {
	defer crashOnPanic()
	if !known(r.Op) {
		q.CompleteErr(r.Tag, unix.EINVAL)
		return
	}
	if r.Flags&ublk.InShared != 0 {
		h.handleShared(q, r)
		return
	}
	c := &h.reqs[r.Tag]
	c.Backing, c.Op = h.backing, reqOps[r.Op]
	c.FUA, c.NoUnmap = r.Flags&ublk.FUA != 0, r.Flags&ublk.NoUnmap != 0
	c.Off, c.Len = r.Offset(), r.Bytes()
	c.Data, c.Tag = r.Data, uint32(r.Tag)
	var opaque []byte
	if h.pi != nil && r.HasData() {
		c.Data = h.pi.data(r)
		if r.Op == ublk.OpWrite {
			var errno syscall.Errno
			if opaque, errno = h.pi.receive(r, c.Data); errno != 0 {
				q.CompleteErr(r.Tag, errno)
				return
			}
		}
	}
	h.attach(r, c, opaque)
	h.lane.Submit(c)
}

// Completion implements ublk.Handler.
func (h *queue) Completion(_ *ublk.Queue, userData uint64, res int32, _ uint32) {
	h.complete(userData, res)
}

// Woken implements ublk.Handler.
func (h *queue) Woken(*ublk.Queue) {
	h.calls.run()
	h.lane.Run()
}

// BeforeWait implements ublk.Handler: the next round reads the clock anew.
func (h *queue) BeforeWait(*ublk.Queue) {
	h.sendHeld()
	h.answerParts()
	h.now = 0
}

// Stop implements ublk.Handler. A commit of the journal that other lanes wait for may still be
// under way on this ring; the queue waits for it.
func (h *queue) Stop(*ublk.Queue) { close(h.ended) }

// Finish implements cache.Driver.
func (h *queue) Finish(r *cache.Request) {
	if r.Tag&partTag != 0 {
		h.finishPart(r)
		return
	}
	if h.pi != nil && r.Op == cache.ReqRead && r.Err == nil {
		r.Err = h.pi.deliver(h.q.Request(uint16(r.Tag)), r)
	}
	r.Data = nil
	if r.Err != nil {
		h.failed(r)
		h.q.CompleteErr(uint16(r.Tag), errnoOf(r.Err))
		return
	}
	h.q.CompleteOK(uint16(r.Tag))
}

// CopyOut implements cache.Driver.
func (h *queue) CopyOut(r *cache.Request, off int, dst []byte) error {
	if r.Data != nil {
		copy(dst, r.Data[off:])
		return nil
	}
	tag, at := h.place(r)
	return h.q.CopyOut(h.q.Request(tag), int64(at)+int64(off), dst)
}

// CopyIn implements cache.Driver.
func (h *queue) CopyIn(r *cache.Request, off int, src []byte) error {
	if r.Data != nil {
		copy(r.Data[off:], src)
		return nil
	}
	tag, at := h.place(r)
	return h.q.CopyIn(h.q.Request(tag), int64(at)+int64(off), src)
}

// Swap implements cache.Swapper: the queue has other memory for what has come through the block device, and
// whose memory is the queue's.
func (h *queue) Swap(r *cache.Request) (old int, ok bool) {
	if r.Tag&partTag != 0 || h.pi != nil || r.Data == nil {
		return 0, false
	}
	k := h.q.Request(uint16(r.Tag))
	if k.Data == nil || uring.Addr(k.Data) != uring.Addr(r.Data) {
		return 0, false
	}
	if old, ok = h.q.Replace(k.Tag); ok {
		r.Data = k.Data
	}
	return old, ok
}

// Reclaim implements cache.Swapper.
func (h *queue) Reclaim(old int) { h.q.Reclaim(old) }

// Wake implements cache.Driver; any thread may call it.
func (h *queue) Wake() { h.q.Wake() }

// errnoOf is the one place where the engine's errors become what the client of the block device
// sees. EAGAIN and EOPNOTSUPP would make clients try the same again for ever.
func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return unix.EIO
	}
	switch e {
	case unix.ENOSPC, unix.EINVAL, unix.EFAULT, unix.EILSEQ, unix.ENODATA, unix.ETIMEDOUT, unix.ENODEV,
		attrs.ErrnoRefused, attrs.ErrnoDeadline:
		return e
	}
	return unix.EIO
}

// crashOnPanic ends the process when the engine finds an invariant broken: locks may be held and
// requests lost, and a new daemon takes the devices over with their I/O waiting.
func crashOnPanic() {
	p := recover()
	if p == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "ubcache: panic: %v\n%s", p, debug.Stack())
	os.Exit(exitPanic)
}

// exitPanic is EX_SOFTWARE of sysexits.h.
const exitPanic = 70

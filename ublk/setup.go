package ublk

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
	"ubcache/ublk/internal/sys"
)

// init makes everything that the queue needs, on its thread.
func (q *Queue) init(charFD int, o *Options, info *sys.DevInfo) (err error) {
	q.wakeFD, q.current = -1, -1
	cq := uint32(2 * (q.depth + o.Entries + 8))
	q.ring, err = uring.New(uint32(q.depth+o.Entries+8), uring.Options{
		SingleIssuer: true, Hold: true, CQEntries: cq,
	})
	if err != nil {
		return err
	}
	if err := q.ring.RegisterFileTable(charSlot + 1 + o.Files); err != nil {
		return err
	}
	if err := q.ring.RegisterBufferTable(q.depth + max(o.Buffers, 1)); err != nil {
		return err
	}
	q.files, q.buffers = make([]bool, o.Files), make([]bool, o.Buffers)
	if q.fake == nil {
		if err := q.ring.RegisterFile(charSlot, charFD); err != nil {
			return err
		}
	}
	if q.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	return q.initTags(int(info.MaxIOBufBytes))
}

func (q *Queue) initTags(bufBytes int) (err error) {
	page := os.Getpagesize()
	bufBytes = (bufBytes + page - 1) &^ (page - 1)
	if q.mode == Copy {
		if q.mem, err = uring.NewArena(q.depth * bufBytes); err != nil {
			return err
		}
	}
	q.reqs = make([]Request, q.depth)
	for i := range q.reqs {
		r := &q.reqs[i]
		r.Tag, r.BufIndex = uint16(i), uint16(i)
		if q.mode == Copy {
			r.addr = uint64(q.mem.Addr()) + uint64(i*bufBytes)
		}
	}
	return nil
}

// Buffer is the tag's own memory in mode Copy, as long as the request. The driver leaves it alone
// if the data lies in shared memory (flag InShared), and a handler can use it then for what must
// not change while it is looked at.
func (q *Queue) Buffer(r *Request) []byte { return q.buffer(r, r.Bytes()) }

// buffer is the tag's memory in mode Copy.
func (q *Queue) buffer(r *Request, n int64) []byte {
	off := int(r.addr - uint64(q.mem.Addr()))
	return q.mem.Slice(off, int(n))
}

// descSize is the stride of descriptors; before Linux 7.3 the field is 0.
func descSize(info *sys.DevInfo) int {
	if info.IODescSize != 0 && Features(info.Flags).Has(FeatureIODescSize) {
		return int(info.IODescSize)
	}
	return len(sys.Bytes(&sys.IODesc{}))
}

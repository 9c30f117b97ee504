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
	entries := uint32(q.depth + o.Entries + 8)
	if q.mode == RingCopy {
		entries += uint32(q.depth)
	}
	q.ring, err = uring.New(entries, uring.Options{
		SingleIssuer: true, Hold: true, CQEntries: 2 * entries,
	})
	if err != nil {
		return err
	}
	if err := q.ring.RegisterFileTable(memSlot + 1 + o.Files); err != nil {
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
	// As many again to replace them, see Replace: memory that is not used costs nothing.
	size := 2 * q.depth * bufBytes
	switch q.mode {
	case Copy:
		if q.mem, err = uring.NewArena(size); err != nil {
			return err
		}
	case RingCopy:
		if q.memFile, err = uring.NewFileArena(size); err != nil {
			return err
		}
		q.mem = &q.memFile.Arena
		if err := q.ring.RegisterFile(memSlot, q.memFile.FD()); err != nil {
			return err
		}
	}
	q.reqs = make([]Request, q.depth)
	for i := range q.reqs {
		r := &q.reqs[i]
		r.Tag, r.BufIndex = uint16(i), uint16(i)
		q.spare = append(q.spare, (q.depth+i)*bufBytes)
		q.place(r, i*bufBytes)
	}
	return nil
}

// place makes memory from that offset on the tag's. What the next commit says is where the driver takes the
// data of a read from (ublk_ch_uring_cmd_local: the command's addr is stored before the request is
// completed, in all versions).
func (q *Queue) place(r *Request, off int) {
	r.mem = off
	if q.mode == Copy {
		r.addr = uint64(q.mem.Addr()) + uint64(off)
	}
}

// Replace gives a request that the handler has, and its tag from then on, other memory with the same
// content: r.Data is another slice. I/O that does not end may go on using the old memory, which is given
// back with Reclaim when it has. ok is false if the request has no memory of the queue's, or none is left.
func (q *Queue) Replace(tag uint16) (old int, ok bool) {
	r := &q.reqs[tag]
	if r.Data == nil || !q.mode.buffered() || len(q.spare) == 0 {
		return 0, false
	}
	old = r.mem
	q.place(r, q.spare[len(q.spare)-1])
	q.spare = q.spare[:len(q.spare)-1]
	data := q.buffer(r, r.Bytes())
	copy(data, r.Data)
	r.Data = data
	return old, true
}

// Reclaim takes back the memory that Replace has replaced.
func (q *Queue) Reclaim(old int) { q.spare = append(q.spare, old) }

// Buffered reports whether the queue has memory for the data of each request, Request.Data: in modes
// Copy and RingCopy.
func (q *Queue) Buffered() bool { return q.mode.buffered() }

// Buffer is the tag's own memory if the queue is Buffered, as long as the request. It is not used
// for data that lies in shared memory (flag InShared), and a handler can use it then for what must
// not change while it is looked at.
func (q *Queue) Buffer(r *Request) []byte { return q.buffer(r, r.Bytes()) }

func (q *Queue) buffer(r *Request, n int64) []byte { return q.mem.Slice(r.mem, int(n)) }

// descSize is the stride of descriptors; before Linux 7.3 the field is 0.
func descSize(info *sys.DevInfo) int {
	if info.IODescSize != 0 && Features(info.Flags).Has(FeatureIODescSize) {
		return int(info.IODescSize)
	}
	return len(sys.Bytes(&sys.IODesc{}))
}

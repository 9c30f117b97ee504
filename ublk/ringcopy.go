package ublk

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// Mode RingCopy: the driver registers a request's pages with the ring, and reading the file that holds
// the queue's memory into them, or writing them to it, is the copy that mode Copy leaves to the
// driver. It is one more submission for each request, carried out while it is submitted. The driver
// copies as between a process and the kernel, page by page; this is a copy within the kernel.

// copyOut starts the copy of a write's data to the queue's memory.
func (q *Queue) copyOut(r *Request) {
	r.state = tagCopying
	s := q.ring.NextSQE()
	s.PrepWriteFixed(uring.Fixed(memSlot), r.BufIndex, 0, uint32(r.Bytes()), uint64(r.mem), 0)
	s.UserData = ownUserData | kindCopyOut<<kindShift | uint64(r.Tag)
}

// copiedOut gives a write to the handler.
func (q *Queue) copiedOut(r *Request, res int32) {
	if int64(res) == r.Bytes() {
		q.deliver(r)
		return
	}
	r.state = tagOwned
	q.copyFailed(r, res)
}

// copyIn copies a read's data to the request. What is submitted next, up to the commit, waits for that,
// and if it fails is cancelled without a word of its own.
func (q *Queue) copyIn(r *Request) {
	const chain = 3
	q.ring.Room(chain)
	s := q.ring.NextSQE()
	s.PrepReadFixed(uring.Fixed(memSlot), r.BufIndex, 0, uint32(r.Bytes()), uint64(r.mem), 0)
	s.UserData = ownUserData | kindCopyIn<<kindShift | uint64(r.Tag)
	s.Link()
	s.Quiet()
}

// copyInFailed takes back a request that was to be committed and fails it.
func (q *Queue) copyInFailed(r *Request, res int32) {
	r.state = tagOwned
	q.fetched--
	q.owned++
	q.copyFailed(r, res)
}

func (q *Queue) copyFailed(r *Request, res int32) {
	err := io.ErrUnexpectedEOF
	if res < 0 {
		err = unix.Errno(-res)
	}
	q.dev.onError(fmt.Errorf("ublk%d: queue %d: copy data of %v: %w", q.dev.id, q.id, r, err))
	q.Complete(r.Tag, -int32(unix.EIO))
}

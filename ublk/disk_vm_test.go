//go:build vm

package ublk_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// disk is the store of the test servers: a memfd, which zero copy can address as a file and the
// other modes as memory.
type disk struct {
	fd  int
	mem []byte

	reads, writes, flushes, fua, discards, zeroes atomic.Int64

	mu    sync.Mutex
	queue []*diskQueue
}

const testDiskSize = 64 << 20

func newDisk(t testing.TB, size int) *disk {
	t.Helper()
	d, err := makeDisk(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

func makeDisk(size int) (*disk, error) {
	fd, err := unix.MemfdCreate("ublk-test", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	return mapDisk(fd, size)
}

func mapDisk(fd, size int) (*disk, error) {
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &disk{fd: fd, mem: mem}, nil
}

func (d *disk) close() {
	_ = unix.Munmap(d.mem)
	_ = unix.Close(d.fd)
}

func (d *disk) factory(int) (ublk.Handler, error) {
	q := &diskQueue{d: d}
	d.mu.Lock()
	d.queue = append(d.queue, q)
	d.mu.Unlock()
	return q, nil
}

// diskQueue serves one queue from the disk, in any mode.
type diskQueue struct {
	d    *disk
	file ublk.File

	// hold keeps requests until it is cleared and the queue is woken.
	hold    atomic.Bool
	held    []uint16
	holding atomic.Int64
	stopped atomic.Bool
}

func (h *diskQueue) Start(q *ublk.Queue) (err error) {
	h.file, err = q.AddFile(h.d.fd)
	return err
}

func (h *diskQueue) Handle(q *ublk.Queue, r *ublk.Request) {
	if h.hold.Load() {
		h.held = append(h.held, r.Tag)
		h.holding.Add(1)
		return
	}
	h.serve(q, r)
}

func (h *diskQueue) serve(q *ublk.Queue, r *ublk.Request) {
	d := h.d
	if r.Flags&ublk.FUA != 0 {
		d.fua.Add(1)
	}
	switch r.Op {
	case ublk.OpRead:
		d.reads.Add(1)
		h.read(q, r)
	case ublk.OpWrite:
		d.writes.Add(1)
		h.write(q, r)
	case ublk.OpFlush:
		d.flushes.Add(1)
		q.CompleteOK(r.Tag)
	case ublk.OpDiscard:
		d.discards.Add(1)
		clear(d.span(r))
		q.CompleteOK(r.Tag)
	case ublk.OpWriteZeroes:
		d.zeroes.Add(1)
		clear(d.span(r))
		q.CompleteOK(r.Tag)
	default:
		q.CompleteErr(r.Tag, unix.EOPNOTSUPP)
	}
}

func (d *disk) span(r *ublk.Request) []byte { return d.mem[r.Offset() : r.Offset()+r.Bytes()] }

func (h *diskQueue) read(q *ublk.Queue, r *ublk.Request) {
	if q.Mode() == ublk.AutoZeroCopy && r.Sectors != 8 {
		s := q.NewSQE(uint64(r.Tag))
		s.PrepReadFixed(h.file, r.BufIndex, 0, uint32(r.Bytes()), uint64(r.Offset()), 0)
		return
	}
	h.finish(q, r, q.CopyIn(r, 0, h.d.span(r)))
}

func (h *diskQueue) write(q *ublk.Queue, r *ublk.Request) {
	if q.Mode() == ublk.AutoZeroCopy && r.Sectors != 8 {
		s := q.NewSQE(uint64(r.Tag))
		s.PrepWriteFixed(h.file, r.BufIndex, 0, uint32(r.Bytes()), uint64(r.Offset()), 0)
		return
	}
	h.finish(q, r, q.CopyOut(r, 0, h.d.span(r)))
}

func (h *diskQueue) finish(q *ublk.Queue, r *ublk.Request, err error) {
	if err != nil {
		println(err.Error())
		q.CompleteErr(r.Tag, unix.EIO)
		return
	}
	q.CompleteOK(r.Tag)
}

func (h *diskQueue) Completion(q *ublk.Queue, userData uint64, res int32, _ uint32) {
	q.Complete(uint16(userData), res)
}

func (h *diskQueue) Woken(q *ublk.Queue) {
	if h.hold.Load() {
		return
	}
	for _, tag := range h.held {
		h.holding.Add(-1)
		h.serve(q, q.Request(tag))
	}
	h.held = h.held[:0]
}

func (h *diskQueue) BeforeWait(*ublk.Queue) {}
func (h *diskQueue) Stop(*ublk.Queue)       { h.stopped.Store(true) }

func testOptions(mode ublk.CopyMode, size int) ublk.Options {
	return ublk.Options{
		ID: -1, Queues: 2, Depth: 64, MaxIOBytes: 256 << 10, Mode: mode,
		Params: ublk.Params{
			SizeBytes: uint64(size), LogicalBlockBytes: 512, PhysicalBlockBytes: 4096,
			VolatileCache: true, FUA: true,
			Discard: &ublk.DiscardParams{MaxDiscardBytes: 1 << 40, MaxZeroesBytes: 1 << 40},
		},
	}
}

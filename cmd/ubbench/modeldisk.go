package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// diskModel is a disk that does one request after the other, in the order in which they come, as a
// device does that does not know who waits. QEMU's throttled disks are no such thing: they have a
// queue for reads and one for writes and serve both in turn, so that a read never waits behind a flood of
// writes.
type diskModel struct {
	bytes  int64
	access time.Duration // of each request
	rate   int64         // bytes a second
}

// service is how long a request occupies the disk.
func (m *diskModel) service(n int64) time.Duration {
	return m.access + time.Duration(n)*time.Second/time.Duration(m.rate)
}

// modelDisk serves a model from memory, as a ublk device.
type modelDisk struct {
	diskModel
	ublk.HandlerFunc // its Start, Completion, Woken and Stop do nothing
	mem              []byte
	waiting          []dueRequest
	idleAt           time.Time // the disk has done all that is waiting
	armed            time.Time // up to when a timer runs
}

type dueRequest struct {
	tag uint16
	due time.Time
}

const modelDepth = 256

// serveModel makes the disk and returns its path. It is there until the process ends.
func serveModel(m diskModel) (string, error) {
	mem, err := unix.Mmap(-1, 0, int(m.bytes), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return "", fmt.Errorf("memory of a model disk: %w", err)
	}
	dev, err := ublk.Create(ublk.Options{
		ID: -1, Queues: 1, Depth: modelDepth, MaxIOBytes: 1 << 20, Entries: 2 * modelDepth,
		Params: ublk.Params{SizeBytes: uint64(m.bytes), VolatileCache: true, FUA: true},
	})
	if err != nil {
		return "", err
	}
	d := &modelDisk{diskModel: m, mem: mem}
	if err := dev.Start(func(int) (ublk.Handler, error) { return d, nil }); err != nil {
		return "", err
	}
	// In the order in which they come: the kernel has a scheduler for devices of one queue.
	none := filepath.Join("/sys/block", filepath.Base(dev.Path()), "queue/scheduler")
	return dev.Path(), os.WriteFile(none, []byte("none"), 0)
}

// Handle implements ublk.Handler.
func (d *modelDisk) Handle(q *ublk.Queue, r *ublk.Request) {
	now, took := time.Now(), d.access
	switch r.Op {
	case ublk.OpRead, ublk.OpWrite:
		took = d.service(r.Bytes())
	case ublk.OpFlush:
	default:
		q.CompleteErr(r.Tag, unix.EOPNOTSUPP)
		return
	}
	if d.idleAt.Before(now) {
		d.idleAt = now
	}
	d.idleAt = d.idleAt.Add(took)
	d.waiting = append(d.waiting, dueRequest{r.Tag, d.idleAt})
}

// BeforeWait implements ublk.Handler: what is due is answered, and a timer runs for what is next.
func (d *modelDisk) BeforeWait(q *ublk.Queue) {
	now := time.Now()
	n := 0
	for ; n < len(d.waiting) && !d.waiting[n].due.After(now); n++ {
		r := q.Request(d.waiting[n].tag)
		switch r.Op {
		case ublk.OpRead:
			copy(r.Data, d.mem[r.Offset():])
		case ublk.OpWrite:
			copy(d.mem[r.Offset():], r.Data)
		}
		q.CompleteOK(r.Tag)
	}
	d.waiting = d.waiting[:copy(d.waiting, d.waiting[n:])]
	if len(d.waiting) == 0 || d.armed.After(now) && !d.armed.After(d.waiting[0].due) {
		return
	}
	d.armed = d.waiting[0].due
	q.Ring().PrepTimeout(q.NewSQE(1), d.armed.Sub(now), 0)
}

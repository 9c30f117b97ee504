package daemon

import (
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/uring"
)

// port is where submissions go: a ublk queue's ring or a loop's.
type port interface {
	NewSQE(userData uint64) *uring.SQE
}

// deviceFile is a device as one ring names it, and what the driver has to know of its kind.
type deviceFile struct {
	file uring.File
	device
	cache writeCache
}

// device is what a driver needs of an opened device.
type device struct {
	fd    int
	block bool // a block device; else a regular file
	note  int  // descriptor of the kernel's note on its write cache, or -1
}

// driverDevice is noDevice of nil, for an SSD that is not there.
func driverDevice(d *blockdev.Device) device {
	if d == nil {
		return noDevice.device
	}
	return device{d.FD(), d.Info.Block, d.WriteCacheFD()}
}

// driver turns the engine's operations into submissions on one ring and completions back. It is
// the part of a cache.Driver that a ublk queue and a background loop have in common, and belongs
// to the ring's thread. User data is the index of the operation in ops.
type driver struct {
	port  port
	lane  *cache.Lane
	files [cache.MaxBackings + 1]deviceFile // by BackingID; cache.SSD is the SSD
	ops   []flight
	free  int32 // head of the list of free ops, or noFlight
	now   int64 // of this round of the loop; 0: not read yet
	text  [32]byte
	// where finds the data of requests that the engine does not see, among the ring's buffers.
	where func(*cache.Request) (buf uint16, at uintptr)

	gathers gathers
}

// flight is an operation under way.
type flight struct {
	op    *cache.Op
	done  int64 // bytes transferred by earlier submissions
	tries int32 // submissions again after EAGAIN or EINTR
	next  int32
}

const (
	noFlight = -1
	// retryLimit bounds how often an operation that the kernel would not start is repeated.
	retryLimit = 1000
	// maxTransfer is what one submission moves at most, as the kernel has it (MAX_RW_COUNT).
	maxTransfer = 1<<31 - 4096
)

func (d *driver) init(p port, flights int) {
	d.port, d.free, d.gathers.open = p, noFlight, noFlight
	d.where = func(r *cache.Request) (uint16, uintptr) { return uint16(r.Tag), 0 }
	d.ops = make([]flight, 0, flights)
	for i := range d.files {
		d.files[i] = noDevice
	}
}

// noDevice stands for a device that is missing. The zero value would be file descriptor 0, which
// takes writes without a word where it is /dev/null.
var noDevice = deviceFile{file: uring.FD(-1), device: device{fd: -1, note: -1}}

// started is the zero of Now. The clock is monotonic.
var started = time.Now()

// Now is a monotonic clock that is read at most once in a round of the loop.
func (d *driver) Now() int64 {
	if d.now == 0 {
		d.now = int64(time.Since(started)) + 1
	}
	return d.now
}

// Clock is Now read anew.
func (d *driver) Clock() int64 { return int64(time.Since(started)) + 1 }

// Submit starts op at the next enter of the ring.
func (d *driver) Submit(op *cache.Op) {
	if !d.hold(op) {
		d.start(op, 0)
	}
}

// start makes a submission of op, of which the first done bytes have been transferred.
func (d *driver) start(op *cache.Op, done int64) {
	i := d.free
	if i == noFlight {
		i = int32(len(d.ops))
		d.ops = append(d.ops, flight{})
	} else {
		d.free = d.ops[i].next
	}
	d.ops[i] = flight{op: op, done: done}
	d.prepare(i)
}

// prepare fills a submission with what is left of an operation.
func (d *driver) prepare(i int32) {
	f := &d.ops[i]
	op := f.op
	s := d.port.NewSQE(uint64(i))
	dev := &d.files[op.Dev]
	off := uint64(op.Off + f.done)
	left := op.Len - f.done
	switch op.Kind {
	case cache.OpRead, cache.OpWrite:
		d.prepareTransfer(s, f, dev, off, uint32(min(left, maxTransfer)))
	case cache.OpFlush:
		if d.volatile(dev) {
			s.PrepFsync(dev.file, true)
		} else {
			s.PrepNop()
		}
	case cache.OpDiscard:
		if dev.block {
			s.PrepBlockDiscard(dev.file, off, uint64(left))
		} else {
			s.PrepPunchHole(dev.file, off, uint64(left))
		}
	case cache.OpZero:
		// A block device that cannot do it has zeroes written by the kernel. A hole of a file
		// reads as zeroes, and every filesystem that has holes can make them.
		if dev.block {
			s.PrepZeroRange(dev.file, off, uint64(left))
		} else {
			s.PrepPunchHole(dev.file, off, uint64(left))
		}
	}
}

func (d *driver) prepareTransfer(s *uring.SQE, f *flight, dev *deviceFile, off uint64, n uint32) {
	op, file := f.op, dev.file
	flags := uint32(0)
	if op.FUA && d.volatile(dev) {
		flags = uring.RWFDSync
	}
	if op.Req == nil {
		mem := op.Mem[f.done:]
		if op.Kind == cache.OpRead {
			s.PrepRead(file, mem[:n], off, 0)
		} else {
			s.PrepWrite(file, mem[:n], off, flags)
		}
		return
	}
	// The request's pages are a buffer of the ring, in which addresses begin at 0.
	buf, at := d.where(op.Req)
	at += uintptr(op.ReqOff) + uintptr(f.done)
	if op.Kind == cache.OpRead {
		s.PrepReadFixed(file, buf, at, n, off, 0)
	} else {
		s.PrepWriteFixed(file, buf, at, n, off, flags)
	}
}

// complete takes the result of a submission and gives the operation back to the engine, unless
// there is more of it to do.
func (d *driver) complete(userData uint64, res int32) {
	i := int32(userData)
	if userData&gatherData != 0 {
		d.gathered(i, res)
		return
	}
	f := &d.ops[i]
	op := f.op
	var err error
	switch {
	case res == -int32(unix.EAGAIN) || res == -int32(unix.EINTR):
		if f.tries++; f.tries <= retryLimit {
			d.prepare(i)
			return
		}
		err = syscall.Errno(-res)
	case op.Kind == cache.OpDiscard && res == -int32(unix.EOPNOTSUPP):
		// A discard is advice; the device may lose the ability when its stack changes.
	case res < 0:
		err = syscall.Errno(-res)
	case op.Kind > cache.OpWrite:
	case res == 0:
		err = io.ErrUnexpectedEOF
	default:
		if f.done += int64(res); f.done < op.Len {
			d.prepare(i)
			return
		}
	}
	*f = flight{next: d.free}
	d.free = i
	d.lane.Complete(op, err)
}

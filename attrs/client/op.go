package client

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm"
)

// Kind is what an Op does.
type Kind uint8

// The kinds.
const (
	Read Kind = iota
	Write
	Flush
	Discard
	WriteZeroes
)

// Op is one request. The caller fills the first part and hands it to Submit; it is the device's, with
// its buffer and its set, until Wait returns, and must not be copied.
type Op struct {
	Kind Kind
	// Buf is the data of reads and writes. Buffers that are not from Alloc are copied.
	Buf []byte
	// Off is the place on the device; Len the length of a Discard or WriteZeroes; in bytes.
	Off, Len int64
	// FUA makes a write durable.
	FUA bool
	// Attrs is what is said of the request. Without any it is still asked what the request got by
	// rules and other sources; nil asks nothing.
	Attrs *attrs.Set

	// N bytes were moved. Results are the answers for Attrs. Err is a syscall.Errno where kernel or
	// cache refused: attrs.ErrnoRefused and others.
	N       int
	Results attrs.Results
	Err     error

	d      *Device        // while the request is under way by Submit
	over   sync.WaitGroup // waits for its end
	next   *Op            // in a list
	ticket shm.Ticket
	issued bool
	place  int64  // of the data in the region
	own    []byte // Alloc'ed for the request
	failed unix.Errno
	left   int // entries of the ring under way
}

// ReadAt reads len(p) bytes at off. s may be nil. Fewer bytes than that come with an error.
func (d *Device) ReadAt(p []byte, off int64, s *attrs.Set) (int, attrs.Results, error) {
	op := take(Read, s)
	op.Buf, op.Off = p, off
	d.do(op)
	return op.outcome()
}

// WriteAt writes p at off. It is durable after a Flush. s may be nil.
//
// When the daemon ends in the midst of a request and another takes over within some seconds, the
// request is done again. Requests of Submit fail with EIO then on channel Direct, and those after
// them go on; on channel Shared the kernel keeps them for the next daemon.
func (d *Device) WriteAt(p []byte, off int64, s *attrs.Set) (int, attrs.Results, error) {
	op := take(Write, s)
	op.Buf, op.Off = p, off
	d.do(op)
	return op.outcome()
}

// Flush makes completed writes durable. Through the kernel no attributes go along with it.
func (d *Device) Flush(s *attrs.Set) (attrs.Results, error) {
	op := take(Flush, s)
	d.do(op)
	_, res, err := op.outcome()
	return res, err
}

// Discard says that n bytes at off are not needed any more; they may read as anything. Through
// the kernel no attributes go along with it.
func (d *Device) Discard(off, n int64, s *attrs.Set) (attrs.Results, error) {
	op := take(Discard, s)
	op.Off, op.Len = off, n
	d.do(op)
	_, res, err := op.outcome()
	return res, err
}

// synchronous are requests whose caller waits for them: they are used again.
var synchronous = sync.Pool{New: func() any { return new(Op) }}

func take(k Kind, s *attrs.Set) *Op {
	op := synchronous.Get().(*Op)
	op.Kind, op.Attrs = k, s
	return op
}

// outcome ends a request of take.
func (op *Op) outcome() (int, attrs.Results, error) {
	n, res, err := op.N, op.Results, op.Err
	*op = Op{}
	synchronous.Put(op)
	return n, res, err
}

// run does a request and waits for it.
func (d *Device) run(op *Op) {
	d.use.RLock()
	if !d.prepare(op) {
		d.use.RUnlock()
		return
	}
	if d.ring != nil {
		op.over.Add(1)
		d.ring.submit(op)
		op.over.Wait()
	} else {
		d.transfer(op)
		d.use.RUnlock()
	}
	d.finish(op)
}

// maxEntry is how many bytes a Discard or WriteZeroes with attributes has at most: in pieces there
// would be several answers for one page.
const maxEntry = 1 << 30

// data says whether the kind moves data.
func (op *Op) data() bool { return op.Kind <= Write }

// memory is where the data is moved from or to.
func (op *Op) memory() []byte {
	if op.own != nil {
		return op.own
	}
	return op.Buf
}

// prepare finds the memory for a request and writes its attributes to the slots. It returns false if
// the request fails at once.
func (d *Device) prepare(op *Op) bool {
	op.N, op.Err, op.Results, op.own, op.issued, op.failed = 0, nil, attrs.Results{}, nil, false, 0
	if err := d.begin(op); err != nil {
		op.Err = err
		d.cleanup(op)
		return false
	}
	return true
}

func (d *Device) begin(op *Op) error {
	if d.gone != nil {
		return d.gone
	}
	carried := d.channel == Direct || d.channel == Shared && op.data()
	some := op.Attrs != nil
	if some && !carried {
		// Nobody will see them, so nobody refuses what is required.
		if _, errno := op.Attrs.CheckRequired(&op.Results); errno != 0 {
			return errno
		}
	}
	if op.Kind > WriteZeroes || op.data() == (len(op.Buf) == 0) || op.Off < 0 || op.Len < 0 {
		return unix.EINVAL
	}
	if some && !op.data() && op.Len > maxEntry {
		return fmt.Errorf("a %d bytes long request without data takes no attributes: %w", op.Len,
			unix.EINVAL)
	}
	if !carried {
		return nil
	}
	if err := d.locate(op, some); err != nil || !some {
		return err
	}
	n := 0
	if op.data() {
		n = len(op.Buf)
	}
	if !d.lockPages(op.place, n) {
		return fmt.Errorf("another request with attributes has a page of the buffer: %w", unix.EBUSY)
	}
	t, err := d.region.Issue(op.place, n, op.Attrs)
	if err != nil {
		d.unlockPages(op.place, n)
		return err
	}
	op.ticket, op.issued = t, true
	return nil
}

// locate finds out where in the region a request's data lies. What is elsewhere is copied there; a
// request without data has a page for its attributes.
func (d *Device) locate(op *Op, attributes bool) (err error) {
	op.place = 0
	if op.data() {
		off, ok := d.region.Offset(op.Buf)
		if ok {
			op.place = off
			return nil
		}
		op.own, err = d.Alloc(len(op.Buf))
		if op.Kind == Write {
			copy(op.own, op.Buf)
		}
	} else if attributes {
		op.own, err = d.Alloc(1)
	}
	if op.own != nil {
		op.place, _ = d.region.Offset(op.own)
	}
	return err
}

// lockPages makes sure that the slots of the pages are nobody else's.
func (d *Device) lockPages(off int64, n int) bool {
	first := int(off / shm.PageBytes)
	last := int((off + int64(max(n, 1)) - 1) / shm.PageBytes)
	for i := first; i <= last; i++ {
		if !d.pages[i].CompareAndSwap(0, 1) {
			for i--; i >= first; i-- {
				d.pages[i].Store(0)
			}
			return false
		}
	}
	return true
}

func (d *Device) unlockPages(off int64, n int) {
	first := int(off / shm.PageBytes)
	last := int((off + int64(max(n, 1)) - 1) / shm.PageBytes)
	for i := first; i <= last; i++ {
		d.pages[i].Store(0)
	}
}

// collectors are used for one request each, as they are large.
var collectors = sync.Pool{New: func() any { return new(shm.Collector) }}

// finish takes the answers and gives the memory back.
func (d *Device) finish(op *Op) {
	if op.Err == nil && op.failed != 0 {
		op.N, op.Err = 0, op.failed
	}
	if op.issued {
		c := collectors.Get().(*shm.Collector)
		op.Results = *d.region.Collect(op.ticket, c)
		if a, sums := op.Results.Checksums(); len(sums) != 0 {
			if _, bad := op.Results.Mismatch(); !bad {
				op.Results.SetChecksums(a, slices.Clone(sums)) // those are the collector's
			}
		}
		collectors.Put(c)
		n := 0
		if op.data() {
			n = len(op.Buf)
		}
		d.unlockPages(op.place, n)
		op.issued = false
	}
	if op.Kind == Read && op.own != nil && op.N > 0 {
		copy(op.Buf, op.own[:op.N])
	}
	d.cleanup(op)
	if op.Err == nil && op.data() && op.N < len(op.Buf) {
		op.Err = io.EOF
		if op.Kind == Write {
			op.Err = io.ErrShortWrite
		}
	}
}

func (d *Device) cleanup(op *Op) {
	if op.own != nil {
		d.Free(op.own)
		op.own = nil
	}
}

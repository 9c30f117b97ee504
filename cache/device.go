package cache

import (
	"io"

	"ubcache/attrs"
	"ubcache/policy"
)

// OpKind is what an Op asks a device to do.
type OpKind uint8

// The kinds of device operations.
const (
	OpRead OpKind = iota
	OpWrite
	OpFlush
	OpDiscard
	OpZero
)

func (k OpKind) String() string {
	return [...]string{"read", "write", "flush", "discard", "write zeroes"}[k]
}

// SSD is the Op.Dev of the cache device; backing device n is n.
const SSD BackingID = 0

// Op is one asynchronous operation on a device. The engine fills it and hands it to
// Driver.Submit; the driver calls Lane.Complete on the same lane when it is done. A short
// transfer is the driver's to continue or to turn into an error.
type Op struct {
	Kind OpKind
	FUA  bool // the write is durable when it completes
	Dev  BackingID
	Off  int64 // bytes
	Len  int64 // bytes

	// Mem is the memory of the transfer, off the Go heap or a request's Data or Target. Where it is nil,
	// the transfer is between the device and the data of Req, from byte ReqOff of it.
	Mem    []byte
	Req    *Request
	ReqOff int

	// DriverData is for the driver while the operation is in flight.
	DriverData uint64

	done  completer
	next  *Op
	prev  *Op
	at    int64    // Driver.Now of its submission to the SSD
	probe bool     // of the SSD: goes to a lost one, too
	from  *Request // whose memory, as the engine sees it, is being written to
	aimed bool     // at a client's memory: that it fails says nothing of the device
	arg   uint32
	track *track // of the request that it is for, if its times are wanted
	begun int64  // Driver.Now, of reads that are measured

	// What follows is of operations on backing devices: see presence.go.
	owner  *Request // that it is for; nil: for the background
	losses uint64   // Backing.losses when it was submitted
	failed error    // why it waits for a probe
	ticket uint64   // the first probe that counts for it
	again  bool     // it has been tried a second time
}

// completer is what a finished Op goes back to: a state machine of the engine.
type completer interface {
	opDone(l *Lane, op *Op, err error)
}

// Driver joins a lane to the world: an io_uring loop in the daemon, the simulator in tests. All
// methods but Wake are called on the lane's thread only.
type Driver interface {
	// Submit starts op. It must not call Lane.Complete before it returns.
	Submit(op *Op)
	// Finish answers a request; r.Err says how it went. r may be reused by the driver at once.
	Finish(r *Request)
	// CopyOut copies request data (of a write) from byte off on to dst.
	CopyOut(r *Request, off int, dst []byte) error
	// CopyIn copies src to the request data (of a read) from byte off on.
	CopyIn(r *Request, off int, src []byte) error
	// Wake makes the lane's loop call Lane.Run soon. Any thread may call it.
	Wake()
	// Now is a monotonic clock in nanoseconds. It may stand still for a round of the lane's
	// loop, so that reading it costs nothing.
	Now() int64
	// Clock is the same clock, read anew.
	Clock() int64
}

// Storage is a device as the control path uses it: blocking, whole. Offsets and lengths are
// multiples of the device's sector size and p is page-aligned.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes completed writes durable.
	Sync() error
	// Size is in bytes.
	Size() int64
}

// ReqOp is what a request asks of a cached device.
type ReqOp uint8

// The requests, as the block layer has them.
const (
	ReqRead ReqOp = iota
	ReqWrite
	ReqFlush
	ReqDiscard
	ReqWriteZeroes
)

func (o ReqOp) String() string {
	return [...]string{"read", "write", "flush", "discard", "write zeroes"}[o]
}

// Request is one I/O on a cached device. The driver owns it and fills the first part; it is the
// engine's from Lane.Submit to Driver.Finish.
type Request struct {
	Backing BackingID
	Op      ReqOp
	FUA     bool
	// NoUnmap asks write zeroes to keep the space allocated.
	NoUnmap bool
	// Off and Len are in bytes, multiples of the device's logical block.
	Off int64
	Len int64
	// Data is the request's memory where the driver can show it, page-aligned; nil for
	// zero-copy requests. With a checksum attribute it must be private: what has been verified
	// is what is stored or given out only if nobody else can write to it until Driver.Finish.
	// Without Data checksums are not looked at (attrs.ReasonHidden).
	Data []byte
	// Target, for a read with Data, is the client's memory, as long as Data; nil if there is none. Others may change
	// it or take it away at any time: the lane's goroutine has faults as panics ([hostile.Always]). Blocks that the SSD
	// has are read straight into it and checked there; whatever else is to be done with the data is done in Data. Placed says, at Driver.Finish, that a read which succeeded
	// has left its data in Target; else it is in Data.
	Target []byte
	Placed bool
	// Tag is for the driver.
	Tag uint32

	// Attrs is what the request's issuer and the rules say about it; nil if nothing. What it
	// refers to stays as it is until Driver.Finish. Results, if it is not nil, gets the answers,
	// all of them by Driver.Finish; returned checksums in it are good until that returns.
	Attrs   *attrs.Set
	Results *attrs.Results

	// Err is the outcome, for Driver.Finish.
	Err error

	b       *Backing
	way     way
	res     *attrs.Results // Results or the track's; nil if there is nothing to answer
	track   *track
	hits    int32 // blocks of a read that were on the SSD
	reached uint8 // reachedSSD, reachedBacking: where the data came from or went to
	pending int32 // pieces still under way; the lane's thread only
	touched uint8 // touchedSSD, touchedBacking: what FUA has to make durable
	next    *Request
	started int64
	flying  int32      // operations that write to Data
	losses  uint64     // the smallest Backing.losses of its changes that have no copy; noLosses: there are none
	copied  uint64     // of those that have one
	job     policy.Job // of the scheduler
	serving bool       // the scheduler counts it
	noticed bool       // busy counts it
	resting int32      // parts of it that wait for the backing device: while there are some neither does
}

const (
	touchedSSD = 1 << iota
	touchedBacking
)

const (
	reachedSSD = 1 << iota
	reachedBacking
)

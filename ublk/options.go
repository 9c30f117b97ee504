package ublk

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"

	"ubcache/ublk/internal/sys"
)

// SectorSize is the driver's unit of position and length, whatever the device's block size.
const SectorSize = 512

// MaxRangeSectors is the most that a discard or write-zeroes request may cover: its byte count has
// to fit 32 bits.
const MaxRangeSectors = (1<<32 - 1) >> 9

// CopyMode says how the bytes of a request reach the handler.
type CopyMode uint8

const (
	// Copy: the driver copies to and from a buffer of the queue, Request.Data.
	Copy CopyMode = iota
	// UserCopy: Queue.CopyOut and Queue.CopyIn copy what the handler asks for (Linux 6.5).
	UserCopy
	// AutoZeroCopy: the request's pages are a registered buffer of the queue's ring, number
	// Request.BufIndex, for PrepReadFixed and PrepWriteFixed. CopyOut and CopyIn work too
	// (Linux 6.16).
	AutoZeroCopy
	// RingCopy is Copy done by the queue's ring instead of the driver, from the request's
	// registered pages to Request.Data and back: for large requests the cheaper copy
	// (Linux 6.16).
	RingCopy
)

func (m CopyMode) String() string {
	switch m {
	case Copy:
		return "copy"
	case UserCopy:
		return "user-copy"
	case AutoZeroCopy:
		return "zero-copy"
	case RingCopy:
		return "ring-copy"
	}
	return fmt.Sprintf("CopyMode(%d)", uint8(m))
}

// buffered reports whether Request.Data is memory of the queue.
func (m CopyMode) buffered() bool { return m == Copy || m == RingCopy }

// registers reports whether the driver registers the pages of requests with the ring.
func (m CopyMode) registers() bool { return m == AutoZeroCopy || m == RingCopy }

// Recovery says what happens to the device when its server dies.
type Recovery uint8

const (
	// RecoveryNone: the disk disappears.
	RecoveryNone Recovery = iota
	// RecoveryRequeue: I/O waits for a new server; requests that the old one held fail.
	RecoveryRequeue
	// RecoveryReissue: I/O waits for a new server, which gets the requests the old one held a
	// second time.
	RecoveryReissue
	// RecoveryFailIO: I/O fails until a new server comes (Linux 6.13).
	RecoveryFailIO
)

func (r Recovery) String() string {
	switch r {
	case RecoveryNone:
		return "none"
	case RecoveryRequeue:
		return "requeue"
	case RecoveryReissue:
		return "reissue"
	case RecoveryFailIO:
		return "fail-io"
	}
	return fmt.Sprintf("Recovery(%d)", uint8(r))
}

// AffinityPolicy says on which CPUs a queue's thread may run.
type AffinityPolicy uint8

const (
	// AffinityAdaptive keeps the thread beside the submitter while requests come one at a time,
	// where sharing a cache and a wake-up without an interrupt win, and lets it run anywhere
	// when several are in flight, where running in parallel wins.
	AffinityAdaptive AffinityPolicy = iota
	// AffinityPinned keeps the thread on the CPUs of its queue.
	AffinityPinned
	// AffinityNone leaves the thread to the scheduler.
	AffinityNone
)

// Params describe the disk. Sizes are in bytes; zero means the default in brackets.
type Params struct {
	SizeBytes          uint64
	LogicalBlockBytes  uint32 // [512], 512 … page size
	PhysicalBlockBytes uint32 // [LogicalBlockBytes]
	IOMinBytes         uint32 // [PhysicalBlockBytes]
	IOOptBytes         uint32 // [PhysicalBlockBytes]
	ChunkBytes         uint32 // requests do not cross multiples of this [no limit]
	VirtBoundaryMask   uint64

	ReadOnly      bool
	Rotational    bool
	VolatileCache bool // without it the kernel never sends a flush
	FUA           bool // needs VolatileCache

	Discard   *DiscardParams
	DMAAlign  uint32 // alignment of request memory [4 bytes] (Linux 6.15)
	Segment   *SegmentParams
	Integrity *IntegrityParams // needs UserCopy or AutoZeroCopy (Linux 7.0)
}

// DiscardParams allow discard and write zeroes.
type DiscardParams struct {
	AlignmentBytes   uint32
	GranularityBytes uint32 // [LogicalBlockBytes]
	MaxDiscardBytes  uint64 // 0: no discard; at most MaxRangeSectors
	MaxZeroesBytes   uint64 // 0: no write zeroes; at most MaxRangeSectors
}

// SegmentParams limit the memory segments of a request (Linux 6.15).
type SegmentParams struct {
	BoundaryMask uint64 // boundary - 1, at least 4095
	MaxBytes     uint32 // at least 4096
	MaxCount     uint16
}

// IntegrityParams describe the metadata that accompanies each interval of data. Values of Flags and
// Checksum are LBMD_PI_* of linux/fs.h.
type IntegrityParams struct {
	Flags         uint32
	MaxSegments   uint16
	IntervalBytes uint32 // [LogicalBlockBytes]
	MetadataBytes uint8
	PIOffset      uint8
	Checksum      uint8
	TagSize       uint8
}

// Options describe a device and its server. Recover takes ID, Queues, Depth, MaxIOBytes, Params,
// Mode and Recovery from the kernel instead.
type Options struct {
	ID         int // device number; -1 for any
	Queues     int // [min(4, CPUs)]; the driver allows at most one a CPU
	Depth      int // requests in flight per queue [128], at most 4096
	MaxIOBytes int // largest request [512 KiB]
	Mode       CopyMode
	Recovery   Recovery
	Tag        uint64 // kept by the kernel and returned in Info, to recognise the owner
	Params     Params
	Extra      Features // further driver features to ask for

	NoPartScan   bool // the kernel does not look for partitions (ignored before Linux 7.0)
	SharedMemory bool // allow RegisterShared (Linux 7.1)

	Affinity AffinityPolicy
	// Files and Buffers are numbers of slots for the handler in the ring's tables [64, 16].
	Files, Buffers int
	// Entries is how many submissions of the handler's own fit between two enters [Depth].
	Entries int
	// OOMScoreAdj is written to /proc/self/oom_score_adj if it is not 0. A server killed for
	// memory takes the filesystem that could free memory with it.
	OOMScoreAdj int

	// OnError hears of faults that no call returns: a panic in Handler.Handle, whose request
	// then failed with EIO. It may be called from any queue's thread. [print to stderr]
	OnError func(error)
	// OnFatal is called when a queue's loop itself cannot go on and requests would hang for
	// ever. It must end the process, so that the kernel fails or keeps the requests.
	// [print to stderr and exit with status 70]
	OnFatal func(error)
}

// withDefaults fills in the defaults of fields that are zero.
func (o Options) withDefaults() Options {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def32 := func(p *uint32, v uint32) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.Queues, min(4, runtime.NumCPU()))
	def(&o.Depth, 128)
	def(&o.MaxIOBytes, 512<<10)
	def(&o.Files, 64)
	def(&o.Buffers, 16)
	def(&o.Entries, o.Depth)
	p := &o.Params
	def32(&p.LogicalBlockBytes, 512)
	def32(&p.PhysicalBlockBytes, p.LogicalBlockBytes)
	def32(&p.IOMinBytes, p.PhysicalBlockBytes)
	def32(&p.IOOptBytes, p.IOMinBytes)
	if p.Discard != nil {
		d := *p.Discard
		def32(&d.GranularityBytes, p.LogicalBlockBytes)
		d.MaxDiscardBytes = min(d.MaxDiscardBytes, MaxRangeSectors*SectorSize)
		d.MaxZeroesBytes = min(d.MaxZeroesBytes, MaxRangeSectors*SectorSize)
		p.Discard = &d
	}
	if p.Integrity != nil {
		i := *p.Integrity
		def32(&i.IntervalBytes, p.LogicalBlockBytes)
		p.Integrity = &i
	}
	return o
}

// unserved are features that change the protocol to one that the queues do not speak.
const unserved = FeatureNeedGetData | FeatureUnprivileged | FeatureZoned | FeatureBatchIO

// Validate reports everything that is wrong with o at once.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	bad := func(cond bool, format string, args ...any) {
		if cond {
			errs = append(errs, fmt.Errorf("ublk options: "+format, args...))
		}
	}
	pow2 := func(v uint32) bool { return bits.OnesCount32(v) == 1 }
	page := uint32(os.Getpagesize())
	bad(o.ID < -1, "ID %d: want -1 or a number", o.ID)
	bad(o.Queues < 1 || o.Queues > sys.MaxQueues, "Queues %d: want 1 … %d", o.Queues,
		sys.MaxQueues)
	bad(o.Depth < 1 || o.Depth > sys.MaxQueueDepth, "Depth %d: want 1 … %d", o.Depth,
		sys.MaxQueueDepth)
	bad(o.MaxIOBytes < int(page) || o.MaxIOBytes > 1<<sys.IOBufBits,
		"MaxIOBytes %d: want %d … %d", o.MaxIOBytes, page, 1<<sys.IOBufBits)
	bad(o.Mode > RingCopy, "Mode %d", o.Mode)
	bad(o.Recovery > RecoveryFailIO, "Recovery %d", o.Recovery)
	bad(o.Extra&unserved != 0, "Extra %v: this package does not serve that", o.Extra&unserved)
	bad(o.Files < 0 || o.Files > 1<<15-1, "Files %d: want at most %d", o.Files, 1<<15-1)
	bad(o.Buffers < 0 || o.Buffers > 1<<14-sys.MaxQueueDepth, "Buffers %d: want at most %d",
		o.Buffers, 1<<14-sys.MaxQueueDepth)
	bad(o.Entries < 0 || o.Entries > 1<<14, "Entries %d: want at most %d", o.Entries, 1<<14)
	p := &o.Params
	bad(!pow2(p.LogicalBlockBytes) || p.LogicalBlockBytes < 512 || p.LogicalBlockBytes > page,
		"LogicalBlockBytes %d: want a power of two, 512 … %d", p.LogicalBlockBytes, page)
	for _, v := range []uint32{p.PhysicalBlockBytes, p.IOMinBytes, p.IOOptBytes} {
		bad(!pow2(v) || v > 256<<20, "block size %d: want a power of two up to 256 MiB", v)
	}
	bad(p.PhysicalBlockBytes < p.LogicalBlockBytes, "PhysicalBlockBytes below LogicalBlockBytes")
	bad(p.SizeBytes == 0 || p.SizeBytes%uint64(p.LogicalBlockBytes) != 0,
		"SizeBytes %d: want a multiple of LogicalBlockBytes", p.SizeBytes)
	bad(p.FUA && !p.VolatileCache, "FUA without VolatileCache")
	bad(p.DMAAlign != 0 && (!pow2(p.DMAAlign) || p.DMAAlign > page),
		"DMAAlign %d: want a power of two up to %d", p.DMAAlign, page)
	bad(p.Integrity != nil && o.Mode.buffered(), "Integrity with Mode %v: want user-copy", o.Mode)
	if s := p.Segment; s != nil {
		bad(s.BoundaryMask+1 < sys.MinSegmentSize || s.BoundaryMask&(s.BoundaryMask+1) != 0,
			"Segment.BoundaryMask %#x: want a power of two, at least 4096, minus 1", s.BoundaryMask)
		bad(s.MaxBytes < sys.MinSegmentSize, "Segment.MaxBytes %d: want at least 4096", s.MaxBytes)
		bad(s.MaxCount == 0, "Segment.MaxCount: want at least 1")
	}
	return errors.Join(errs...)
}

// flags are the driver features that o needs.
func (o *Options) flags() Features {
	f := o.Extra | FeatureIoctlEncode
	switch o.Mode {
	case UserCopy:
		f |= FeatureUserCopy
	case AutoZeroCopy, RingCopy:
		f |= FeatureAutoBuffers | FeatureZeroCopy | FeatureUserCopy
	}
	switch o.Recovery {
	case RecoveryRequeue:
		f |= FeatureRecovery
	case RecoveryReissue:
		f |= FeatureRecovery | FeatureRecoveryReissue
	case RecoveryFailIO:
		f |= FeatureRecovery | FeatureRecoveryFailIO
	}
	if o.SharedMemory {
		f |= FeatureSharedMemory
	}
	if o.Params.Integrity != nil {
		f |= FeatureIntegrity
	}
	return f
}

// optional are features that are asked for if the kernel has them.
func (o *Options) optional() Features {
	f := FeatureUpdateSize
	if o.Recovery != RecoveryNone {
		f |= FeatureQuiesce
	}
	if o.NoPartScan {
		f |= FeatureNoPartScan
	}
	return f
}

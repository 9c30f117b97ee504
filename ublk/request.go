package ublk

import (
	"fmt"
	"strings"

	"ubcache/ublk/internal/sys"
)

// Op is what a request asks for.
type Op uint8

// Operations. Others exist for zoned devices, which this package does not serve.
const (
	OpRead        Op = sys.OpRead
	OpWrite       Op = sys.OpWrite
	OpFlush       Op = sys.OpFlush
	OpDiscard     Op = sys.OpDiscard
	OpWriteZeroes Op = sys.OpWriteZeroes
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpDiscard:
		return "discard"
	case OpWriteZeroes:
		return "write-zeroes"
	}
	return fmt.Sprintf("op-%d", uint8(o))
}

// Flags accompany a request.
type Flags uint32

// Request flags.
const (
	// FUA: the write must be durable when it completes.
	FUA Flags = sys.IOFUA
	// Meta: filesystem metadata.
	Meta Flags = sys.IOMeta
	// Swap: a page of a swap device.
	Swap Flags = sys.IOSwap
	// NoUnmap: write zeroes must not deallocate.
	NoUnmap Flags = sys.IONoUnmap
	// HasIntegrity: metadata accompanies the request, see Queue.CopyMetaOut.
	HasIntegrity Flags = sys.IOIntegrity
	// InShared: the data lies in memory given to RegisterShared, see Request.Shared.
	InShared Flags = sys.IOShmemZC
	// FailfastDev, FailfastTransport, FailfastDriver ask for no retries. Readahead sets all three,
	// and no filesystem sets FailfastDriver by itself.
	FailfastDev       Flags = sys.IOFailfastDev
	FailfastTransport Flags = sys.IOFailfastTransport
	FailfastDriver    Flags = sys.IOFailfastDriver
)

var flagNames = []struct {
	f    Flags
	name string
}{
	{FUA, "fua"},
	{Meta, "meta"},
	{Swap, "swap"},
	{NoUnmap, "no-unmap"},
	{HasIntegrity, "integrity"},
	{InShared, "shared"},
	{FailfastDev, "failfast-dev"},
	{FailfastTransport, "failfast-transport"},
	{FailfastDriver, "failfast-driver"},
}

func (f Flags) String() string {
	var s []string
	for _, n := range flagNames {
		if f&n.f != 0 {
			s = append(s, n.name)
			f &^= n.f
		}
	}
	if f != 0 {
		s = append(s, fmt.Sprintf("%#x", uint32(f)))
	}
	return strings.Join(s, ",")
}

// Request is one request of the block layer. It belongs to the handler from Handle to Complete, and
// to the queue's thread all the time.
type Request struct {
	Tag     uint16 // number below the queue's depth, free again after Complete
	Op      Op
	Flags   Flags
	Sectors uint32 // of 512 bytes, whatever the block size
	Sector  uint64 // position, in units of 512 bytes
	// Data is the request's memory if the queue is Buffered: filled for a write, to be filled for a
	// read. It is nil in other modes and for requests without data.
	Data []byte
	// BufIndex is the registered buffer in modes AutoZeroCopy and RingCopy, for reads and writes.
	BufIndex uint16
	// User is the handler's; it keeps its value from one request of this tag to the next.
	User uint64

	state  uint8
	manual bool   // the buffer was registered by command, since the driver could not by itself
	addr   uint64 // what the driver wants as the tag's buffer: an address in mode Copy, or 0
	desc   uint64 // the descriptor's addr
	mem    int    // where the tag's memory begins in the queue's
}

// States of a tag. The driver's own are ACTIVE and OWNED_BY_SRV of struct ublk_io.
const (
	tagIdle        = iota // not fetched yet, or gone for good
	tagFetched            // the driver has it
	tagRegistering        // the server has it and waits for its buffer
	tagCopying            // the server has it and waits for a write's data
	tagOwned              // the handler has it
)

// Bytes is the length of the request. It does not fit an int32 for large discards.
func (r *Request) Bytes() int64 { return int64(r.Sectors) << 9 }

// Offset is the position in bytes.
func (r *Request) Offset() int64 { return int64(r.Sector) << 9 }

// HasData reports whether bytes accompany the request.
func (r *Request) HasData() bool { return r.Op <= OpWrite }

// Readahead reports whether the kernel reads in advance of its user.
func (r *Request) Readahead() bool { return r.Op == OpRead && r.Flags&FailfastDriver != 0 }

// Shared locates data with the flag InShared: the number that RegisterShared returned, and the
// offset in that memory.
func (r *Request) Shared() (index int, off uint32) {
	return int(r.desc >> sys.ShmemIdxShift & sys.ShmemIdxMask), uint32(r.desc & sys.ShmemOffMask)
}

func (r *Request) String() string {
	return fmt.Sprintf("tag %d %v %v sector %d+%d", r.Tag, r.Op, r.Flags, r.Sector, r.Sectors)
}

// load takes over the descriptor that the driver wrote.
func (r *Request) load(d *sys.IODesc) {
	r.Op = Op(d.OpFlags & 0xff)
	r.Flags = Flags(d.OpFlags &^ 0xff)
	r.Sector = d.StartSector
	r.Sectors = d.NrSectors
	r.desc = d.Addr
	r.Data, r.manual = nil, false
}

package attrs

import (
	"encoding/binary"
	"errors"
	"unsafe"
)

// The frame that sets and results have in common: see FORMAT.md.
const (
	setMagic     = "UBAS"
	resultsMagic = "UBAR"
	version      = 1

	setHeaderBytes     = 16
	resultsHeaderBytes = 24
	entryBytes         = 8

	// Flags of a set's header and of its entries.
	flagRequired = 1

	// SlotBytes is the size of a slot in shared memory. Every set and every result without
	// checksums fits, with MaxUnknown empty unknown attributes.
	SlotBytes = 512
	// MaxBytes is the largest encoded set or result; decoders refuse what is longer.
	MaxBytes = 4096
)

// Errors that a caller can act on. Decoders return a [Reason] for what cannot be read.
var (
	// ErrNone: the buffer does not begin with a set (or a result): there is none.
	ErrNone = errors.New("no attributes there")
	// ErrSpace: it does not fit into the buffer, or into MaxBytes; nothing was written.
	ErrSpace = errors.New("attributes do not fit")
	// ErrInvalid: the set has an invalid attribute, so that it has no encoding.
	ErrInvalid = errors.New("an attribute is invalid")
	// ErrSeveral: results of several devices have no encoding; whoever joins them is the last.
	ErrSeveral = errors.New("results of several devices")
	// ErrCompact: the compact form has no room for one of the attributes.
	ErrCompact = errors.New("attributes do not fit integrity metadata")
)

var le = binary.LittleEndian

// padded is the size of a value with the zeroes that follow it.
func padded(n int) int { return (n + 7) &^ 7 }

// zeroes says whether all bytes are 0.
func zeroes(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// reader walks the entries of a frame.
type reader struct {
	b    []byte // up to the length in the header
	off  int
	last ID
}

// entry is one entry of a frame.
type entry struct {
	id         ID
	b2, b3     byte // flags of a set, status and reason of a result
	b6, b7     byte // zero in a set, source and sources of a result
	off        int  // of the value
	value, pad []byte
	again      bool // has the id of the entry before it
}

// length checks the length in a header of n bytes and returns what it spans.
func (r *reader) length(b []byte, n int) Reason {
	if len(b) < n {
		return ReasonLength
	}
	length := le.Uint32(b[8:])
	if length < uint32(n) || length > MaxBytes || length%8 != 0 || uint64(length) > uint64(len(b)) {
		return ReasonLength
	}
	r.b, r.off = b[:length:length], n
	return ReasonNone
}

// next reads one entry. The length and all places are multiples of 8, so a value that fits has room
// for its padding.
func (r *reader) next(e *entry) Reason {
	if len(r.b)-r.off < entryBytes {
		return ReasonTruncated
	}
	h := r.b[r.off : r.off+entryBytes]
	size := int(le.Uint16(h[4:]))
	*e = entry{id: ID(le.Uint16(h)), b2: h[2], b3: h[3], b6: h[6], b7: h[7]}
	if !e.id.valid() || e.id < r.last {
		return ReasonOrder
	}
	r.off += entryBytes
	if size > len(r.b)-r.off {
		return ReasonTruncated
	}
	e.off = r.off
	e.value = r.b[r.off : r.off+size : r.off+size]
	e.pad = r.b[r.off+size : r.off+padded(size)]
	e.again = e.id == r.last
	r.off += padded(size)
	r.last = e.id
	return ReasonNone
}

// end checks that nothing is left.
func (r *reader) end() Reason {
	if r.off != len(r.b) {
		return ReasonTrailing
	}
	return ReasonNone
}

// number is the value's first 8 bytes, or all if it has fewer.
func number(b []byte) (v uint64) {
	if len(b) >= 8 {
		return le.Uint64(b)
	}
	for i := min(len(b), 8) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

// What writes a frame writes to a buffer that is known to be large enough, and reads nothing back, as it
// may be shared with somebody who changes it.

// putHeader writes the first 16 bytes.
func putHeader(b []byte, magic string, b5 byte, count, length int, last uint32) {
	copy(b[:len(setMagic)], magic)
	le.PutUint32(b[4:], version|uint32(b5)<<8|uint32(count)<<16)
	le.PutUint64(b[8:], uint64(length)|uint64(last)<<32)
}

// entryHead is the head of an entry as a number.
func entryHead(id ID, b2, b3 byte, size int, b6, b7 byte) uint64 {
	return uint64(id) | uint64(b2)<<16 | uint64(b3)<<24 | uint64(size)<<32 | uint64(b6)<<48 | uint64(b7)<<56
}

// words are the 8-byte words of a plain frame: one without checksums and unknown attributes, which fits
// always. To write them one by one costs less than to slice a buffer for each.
type words [maxPlainFrame / 8][8]byte

// maxPlainFrame is no less than what any plain set or results need.
const maxPlainFrame = max(setHeaderBytes+idEnd*(entryBytes+16), resultsHeaderBytes+idEnd*entryBytes+timingBytes+sumsBytes)

func (w *words) put(i int, v uint64) { le.PutUint64(w[i][:], v) }

func wordsOf(b []byte) *words { return (*words)(unsafe.Pointer((*[maxPlainFrame]byte)(b))) }

// putBytes writes v and zeroes up to a multiple of 8, and returns how many bytes that took.
func putBytes(b, v []byte) int {
	n := padded(len(v))
	clear(b[copy(b, v):n])
	return n
}

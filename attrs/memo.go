package attrs

import (
	"sync/atomic"
	"unsafe"
)

// memoBytes is the longest encoding that is remembered.
const memoBytes = 128

// remembered is an encoding that is remembered, a multiple of 8 bytes as all are; of none if n is 0. What is behind
// it is zero: it goes out with a Short.
type remembered struct {
	n   int
	raw [memoBytes / 8]uint64 // as the bytes lie in memory
}

func (m *remembered) bytes() *[memoBytes]byte { return (*[memoBytes]byte)(unsafe.Pointer(&m.raw)) }

// is returns whether b is that.
func (m *remembered) is(b []byte) bool {
	if len(b) != m.n || m.n == 0 {
		return false
	}
	raw := m.raw[:uint(m.n)/8]
	for i, w := range unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(raw)) {
		if w != raw[i] {
			return false
		}
	}
	return true
}

// Short is an encoding of a few bytes as they lie in memory, with zeroes behind it. It is not to be changed.
type Short [8]uint64

const shortBytes = int(unsafe.Sizeof(Short{}))

// CopyTo copies it, and more than it has, to the start of b, where there must be room for all of it. To copy a number of
// bytes that is known beforehand is faster. The second half is mostly there already: then it is left alone, so that a
// processor that has read it need not read it again.
func (s *Short) CopyTo(b []byte) {
	to := (*Short)(unsafe.Pointer((*[shortBytes]byte)(b)))
	*(*[4]uint64)(to[:]) = [4]uint64(s[:])
	if (s[4]^to[4])|(s[5]^to[5])|(s[6]^to[6])|(s[7]^to[7]) != 0 {
		*(*[4]uint64)(to[4:]) = [4]uint64(s[4:])
	}
}

// Other is 0 if o has the same bytes. It is one question, as mostly it has.
func (s *Short) Other(o *Short) uint64 {
	return (s[0] ^ o[0]) | (s[1] ^ o[1]) | (s[2] ^ o[2]) | (s[3] ^ o[3]) |
		(s[4] ^ o[4]) | (s[5] ^ o[5]) | (s[6] ^ o[6]) | (s[7] ^ o[7])
}

// NoShort is the length of what is no Short: that it has the top bit is enough to know it by.
const NoShort = 1 << 31

func (m *remembered) short() (*Short, uint32) {
	n := uint32(m.n)
	if uint(m.n-1) >= uint(shortBytes) {
		n = NoShort
	}
	return (*Short)(unsafe.Pointer(&m.raw)), n
}

// set remembers b, if it can.
func (m *remembered) set(b []byte) bool {
	if len(b) > memoBytes || len(b)%8 != 0 {
		return false
	}
	m.n = copy(m.bytes()[:], b)
	clear(m.bytes()[m.n:])
	return true
}

// SetDecoder decodes sets one after the other. Programs say the same of one request after the other, so
// it remembers the last set, and what has the same bytes is not looked at again. The zero value is ready.
type SetDecoder struct {
	last remembered
	head setHead
}

// Is returns whether b is what was decoded last, without a mistake. It only compares b, which may be memory that
// somebody else changes meanwhile.
func (d *SetDecoder) Is(b []byte) bool { return d.last.is(b) }

// Last is what was decoded last, and its length, or NoShort. What has the same length and begins with the same is the
// same set.
func (d *SetDecoder) Last() (*Short, uint32) { return d.last.short() }

// Again decodes that once more.
func (d *SetDecoder) Again(s *Set) {
	if s.stamp == 0 || s.stamp != d.head.stamp {
		s.setHead = d.head
	}
}

// Decode is [Set.Decode].
func (d *SetDecoder) Decode(s *Set, b []byte) error {
	if d.Is(b) {
		d.Again(s)
		return nil
	}
	err := s.Decode(b)
	if err != nil || s.nUnknown != 0 || len(s.sums) != 0 || !d.last.set(b) {
		return err // refers to b, if it is a set at all
	}
	s.stamp = stamps.Add(1)
	d.head = s.setHead
	d.head.raw = nil
	return nil
}

// stamps is the last stamp that was given out.
var stamps atomic.Uint64

// ResultsDecoder decodes results as SetDecoder does sets: answers, too, are mostly the same as before.
type ResultsDecoder struct {
	raw  remembered
	last Results
}

// Is is [SetDecoder.Is].
func (d *ResultsDecoder) Is(b []byte) bool { return d.raw.is(b) }

// Short is what Last was decoded from, and its length, or NoShort.
func (d *ResultsDecoder) Short() (*Short, uint32) { return d.raw.short() }

// Last are the results that were decoded last, not to be changed.
func (d *ResultsDecoder) Last() *Results { return &d.last }

// Decode is [Results.Decode].
func (d *ResultsDecoder) Decode(r *Results, b []byte) error {
	if d.Is(b) {
		r.Blocks, r.Origin, r.resultsHead = d.last.Blocks, d.last.Origin, d.last.resultsHead
		return nil
	}
	err := r.Decode(b)
	if err != nil || r.nUnknown != 0 || len(r.sums) != 0 || !d.raw.set(b) {
		return err
	}
	d.last.Blocks, d.last.Origin, d.last.resultsHead = r.Blocks, r.Origin, r.resultsHead
	return nil
}

// ResultsEncoder encodes results one after the other, and remembers those that were repeated ([Results.Repeat]). The
// zero value is ready.
type ResultsEncoder struct {
	stamp  uint64 // of the last; 0: there is none
	blocks uint32
	origin Origin
	raw    remembered
}

// Short is the encoding of results that repeat the last ones encoded, and its length, or NoShort.
func (e *ResultsEncoder) Short(r *Results) (*Short, uint32) {
	if !e.same(r) {
		return nil, NoShort
	}
	return e.raw.short()
}

func (e *ResultsEncoder) same(r *Results) bool {
	return e.stamp != 0 && r.stamp == e.stamp && r.Blocks == e.blocks && r.Origin == e.origin
}

// Encode is [Results.Encode].
func (e *ResultsEncoder) Encode(r *Results, b []byte) (int, error) {
	if e.same(r) && e.raw.n <= len(b) {
		return copy(b, e.raw.bytes()[:e.raw.n]), nil
	}
	n, err := r.Encode(b)
	if err == nil && r.stamp != 0 && n <= memoBytes {
		// Encoded once more, as b may be memory that somebody else changes.
		e.raw.n, _ = r.Encode(e.raw.bytes()[:])
		clear(e.raw.bytes()[e.raw.n:])
		e.stamp, e.blocks, e.origin = r.stamp, r.Blocks, r.Origin
	}
	return n, err
}

// Repeatable notes that other requests are going to be answered as this one was. It returns false if the answers have
// parts that cannot be repeated: checksums, or unknown ids.
func (r *Results) Repeatable() bool {
	if r.nUnknown != 0 || len(r.sums) != 0 {
		return false
	}
	r.stamp = stamps.Add(1)
	return true
}

// Repeat replaces r with the answers of o, which are Repeatable, for a request of so many bytes.
func (r *Results) Repeat(o *Results, bytes int64) {
	if r.stamp == 0 || r.stamp != o.stamp {
		r.resultsHead = o.resultsHead
	}
	r.Blocks, r.Origin = uint32((bytes+BlockSize-1)/BlockSize), OriginNone
}

// Stamp is a number that results have in common which were repeated, one from the other, and have not been changed
// since: their answers are the same. It is 0 for others.
func (r *Results) Stamp() uint64 { return r.stamp }

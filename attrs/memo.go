package attrs

import "sync/atomic"

// memoBytes is the longest encoding that is remembered.
const memoBytes = 128

// SetDecoder decodes sets one after the other. Programs say the same of one request after the other, so
// it remembers the last set, and what has the same bytes is not looked at again. The zero value is ready.
type SetDecoder struct {
	n    int // bytes of raw; 0 for none
	raw  [memoBytes]byte
	head setHead
}

// Is returns whether b is what was decoded last, without a mistake. It only compares b, which may be memory that
// somebody else changes meanwhile.
func (d *SetDecoder) Is(b []byte) bool { return d.n != 0 && string(b) == string(d.raw[:d.n]) }

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
	if err != nil || len(b) > memoBytes || s.nUnknown != 0 || len(s.sums) != 0 {
		return err // refers to b, if it is a set at all
	}
	s.stamp = stamps.Add(1)
	d.n, d.head = copy(d.raw[:], b), s.setHead
	d.head.raw = nil
	return nil
}

// stamps is the last stamp that was given out.
var stamps atomic.Uint64

// ResultsDecoder decodes results as SetDecoder does sets: answers, too, are mostly the same as before.
type ResultsDecoder struct {
	n    int
	raw  [memoBytes]byte
	last Results
}

// Is is [SetDecoder.Is].
func (d *ResultsDecoder) Is(b []byte) bool { return d.n != 0 && string(b) == string(d.raw[:d.n]) }

// Last are the results that were decoded last, not to be changed.
func (d *ResultsDecoder) Last() *Results { return &d.last }

// Decode is [Results.Decode].
func (d *ResultsDecoder) Decode(r *Results, b []byte) error {
	if d.Is(b) {
		r.Blocks, r.Origin, r.resultsHead = d.last.Blocks, d.last.Origin, d.last.resultsHead
		return nil
	}
	err := r.Decode(b)
	if err != nil || len(b) > memoBytes || r.nUnknown != 0 || len(r.sums) != 0 {
		return err
	}
	d.n = copy(d.raw[:], b)
	d.last.Blocks, d.last.Origin, d.last.resultsHead = r.Blocks, r.Origin, r.resultsHead
	return nil
}

// ResultsEncoder encodes results one after the other, and remembers those that were repeated ([Results.Repeat]). The
// zero value is ready.
type ResultsEncoder struct {
	stamp  uint64 // of the last; 0: there is none
	blocks uint32
	origin Origin
	n      int
	raw    [memoBytes]byte
}

// Encode is [Results.Encode].
func (e *ResultsEncoder) Encode(r *Results, b []byte) (int, error) {
	if e.stamp != 0 && r.stamp == e.stamp && r.Blocks == e.blocks && r.Origin == e.origin && e.n <= len(b) {
		return copy(b, e.raw[:e.n]), nil
	}
	n, err := r.Encode(b)
	if err == nil && r.stamp != 0 && n <= memoBytes {
		// Encoded once more, as b may be memory that somebody else changes.
		e.n, _ = r.Encode(e.raw[:])
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

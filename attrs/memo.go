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
func (d *SetDecoder) Again(s *Set) { s.setHead = d.head }

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

// ResultsEncoder encodes results one after the other, and remembers those without times and checksums as the
// decoders do. The zero value is ready.
type ResultsEncoder struct {
	n    int
	raw  [memoBytes]byte
	last Results
}

// Encode is [Results.Encode].
func (e *ResultsEncoder) Encode(r *Results, b []byte) (int, error) {
	if e.n != 0 && e.n <= len(b) && r.like(&e.last) {
		return copy(b, e.raw[:e.n]), nil
	}
	n, err := r.Encode(b)
	if err != nil || n > memoBytes || r.said&(1<<IDTiming|1<<IDChecksum) != 0 || r.nUnknown != 0 {
		return n, err
	}
	// Encoded once more, as b may be memory that somebody else changes.
	e.n, _ = r.Encode(e.raw[:])
	e.last.Blocks, e.last.Origin, e.last.resultsHead = r.Blocks, r.Origin, r.resultsHead
	return n, nil
}

// like says whether r encodes to the same as o, which has neither times nor checksums nor unknown ids.
func (r *Results) like(o *Results) bool {
	return r.answer == o.answer && r.Blocks == o.Blocks && r.Origin == o.Origin && r.frame == o.frame &&
		r.devices[0] == o.devices[0] && r.nDevices == o.nDevices && r.nUnknown == 0
}

// SameAnswers says whether r has the same answers as o, for whatever data.
func (r *Results) SameAnswers(o *Results) bool {
	return r.answer == o.answer && r.frame == o.frame && r.nUnknown == 0 && o.nUnknown == 0
}

// Repeat replaces r with the answers of o, which has none for unknown ids, for a request of so many bytes.
func (r *Results) Repeat(o *Results, bytes int64) {
	r.Blocks, r.Origin, r.resultsHead = uint32((bytes+BlockSize-1)/BlockSize), OriginNone, o.resultsHead
}

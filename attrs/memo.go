package attrs

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
	d.n, d.head = copy(d.raw[:], b), s.setHead
	d.head.raw = nil
	return nil
}

// ResultsDecoder decodes results as SetDecoder does sets: answers, too, are mostly the same as before.
type ResultsDecoder struct {
	n    int
	raw  [memoBytes]byte
	last Results
}

// Is is [SetDecoder.Is], and Again [SetDecoder.Again].
func (d *ResultsDecoder) Is(b []byte) bool { return d.n != 0 && string(b) == string(d.raw[:d.n]) }

// Again decodes what was decoded last once more.
func (d *ResultsDecoder) Again(r *Results) {
	r.Blocks, r.Origin, r.resultsHead = d.last.Blocks, d.last.Origin, d.last.resultsHead
}

// Decode is [Results.Decode].
func (d *ResultsDecoder) Decode(r *Results, b []byte) error {
	if d.Is(b) {
		d.Again(r)
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

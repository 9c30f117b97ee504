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

// Decode is [Set.Decode].
func (d *SetDecoder) Decode(s *Set, b []byte) error {
	if d.n != 0 && string(b) == string(d.raw[:d.n]) {
		s.setHead = d.head
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

// Decode is [Results.Decode].
func (d *ResultsDecoder) Decode(r *Results, b []byte) error {
	if d.n != 0 && string(b) == string(d.raw[:d.n]) {
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

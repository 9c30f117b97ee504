package attrs

import (
	"errors"
	"math/bits"
)

// lowest is the lowest id of a set that has one.
func lowest(m idSet) ID { return ID(bits.TrailingZeros16(uint16(m))) }

// findUnknown is the place of an id among the unknown ones, or where it would go.
func (s *Set) findUnknown(id ID) (int, bool) {
	for i := range int(s.nUnknown) {
		if s.unknown[i].id >= id {
			return i, s.unknown[i].id == id
		}
	}
	return int(s.nUnknown), false
}

// Unknown lists the ids that have no row in the registry, in order. It is for the dump; a server
// that handles private ids looks for them with [Set.UnknownValue].
func (s *Set) Unknown() []ID {
	var list []ID
	for _, u := range s.unknown[:s.nUnknown] {
		list = append(list, u.id)
	}
	return list
}

// NumUnknown is how many ids there are that have no row in the registry, UnknownID the id of one of
// them, from 0 on.
func (s *Set) NumUnknown() int { return int(s.nUnknown) }

// UnknownID is explained at NumUnknown.
func (s *Set) UnknownID(i int) ID { return s.unknown[i].id }

// UnknownValue is the value of an attribute that has no row in the registry. It is memory of
// the buffer that the set was decoded from.
func (s *Set) UnknownValue(id ID) ([]byte, bool) {
	i, ok := s.findUnknown(id)
	if !ok || s.unknown[i].reason != ReasonNone {
		return nil, false
	}
	u := &s.unknown[i]
	return s.raw[u.off : u.off+u.size : u.off+u.size], true
}

// Errors of AddUnknown.
var (
	errKnown   = errors.New("the id has a type of its own")
	errBadID   = errors.New("0 and 0xffff are no ids")
	errTwice   = errors.New("given twice")
	errTooMany = errors.New("too many attributes with unknown ids")
)

// AddUnknown adds an attribute that has no row in the registry: one of the range for private
// use, or of a later version. The value is copied (this allocates; it is for clients).
func (s *Set) AddUnknown(id ID, value []byte) error {
	i, there := s.findUnknown(id)
	switch {
	case id.Known():
		return errKnown
	case !id.valid():
		return errBadID
	case there:
		return errTwice
	case s.nUnknown == MaxUnknown:
		return errTooMany
	case len(value) > MaxBytes || len(s.raw) > 4*MaxBytes:
		return ErrSpace
	}
	s.changed()
	// The old values may be somebody else's memory, behind which there is something.
	off := len(s.raw)
	s.raw = append(s.raw[:off:off], value...)
	copy(s.unknown[i+1:], s.unknown[i:s.nUnknown])
	s.unknown[i] = unknownAttr{id: id, off: uint16(off), size: uint16(len(value))}
	s.nUnknown++
	return nil
}

package attrs

// valueSize is the size of a present attribute's value in bytes.
func (s *Set) valueSize(id ID) int {
	n := registry[id].Size
	if id == IDChecksum {
		n += len(s.sums)
	}
	return n
}

// EncodedSize is how many bytes Encode writes.
func (s *Set) EncodedSize() int {
	n := setHeaderBytes
	for left := s.has; left != 0; left &= left - 1 {
		n += entryBytes + padded(s.valueSize(lowest(left)))
	}
	for i := range int(s.nUnknown) {
		n += entryBytes + padded(int(s.unknown[i].size))
	}
	return n
}

// Encode writes the set to the start of b and returns how many bytes that took, a multiple of
// 8. Sources are not part of it. A set that was decoded without an invalid attribute encodes to
// the same bytes.
//
// A set that is longer than b or than MaxBytes is not written at all: ErrSpace. One with an
// invalid attribute has no encoding: ErrInvalid. b may be shared memory; it is only written to.
func (s *Set) Encode(b []byte) (int, error) {
	if len(b) < maxPlainSet || s.nUnknown != 0 || len(s.sums) != 0 {
		if size := s.EncodedSize(); size > len(b) || size > MaxBytes {
			return 0, ErrSpace
		}
	}
	if !s.encodable() {
		return 0, ErrInvalid
	}
	count, flags := int(s.nUnknown), byte(0)
	if s.required != 0 {
		flags = flagRequired
	}
	for i := range int(s.nUnknown) {
		if s.unknown[i].required {
			flags = flagRequired
		}
	}
	w := writer{b: b, off: setHeaderBytes}
	for left := s.has; left != 0; left &= left - 1 {
		s.encodeOne(&w, lowest(left))
		count++
	}
	for i := range int(s.nUnknown) {
		u := &s.unknown[i]
		w.entry(entry{id: u.id, b2: requiredFlag(u.required)}, int(u.size))
		w.bytes(s.raw[u.off : u.off+u.size])
		w.align()
	}
	w.header(setMagic, flags, count, w.off, 0)
	return w.off, nil
}

// maxPlainSet is more than any set without checksums and unknown attributes needs.
const maxPlainSet = setHeaderBytes + idEnd*(entryBytes+16)

// encodable says whether all that came is valid.
func (s *Set) encodable() bool {
	for i := range int(s.nUnknown) {
		if s.unknown[i].reason != ReasonNone {
			return false
		}
	}
	return s.bad == 0 && s.frame == ReasonNone
}

func (s *Set) encodeOne(w *writer, id ID) {
	w.entry(entry{id: id, b2: requiredFlag(s.required.has(id))}, s.valueSize(id))
	if registry[id].Size != 0 {
		w.number(s.val[id])
	}
	switch id {
	case IDTenant:
		kind := uint64(0)
		if s.cgroup {
			kind = 1
		}
		w.number(kind)
	case IDChecksum:
		w.bytes(s.sums)
		w.align()
	}
}

func requiredFlag(on bool) byte {
	if on {
		return flagRequired
	}
	return 0
}

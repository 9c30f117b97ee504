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
	if p := s.ready; p != nil && p.n <= len(b) {
		return copy(b, p.bytes()[:p.n]), nil
	}
	if len(b) < maxPlainFrame || s.nUnknown != 0 || len(s.sums) != 0 {
		if size := s.EncodedSize(); size > len(b) || size > MaxBytes {
			return 0, ErrSpace
		}
		return s.encodeAll(b)
	}
	if s.bad != 0 || s.frame != ReasonNone {
		return 0, ErrInvalid
	}
	w, i, count, flags := wordsOf(b), setHeaderBytes/8, 0, byte(0)
	for left := s.has; left != 0; left &= left - 1 {
		id := lowest(left)
		head := plainHeads[id]
		if s.required.has(id) {
			head |= flagRequired << 16
			flags = flagRequired
		}
		w.put(i, head)
		i++
		if id != IDTiming {
			w.put(i, s.val[id])
			i++
		}
		if id == IDTenant {
			w.put(i, s.tenantKind())
			i++
		}
		count++
	}
	putHeader(b, setMagic, flags, count, 8*i, 0)
	return 8 * i, nil
}

// encodeAll is Encode for all sets.
func (s *Set) encodeAll(b []byte) (int, error) {
	if !s.encodable() {
		return 0, ErrInvalid
	}
	off, count, flags := setHeaderBytes, int(s.nUnknown), byte(0)
	if s.required != 0 {
		flags = flagRequired
	}
	for left := s.has; left != 0; left &= left - 1 {
		id := lowest(left)
		le.PutUint64(b[off:], entryHead(id, requiredFlag(s.required.has(id)), 0, s.valueSize(id), 0, 0))
		off += entryBytes
		if id != IDTiming {
			le.PutUint64(b[off:], s.val[id])
			off += 8
		}
		switch id {
		case IDTenant:
			le.PutUint64(b[off:], s.tenantKind())
			off += 8
		case IDChecksum:
			off += putBytes(b[off:], s.sums)
		}
		count++
	}
	for i := range int(s.nUnknown) {
		u := &s.unknown[i]
		if u.required {
			flags = flagRequired
		}
		le.PutUint64(b[off:], entryHead(u.id, requiredFlag(u.required), 0, int(u.size), 0, 0))
		off += entryBytes
		off += putBytes(b[off:], s.raw[u.off:u.off+u.size])
	}
	putHeader(b, setMagic, flags, count, off, 0)
	return off, nil
}

// tenantKind is the second word of a tenant.
func (s *Set) tenantKind() uint64 {
	if s.cgroup {
		return 1
	}
	return 0
}

// plainHeads are the heads of entries that are not required; those of checksums without checksums.
var plainHeads = func() (heads [idEnd]uint64) {
	for id := ID(1); id < idEnd; id++ {
		heads[id] = entryHead(id, 0, 0, registry[id].Size, 0, 0)
	}
	return heads
}()

// encodable says whether all that came is valid.
func (s *Set) encodable() bool {
	for i := range int(s.nUnknown) {
		if s.unknown[i].reason != ReasonNone {
			return false
		}
	}
	return s.bad == 0 && s.frame == ReasonNone
}

func requiredFlag(on bool) byte {
	if on {
		return flagRequired
	}
	return 0
}

package attrs

// Decode replaces s with the set that b begins with; what follows it in b is not looked at.
//
// It returns ErrNone if b does not begin with a set, and a [Reason] if the set as a whole
// cannot be read; s then has no attributes, but knows the reason and whether something in it
// was required. An attribute that is invalid does not make Decode fail: it is recorded, and
// answered by [Results.Begin].
//
// b has to be private: memory that somebody else can change is copied first, by the caller. s
// refers to b (checksums, values of unknown attributes) and is good for as long as b is not
// changed. Decode never panics and never allocates.
func (s *Set) Decode(b []byte) error {
	s.Clear()
	if len(b) < len(setMagic) || string(b[:len(setMagic)]) != setMagic {
		return ErrNone
	}
	// Magic, version and flags are where they are in all versions.
	if len(b) < 6 {
		return s.refuse(ReasonLength)
	}
	s.frameRequired = b[5]&flagRequired != 0
	if b[4] != version {
		return s.refuse(ReasonVersion)
	}
	var r reader
	if why := r.length(b, setHeaderBytes); why != ReasonNone {
		return s.refuse(why)
	}
	if b[5]&^flagRequired != 0 || le.Uint32(b[12:]) != 0 {
		return s.refuse(ReasonHeader)
	}
	if why := s.decodeEntries(&r, int(le.Uint16(b[6:]))); why != ReasonNone {
		return s.refuse(why)
	}
	return nil
}

// refuse empties the set but for why.
func (s *Set) refuse(why Reason) error {
	s.setHead = setHead{frame: why, frameRequired: s.frameRequired}
	return why
}

// decodeEntries takes the entries, and makes frameRequired true at once when one is required:
// the set may turn out to be unreadable after it.
func (s *Set) decodeEntries(r *reader, count int) Reason {
	announced := s.frameRequired
	any := false
	var e entry
	for range count {
		if why := r.next(&e); why != ReasonNone {
			return why
		}
		if e.b2&flagRequired != 0 {
			s.frameRequired, any = true, true
		}
		if e.id.Known() {
			s.take(&e)
		} else if !s.takeUnknown(&e) {
			return ReasonTooMany
		}
	}
	if why := r.end(); why != ReasonNone {
		return why
	}
	if any != announced {
		return ReasonHeader
	}
	s.frameRequired = false
	s.raw = r.b
	return ReasonNone
}

// take takes the entry of a known attribute, or records why it is invalid.
func (s *Set) take(e *entry) {
	required := e.b2&flagRequired != 0
	if why := s.checkEntry(e); why != ReasonNone {
		s.reject(e.id, why, required)
		return
	}
	s.put(e.id, number(e.value), SourceExplicit)
	s.required.put(e.id, required)
	switch e.id {
	case IDChecksum:
		if len(e.value) > 8 {
			s.sums = e.value[8:]
		}
	case IDTenant:
		s.cgroup = e.value[8] == 1
	}
}

// checkEntry says what is wrong with the entry of a known attribute.
func (s *Set) checkEntry(e *entry) Reason {
	row := &registry[e.id]
	switch {
	case e.again:
		return ReasonDuplicate
	case reserved(e):
		return ReasonReserved
	case len(e.value) != row.Size && (row.SizeRule == "" || len(e.value) < row.Size):
		return ReasonSize
	}
	switch e.id {
	case IDChecksum:
		return checkChecksum(number(e.value), e.value[8:])
	case IDTenant:
		if e.value[8] > 1 {
			return ReasonValue
		}
	}
	return checkScalar(e.id, number(e.value))
}

// reserved says whether bits are set that must be 0.
func reserved(e *entry) bool {
	return e.b2&^flagRequired != 0 || e.b3 != 0 || e.b6 != 0 || e.b7 != 0 || !zeroes(e.pad)
}

// takeUnknown keeps the place of an attribute that has no row. It fails when there are too many.
func (s *Set) takeUnknown(e *entry) bool {
	required := e.b2&flagRequired != 0
	if e.again {
		u := &s.unknown[s.nUnknown-1]
		u.reason = ReasonDuplicate
		u.required = u.required || required
		return true
	}
	if s.nUnknown == MaxUnknown {
		return false
	}
	u := &s.unknown[s.nUnknown]
	s.nUnknown++
	*u = unknownAttr{id: e.id, off: uint16(e.off), size: uint16(len(e.value)), required: required}
	if reserved(e) {
		u.reason = ReasonReserved
	}
	return true
}

package attrs

import "time"

// MaxUnknown is how many ids that are not known here a set or a result can hold.
const MaxUnknown = 16

// Set holds the attributes of one request, whatever their source. The zero value is the empty set.
//
// It is a plain value of a fixed size that may be copied. Checksums, and the values of attributes
// that are not known here, are references to memory of whoever filled it: see [Set.Decode].
type Set struct {
	setHead
	unknown [MaxUnknown]unknownAttr
}

// setHead is a set but for its unknown attributes, so that the others of a set, which is read for every
// request, can be emptied and copied for themselves.
type setHead struct {
	// val has each attribute's value, or its first 8 bytes, as one number.
	val [idEnd]uint64
	// sums are the checksums to verify.
	sums []byte
	// raw is what the unknown attributes' places refer to.
	raw []byte

	// stamp is the same for sets that say the same; 0 is none.
	stamp uint64
	// ready is the set's encoding, if it was prepared.
	ready *remembered

	has, required idSet
	// bad are attributes that came but are invalid. A weaker source may have the attribute too.
	bad, badRequired idSet

	source  [idEnd]Source
	offered [idEnd]Sources
	reason  [idEnd]Reason // of those in bad

	cgroup        bool // the tenant is a cgroup
	frame         Reason
	frameRequired bool
	nUnknown      uint8
}

// Clear makes s the empty set.
func (s *Set) Clear() { s.setHead = setHead{} }

// Stamp is a number that all sets have in common which a [SetDecoder] has decoded from the same bytes, one after
// the other, and that have not been changed since. They say the same, so that what followed from one of them
// follows from the others. It is 0 for sets from elsewhere.
func (s *Set) Stamp() uint64 { return s.stamp }

// changed notes that the set does not say any more what it did.
func (s *Set) changed() { s.stamp, s.ready = 0, nil }

// Prepare encodes the set once for all, for a program that is to say the same of many requests: until it is changed,
// Encode copies that. It allocates. A set without an encoding stays as it is, and so does one with checksums,
// which are of one request, or with unknown attributes.
func (s *Set) Prepare() {
	var p remembered
	if len(s.sums) != 0 || s.nUnknown != 0 {
		return
	}
	if n, err := s.Encode(p.bytes()[:]); err == nil {
		p.n = n
		s.ready = &p
	}
}

// Short is the encoding of a set that was prepared and is not changed since, and its length, or NoShort.
func (s *Set) Short() (*Short, uint32) {
	if s.ready == nil {
		return nil, NoShort
	}
	return s.ready.short()
}

// unknownAttr is an attribute without a row in the registry; they are in order of their ids, which
// are above those of all rows.
type unknownAttr struct {
	id        ID
	off, size uint16 // of the value, in raw
	required  bool
	reason    Reason // if invalid
}

// Has says whether there is a valid value for the attribute.
func (s *Set) Has(id ID) bool { return id.Known() && s.has.has(id) }

// Empty says whether there is nothing to do or to answer: the fast way past everything else.
func (s *Set) Empty() bool {
	return s.has == 0 && s.bad == 0 && s.nUnknown == 0 && s.frame == ReasonNone
}

// Came has bit 1<<id for each attribute of the registry that came, valid or not.
func (s *Set) Came() uint16 { return uint16(s.has | s.bad) }

// Source is where the attribute's value came from.
func (s *Set) Source(id ID) Source {
	if !s.Has(id) {
		return SourceNone
	}
	return s.source[id]
}

// Offered are the sources that had a value for the attribute, the winner among them.
func (s *Set) Offered(id ID) Sources {
	if !id.Known() {
		return 0
	}
	return s.offered[id]
}

// Required says whether the request is to fail if the attribute is not handled.
func (s *Set) Required(id ID) bool {
	if id.Known() {
		return s.required.has(id) || s.badRequired.has(id)
	}
	i, ok := s.findUnknown(id)
	return ok && s.unknown[i].required
}

// Invalid is why an attribute that came was not taken; ReasonNone if that did not happen.
func (s *Set) Invalid(id ID) Reason {
	if id.Known() {
		return s.reason[id]
	}
	if i, ok := s.findUnknown(id); ok {
		return s.unknown[i].reason
	}
	return ReasonNone
}

// Frame is why the whole set could not be decoded; ReasonNone if it could.
func (s *Set) Frame() Reason { return s.frame }

// Require marks attributes that are there as required; of others it does nothing.
func (s *Set) Require(ids ...ID) {
	s.changed()
	for _, id := range ids {
		if s.Has(id) {
			s.required.put(id, true)
		} else if i, ok := s.findUnknown(id); ok {
			s.unknown[i].required = true
		}
	}
}

// Mark makes src the source of all attributes of the set, which so far has had one source only.
func (s *Set) Mark(src Source) {
	s.changed()
	for id := ID(1); id < idEnd; id++ {
		if s.has.has(id) {
			s.source[id], s.offered[id] = src, 1<<src
		}
	}
}

// put takes a value from a source if it is in range; else the attribute is invalid.
func (s *Set) put(id ID, v uint64, src Source) {
	if why := checkScalar(id, v); why != ReasonNone {
		s.reject(id, why, false)
		return
	}
	s.changed()
	s.bad.put(id, false)
	s.badRequired.put(id, false)
	s.reason[id] = ReasonNone
	s.val[id] = v
	s.has.put(id, true)
	s.source[id] = src
	s.offered[id] |= 1 << src
}

// reject makes the attribute invalid and takes back what value it had.
func (s *Set) reject(id ID, why Reason, required bool) {
	s.changed()
	s.badRequired.put(id, s.Required(id) || required)
	s.has.put(id, false)
	s.required.put(id, false)
	s.bad.put(id, true)
	s.reason[id] = why
	s.val[id], s.source[id], s.offered[id] = 0, SourceNone, 0
}

// The setters give the attribute explicitly; [Set.Mark] changes the source. A value out of range
// makes the attribute invalid, and [Set.Encode] fails then.

// SetHint sets the cache hint.
func (s *Set) SetHint(h Hint) { s.put(IDHint, uint64(h), SourceExplicit) }

// SetMode sets the write mode.
func (s *Set) SetMode(m WriteMode) { s.put(IDMode, uint64(m), SourceExplicit) }

// SetPriority sets the priority.
func (s *Set) SetPriority(p Priority) { s.put(IDPriority, p.scalar(), SourceExplicit) }

// SetLifetime sets the lifetime.
func (s *Set) SetLifetime(l Lifetime) { s.put(IDLifetime, uint64(l), SourceExplicit) }

// SetTrace sets the trace id.
func (s *Set) SetTrace(n uint64) { s.put(IDTrace, n, SourceExplicit) }

// SetTiming asks for the times.
func (s *Set) SetTiming() { s.put(IDTiming, 0, SourceExplicit) }

// SetTenant sets the tenant.
func (s *Set) SetTenant(t Tenant) {
	s.put(IDTenant, t.ID, SourceExplicit)
	s.cgroup = t.Cgroup
}

// SetDeadline sets the deadline, 1 µs to 2^32-1 µs (71 minutes); parts of a microsecond are
// dropped.
func (s *Set) SetDeadline(d time.Duration) {
	s.put(IDDeadline, uint64(d/time.Microsecond), SourceExplicit)
}

// SetChecksum sets the checksum attribute, which refers to c.Sums from then on.
func (s *Set) SetChecksum(c Checksum) {
	v := c.scalar()
	if why := checkChecksum(v, c.Sums); why != ReasonNone {
		s.reject(IDChecksum, why, false)
		return
	}
	s.put(IDChecksum, v, SourceExplicit)
	s.sums = c.Sums
}

// Hint is the cache hint; HintDefault if there is none.
func (s *Set) Hint() Hint { return Hint(s.val[IDHint]) }

// Mode is the write mode; 0 if there is none.
func (s *Set) Mode() WriteMode { return WriteMode(s.val[IDMode]) }

// Priority is the priority; of class 0 if there is none.
func (s *Set) Priority() Priority { return priorityOf(s.val[IDPriority]) }

// Lifetime is the lifetime; 0 if there is none.
func (s *Set) Lifetime() Lifetime { return Lifetime(s.val[IDLifetime]) }

// Tenant is the tenant; the zero value if there is none (ask [Set.Has], 0 is an id too).
func (s *Set) Tenant() Tenant {
	return Tenant{ID: s.val[IDTenant], Cgroup: s.cgroup && s.Has(IDTenant)}
}

// Deadline is the time that the request may take; 0 if there is no deadline.
func (s *Set) Deadline() time.Duration {
	return time.Duration(s.val[IDDeadline]) * time.Microsecond
}

// Timing says whether the times are asked for.
func (s *Set) Timing() bool { return s.has.has(IDTiming) }

// Trace is the trace id; 0 if there is none (ask [Set.Has], 0 is an id too).
func (s *Set) Trace() uint64 { return s.val[IDTrace] }

// Checksum is the checksum attribute; of algorithm 0 if there is none.
func (s *Set) Checksum() Checksum {
	v := s.val[IDChecksum]
	if v == 0 {
		return Checksum{}
	}
	return Checksum{Algorithm: Algorithm(v), Return: v>>8&checksumReturn != 0, Sums: s.sums}
}

// Piece narrows the set to a piece of the request it was made for: n blocks from block first
// on. Only the checksums to verify depend on that; if they do not reach so far, they become
// invalid.
func (s *Set) Piece(first, n int) {
	c := s.Checksum()
	if len(c.Sums) == 0 {
		return
	}
	if first < 0 || n <= 0 || first > c.Blocks() || n > c.Blocks()-first {
		s.reject(IDChecksum, ReasonCount, false)
		s.sums = nil
		return
	}
	w := c.Algorithm.Width()
	s.changed()
	s.sums = c.Sums[first*w : (first+n)*w : (first+n)*w]
}

// Merge takes from o every attribute that s does not have from the same or a stronger source. An
// attribute that is invalid in one of them stays reported as that, and the other's value is used.
// The required flag is that of the winner. Attributes unknown here are those of s if it has any.
func (s *Set) Merge(o *Set) {
	s.changed()
	for left := o.has; left != 0; left &= left - 1 {
		s.mergeOne(lowest(left), o)
	}
	for left := o.bad &^ s.bad; left != 0; left &= left - 1 {
		id := lowest(left)
		s.bad.put(id, true)
		s.reason[id] = o.reason[id]
	}
	s.badRequired |= o.badRequired
	if s.frame == ReasonNone {
		s.frame = o.frame
	}
	s.frameRequired = s.frameRequired || o.frameRequired
	if s.nUnknown == 0 && o.nUnknown != 0 {
		s.raw, s.unknown, s.nUnknown = o.raw, o.unknown, o.nUnknown
	}
}

// mergeOne takes one attribute from o, which has it, if o's source is stronger.
func (s *Set) mergeOne(id ID, o *Set) {
	had := s.has.has(id)
	s.offered[id] |= o.offered[id]
	if had && s.source[id] >= o.source[id] {
		return
	}
	s.has.put(id, true)
	s.required.put(id, o.required.has(id))
	s.val[id], s.source[id] = o.val[id], o.source[id]
	switch id {
	case IDChecksum:
		s.sums = o.sums
	case IDTenant:
		s.cgroup = o.cgroup
	}
}

package attrs

import "time"

// CompactBytes is the size of the compact form: what fits beside a CRC64 tuple in 32 bytes of
// integrity metadata. It has no checksums (the tuple is one), no trace id, and nothing that is not
// known here.
const CompactBytes = 16

const (
	compactSet     = 0xa7
	compactResults = 0xa8

	compactTiming = 1 << 0
	compactCgroup = 1 << 1
	compactFlags  = compactTiming | compactCgroup
)

// EncodeCompact writes the set to the first CompactBytes of b. What the compact form cannot carry
// makes it fail with ErrCompact, so that nothing is dropped without a word.
//
//	0  0xa7   1  version 1       2  hint + 1 | mode << 4   3  priority class | level << 4
//	4  lifetime   5  flags: 1 timing, 2 the tenant is a cgroup   6  bit n: attribute n is required (2)
//	8  deadline in µs (4)       12  tenant, 1 to 2^32-1 (4)
func (s *Set) EncodeCompact(b []byte) error {
	if len(b) < CompactBytes {
		return ErrSpace
	}
	tenant := s.val[IDTenant]
	if s.Has(IDTenant) && (tenant == 0 || tenant > 1<<32-1) || s.Has(IDChecksum) ||
		s.Has(IDTrace) || s.nUnknown != 0 || !s.encodable() {
		return ErrCompact
	}
	clear(b[:CompactBytes])
	b[0], b[1] = compactSet, version
	if s.Has(IDHint) {
		b[2] = byte(s.val[IDHint]) + 1
	}
	p := s.Priority()
	b[2] |= byte(s.val[IDMode]) << 4
	b[3] = byte(p.Class) | p.Level<<4
	b[4] = byte(s.val[IDLifetime])
	if s.Timing() {
		b[5] |= compactTiming
	}
	if s.Tenant().Cgroup {
		b[5] |= compactCgroup
	}
	le.PutUint16(b[6:], uint16(s.required))
	le.PutUint32(b[8:], uint32(s.val[IDDeadline]))
	le.PutUint32(b[12:], uint32(tenant))
	return nil
}

// DecodeCompact adds what the compact form in b says, from SourceIntegrity. It returns ErrNone if b
// does not begin with one, and a [Reason] if it cannot be read; nothing is added then.
func (s *Set) DecodeCompact(b []byte) error {
	if len(b) < CompactBytes || b[0] != compactSet {
		return ErrNone
	}
	required := idSet(le.Uint16(b[6:]))
	switch {
	case b[1] != version:
		return s.refuseCompact(ReasonVersion, required != 0)
	case b[5]&^compactFlags != 0:
		return s.refuseCompact(ReasonReserved, required != 0)
	}
	var o Set
	put := func(id ID, v uint64, there bool) {
		if there {
			o.put(id, v, SourceIntegrity)
		}
	}
	hint, mode := b[2]&0xf, b[2]>>4
	put(IDHint, uint64(hint)-1, hint != 0)
	put(IDMode, uint64(mode), mode != 0)
	put(IDPriority, Priority{Class: Class(b[3] & 0xf), Level: b[3] >> 4}.scalar(), b[3] != 0)
	put(IDLifetime, uint64(b[4]), b[4] != 0)
	put(IDTiming, 0, b[5]&compactTiming != 0)
	put(IDDeadline, uint64(le.Uint32(b[8:])), le.Uint32(b[8:]) != 0)
	put(IDTenant, uint64(le.Uint32(b[12:])), le.Uint32(b[12:]) != 0)
	o.cgroup = b[5]&compactCgroup != 0 && o.Has(IDTenant)
	o.required, o.badRequired = o.has&required, o.bad&required
	if required&^(o.has|o.bad) != 0 {
		return s.refuseCompact(ReasonHeader, true) // requires what is not there
	}
	s.Merge(&o)
	return nil
}

// refuseCompact notes that something could not be read, as Decode does.
func (s *Set) refuseCompact(why Reason, required bool) error {
	o := Set{setHead: setHead{frame: why, frameRequired: required}}
	s.Merge(&o)
	return why
}

// EncodeCompact writes the results to the first CompactBytes of b: without reasons, sources and what
// is returned but the total time.
//
//	0  0xa8   1  version 1 | origin << 4       2  the device's number, low 16 bits (2)
//	4  4 bits for each attribute from 1 on: its status (5)      9  0 (3)      12  total time in µs (4)
func (r *Results) EncodeCompact(b []byte) error {
	if len(b) < CompactBytes {
		return ErrSpace
	}
	clear(b[:CompactBytes])
	b[0], b[1] = compactResults, version|byte(r.Origin)<<4
	le.PutUint16(b[2:], uint16(r.devices[0]))
	for id := ID(1); id < idEnd; id++ {
		b[4+(id-1)/2] |= byte(r.answer[id].Status) << (4 * ((id - 1) % 2))
	}
	if t, ok := r.Timing(); ok {
		le.PutUint32(b[12:], uint32(min(t.Total/time.Microsecond, 1<<32-1)))
	}
	return nil
}

// DecodeCompact replaces r with the results in b. It returns ErrNone if there are none, and a
// [Reason] if they cannot be read.
func (r *Results) DecodeCompact(b []byte) error {
	r.Clear()
	if len(b) < CompactBytes || b[0] != compactResults {
		return ErrNone
	}
	switch {
	case b[1]&0xf != version:
		return ReasonVersion
	case Origin(b[1]>>4) >= originEnd || !zeroes(b[9:12]) || b[8]>>4 != 0:
		return ReasonHeader
	}
	var o Results
	o.Blocks, o.Origin = 1, Origin(b[1]>>4)
	if d := Device(le.Uint16(b[2:])); d != 0 {
		o.devices[0], o.nDevices = d, 1
	}
	for id := ID(1); id < idEnd; id++ {
		st := Status(b[4+(id-1)/2] >> (4 * ((id - 1) % 2)) & 0xf)
		if st >= statusEnd {
			return ReasonValue
		}
		o.set(id, st, ReasonNone)
	}
	if o.answer[IDTiming].Status == Handled {
		o.timing.Total = time.Duration(le.Uint32(b[12:])) * time.Microsecond
	}
	*r = o
	return nil
}

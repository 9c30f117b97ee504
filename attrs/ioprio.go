package attrs

// The kernel's I/O priority, 16 bits: class in bits 15 to 13, hint in 12 to 3, level in 2 to 0.
// The kernel passes any hint on. 1 to 7 (IOPRIO_HINT_DEV_DURATION_LIMIT_*) mean command
// duration limits to disks, and the next ones up may get a meaning too; so ours are near the
// upper end.
const (
	// HintIOPrio plus a [Hint] is the number in ioprio's hint field: 768 default, 769 cache, 770
	// bypass, 771 once, 772 pin, 773 unpin, 774 evict, 775 prefetch. 776 to 783 are kept for
	// further hints.
	HintIOPrio = 0x300

	ioprioClassShift = 13
	ioprioHintShift  = 3
	ioprioHintMask   = 0x3ff
	ioprioLevelMask  = 7
)

// ioprioNone is what a request has whose issuer asked for nothing: class be, level 4 (IOPRIO_NORM).
var ioprioNone = Priority{Class: ClassBE, Level: 4}

// IOPrio is the ioprio value that carries the set's cache hint and priority, for sqe->ioprio,
// aio_reqprio or ioprio_set(2); it is 0 if the set has neither. Nothing else of a set fits.
//
// The kernel drops the hint of a value without a class, so a hint alone goes with be/4, which
// is what an ordinary task has anyway. Class rt needs CAP_SYS_NICE.
func (s *Set) IOPrio() uint16 {
	if !s.Has(IDHint) && !s.Has(IDPriority) {
		return 0
	}
	p := ioprioNone
	if s.Has(IDPriority) {
		p = s.Priority()
	}
	v := uint16(p.Class)<<ioprioClassShift | uint16(p.Level)
	if s.Has(IDHint) {
		v |= (HintIOPrio + uint16(s.Hint())) << ioprioHintShift
	}
	return v
}

// AddIOPrio adds what an ioprio value of a request says, from [SourceIOPrio]. Hints that are
// not ours are left alone. be/4 is no priority, as every request has it that nobody gave one.
func (s *Set) AddIOPrio(v uint16) {
	var o Set
	class, level := Class(v>>ioprioClassShift), uint8(v&ioprioLevelMask)
	p := Priority{Class: class, Level: level}
	if class >= ClassRT && class <= ClassIdle && p != ioprioNone {
		o.put(IDPriority, p.scalar(), SourceIOPrio)
	}
	hint := v >> ioprioHintShift & ioprioHintMask
	if hint >= HintIOPrio && hint <= HintIOPrio+uint16(HintPrefetch) {
		o.put(IDHint, uint64(hint-HintIOPrio), SourceIOPrio)
	}
	s.Merge(&o)
}

// AddWriteHint adds what a write hint (RWH_WRITE_LIFE_*, enum rw_hint) of a request says, from
// [SourceKernel]; 0 (not set) and numbers above 5 say nothing.
func (s *Set) AddWriteHint(v uint8) {
	if checkScalar(IDLifetime, uint64(v)) != ReasonNone {
		return
	}
	var o Set
	o.put(IDLifetime, uint64(v), SourceKernel)
	s.Merge(&o)
}

// AddCgroup adds the cgroup of a request as its tenant, from [SourceKernel].
func (s *Set) AddCgroup(id uint64) {
	var o Set
	o.put(IDTenant, id, SourceKernel)
	o.cgroup = true
	s.Merge(&o)
}

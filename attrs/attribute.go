package attrs

import "fmt"

// ID names an attribute on the wire; the numbers stay.
//
// 1 to 0x0fff are given out by this package, 0x1000 to 0xefff are reserved, [PrivateMin] to
// [PrivateMax] belong to whoever runs both ends. 0 and 0xffff are no ids.
type ID uint16

// The attributes; [Attributes] says what each one means.
const (
	IDHint     ID = 1
	IDMode     ID = 2
	IDPriority ID = 3
	IDChecksum ID = 4
	IDLifetime ID = 5
	IDTenant   ID = 6
	IDDeadline ID = 7
	IDTiming   ID = 8
	IDTrace    ID = 9

	idEnd = 10

	PrivateMin ID = 0xf000
	PrivateMax ID = 0xfffe

	idNone ID = 0xffff
)

// Known says whether this package has a row for the id.
func (id ID) Known() bool { return id > 0 && id < idEnd }

// Private says whether the id is in the range for private use.
func (id ID) Private() bool { return id >= PrivateMin && id <= PrivateMax }

// valid says whether an attribute may have that id.
func (id ID) valid() bool { return id != 0 && id != idNone }

func (id ID) String() string {
	if id.Known() {
		return registry[id].Name
	}
	return fmt.Sprintf("0x%04x", uint16(id))
}

// idSet has a bit for each known id.
type idSet uint16

func (m idSet) has(id ID) bool { return m>>id&1 != 0 }

func (m *idSet) put(id ID, on bool) {
	*m &^= 1 << id
	if on {
		*m |= 1 << id
	}
}

// Direction is what a request does, and for which requests an attribute is meant.
type Direction uint8

// The directions. A discard counts as a write.
const (
	Read  Direction = 1
	Write Direction = 2
	Both            = Read | Write
)

func (d Direction) String() string {
	return nameOf([]string{"none", "read", "write", "both"}, uint64(d), "direction")
}

// Hint says what the cache should do with the data of a request.
type Hint uint8

// The hints. [HintIOPrio] plus the number is what ioprio carries, so they stay below 16.
const (
	HintDefault Hint = iota
	HintCache
	HintBypass
	HintOnce
	HintPin
	HintUnpin
	HintEvict
	HintPrefetch
)

func (h Hint) String() string { return valueName(IDHint, uint64(h)) }

// WriteMode is the write mode of one request; 0 is none given.
type WriteMode uint8

// The write modes.
const (
	Writethrough WriteMode = iota + 1
	Writeback
	Writearound
)

func (m WriteMode) String() string { return valueName(IDMode, uint64(m)) }

// Class is a priority class, with the kernel's numbers; 0 is none given.
type Class uint8

// The priority classes.
const (
	ClassRT Class = iota + 1
	ClassBE
	ClassIdle
)

func (c Class) String() string { return valueName(IDPriority, uint64(c)) }

// Priority is a class and a level in it, 0 (first) to 7. The zero value is none given.
type Priority struct {
	Class Class
	Level uint8
}

const levelMax = 7

func (p Priority) String() string { return fmt.Sprintf("%v/%d", p.Class, p.Level) }

// scalar is the priority as it is on the wire: class, then level.
func (p Priority) scalar() uint64 { return uint64(p.Class) | uint64(p.Level)<<8 }

func priorityOf(v uint64) Priority { return Priority{Class: Class(v), Level: uint8(v >> 8)} }

// Lifetime is how long data is expected to live, with the numbers of the kernel's write hints
// (RWH_WRITE_LIFE_*); 0 is none given.
type Lifetime uint8

// The lifetimes. LifetimeNone is the kernel's "no expectation", said explicitly.
const (
	LifetimeNone Lifetime = iota + 1
	LifetimeShort
	LifetimeMedium
	LifetimeLong
	LifetimeExtreme
)

func (l Lifetime) String() string { return valueName(IDLifetime, uint64(l)) }

// Tenant is on whose account a request goes: a number of the operator's own or the id of a cgroup
// (the inode number of its folder, as BPF and name_to_handle_at give it).
type Tenant struct {
	ID     uint64
	Cgroup bool
}

func (t Tenant) String() string {
	if t.Cgroup {
		return fmt.Sprintf("cgroup:%d", t.ID)
	}
	return fmt.Sprintf("%d", t.ID)
}

// valueName is the name that the registry has for a value.
func valueName(id ID, v uint64) string { return nameOf(registry[id].Values, v, registry[id].Name) }

// nameOf is a name from a list, or the number.
func nameOf(names []string, v uint64, kind string) string {
	if v < uint64(len(names)) && names[v] != "" {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", kind, v)
}

// valueOf is the number of a name in a list.
func valueOf(names []string, name string) (uint64, bool) {
	for i, n := range names {
		if n != "" && n == name {
			return uint64(i), true
		}
	}
	return 0, false
}

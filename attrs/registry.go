package attrs

import (
	"fmt"
	"slices"
	"strings"
)

// Attribute is a row of the registry: all that is to be said about one attribute.
type Attribute struct {
	ID ID
	// Name is what the command line and the documentation call it.
	Name string
	// Direction is for which requests it is meant; for others it is ignored ([ReasonDirection]).
	Direction Direction
	// Size of the value in bytes; if there is a SizeRule, of the fixed part.
	Size int
	// SizeRule says in words how long the value is, if it has no fixed size.
	SizeRule string
	// Layout is the value on the wire, in words.
	Layout string
	// Units of the value, if it is a quantity.
	Units string
	// Values are the names of the values, by number, if it is an enumeration; an empty name is a
	// number that is not used.
	Values []string
	// Returns is the size in bytes, and in words the contents, of what the result carries.
	Returns string
	// Doc is what it does.
	Doc string

	// min and max are the least and largest value of the first Size bytes, up to 8, taken as one
	// number. Priority and checksum have checks of their own besides.
	min, max uint64
}

const noLimit = 1<<64 - 1

// registry has a row for each id; row 0 is empty.
var registry = [idEnd]Attribute{
	IDHint: {
		ID: IDHint, Name: "hint", Direction: Both, Size: 1, Layout: "number", max: 7,
		Values: []string{
			"default", "cache", "bypass", "once", "pin", "unpin", "evict", "prefetch",
		},
		Doc: "What to do with the data: `default` leaves it to the policy (and beats a rule), `cache` " +
			"admits it now, `bypass` leaves the cache as it is, `once` serves it without promotion and " +
			"drops it first, `pin` keeps it within a quota, `unpin` ends that, `evict` writes it back " +
			"and drops it, `prefetch` brings it in.",
	},
	IDMode: {
		ID: IDMode, Name: "mode", Direction: Write, Size: 1, Layout: "number", min: 1, max: 3,
		Values: []string{"", "writethrough", "writeback", "writearound"},
		Doc:    "Write mode of this request instead of the device's.",
	},
	IDPriority: {
		ID: IDPriority, Name: "prio", Direction: Both, Size: 2, max: 0xffff,
		Layout: "class, level 0 (first) to 7, one byte each",
		Values: []string{"", "rt", "be", "idle"},
		Doc:    "Order of service under contention, weight in eviction.",
	},
	IDChecksum: {
		ID: IDChecksum, Name: "checksum", Direction: Both, Size: 8, max: noLimit,
		SizeRule: "8, and the width of the algorithm (8; crc32c 4) for each block to verify",
		Layout:   "algorithm; flags 1 verify, 2 return; 6 zeroes; with flag 1 the checksums",
		Values:   []string{"", "xxh64", "crc32c", "crc64-nvme"},
		Returns: "8, and the width for each block: algorithm, 3 zeroes, number of the first " +
			"block that differs (4, else 0); the checksums if asked for",
		Doc: "Checksums of the data, one for each 4096 bytes, at most 256. Verified before a write has " +
			"any effect or a read is answered, else EILSEQ; returned if asked for.",
	},
	IDLifetime: {
		ID: IDLifetime, Name: "lifetime", Direction: Write, Size: 1, Layout: "number", min: 1, max: 5,
		Values: []string{"", "none", "short", "medium", "long", "extreme"},
		Doc:    "How long the data is expected to live (the kernel's write hints): with what it is stored.",
	},
	IDTenant: {
		ID: IDTenant, Name: "tenant", Direction: Both, Size: 9, max: noLimit,
		Layout: "id (8), then 0 for an id of the operator's own or 1 for that of a cgroup",
		Doc:    "On whose account the request goes: quota, share, statistics.",
	},
	IDDeadline: {
		ID: IDDeadline, Name: "deadline", Direction: Both, Size: 4, Layout: "number", Units: "µs",
		min: 1, max: 1<<32 - 1,
		Doc: "Time for the request, counted from when the cache sees it: served from the faster copy, " +
			"or failed with ETIME if it is over before the I/O can begin, or a read has no chance.",
	},
	IDTiming: {
		ID: IDTiming, Name: "timing", Direction: Both, Layout: "nothing", max: noLimit,
		Returns: "32: queued, SSD, backing, total, 8 each, in ns",
		Doc:     "Asks how long the request waited, was at the SSD and at the backing device, and took.",
	},
	IDTrace: {
		ID: IDTrace, Name: "trace", Direction: Both, Size: 8, Layout: "number", max: noLimit,
		Doc: "An opaque number that appears in logs and traces.",
	},
}

// Attributes lists the registry by id. The caller owns the list; the rows' slices are shared.
func Attributes() []Attribute { return slices.Clone(registry[1:]) }

// Lookup finds an attribute by its name.
func Lookup(name string) (Attribute, bool) {
	for _, a := range registry[1:] {
		if a.Name == name {
			return a, true
		}
	}
	return Attribute{}, false
}

// checkScalar says what is wrong with the number that is (the start of) a value.
func checkScalar(id ID, v uint64) Reason {
	if v < registry[id].min || v > registry[id].max {
		return ReasonValue
	}
	if p := priorityOf(v); id == IDPriority &&
		(p.Class < ClassRT || p.Class > ClassIdle || p.Level > levelMax) {
		return ReasonValue
	}
	return ReasonNone
}

// Table is the registry as a table in Markdown, for the manual.
func Table() string {
	var b strings.Builder
	b.WriteString("| id | name | for | bytes | value | returns | what it does |\n" +
		"|---|---|---|---|---|---|---|\n")
	for _, a := range registry[1:] {
		size := fmt.Sprint(a.Size)
		if a.SizeRule != "" {
			size = a.SizeRule
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s | %s |\n", a.ID, a.Name, a.Direction, size,
			a.valueText(), a.Returns, a.Doc)
	}
	return b.String()
}

// valueText is the layout with the units and the names of the numbers.
func (a Attribute) valueText() string {
	text := a.Layout
	if a.Units != "" {
		text += fmt.Sprintf(", %s, %d to %d", a.Units, a.min, a.max)
	}
	var list []string
	for i, n := range a.Values {
		if n != "" {
			list = append(list, fmt.Sprintf("%d %s", i, n))
		}
	}
	if list != nil {
		text += ": " + strings.Join(list, ", ")
	}
	return text
}

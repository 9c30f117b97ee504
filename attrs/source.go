package attrs

import "strings"

// Source is where an attribute of a set came from. A higher number beats a lower one: what was
// given with the request beats a rule, and a rule beats a default.
type Source uint8

// The sources, weakest first; the numbers are on the wire in results.
const (
	// SourceNone is that of an attribute that is not there.
	SourceNone Source = iota
	// SourceDefault is the configuration of the device.
	SourceDefault
	// SourceRule is a rule that fits the request.
	SourceRule
	// SourceKernel is what the kernel knows of a request besides its ioprio: write hint, cgroup.
	SourceKernel
	// SourceIOPrio is the ioprio of the request, with its hint.
	SourceIOPrio
	// SourceIntegrity is the request's integrity metadata.
	SourceIntegrity
	// SourceExplicit is a set that the issuer wrote for the request.
	SourceExplicit

	sourceEnd
)

var sourceNames = []string{
	"none", "default", "rule", "kernel", "ioprio", "integrity", "explicit",
}

func (s Source) String() string { return nameOf(sourceNames, uint64(s), "source") }

// Sources has a bit, 1<<source, for each source that offered an attribute, whether or not it won.
type Sources uint8

// Has says whether the source offered it.
func (m Sources) Has(s Source) bool { return m>>s&1 != 0 }

func (m Sources) String() string {
	var list []string
	for s := Source(7); s > 0; s-- {
		if m.Has(s) {
			list = append(list, s.String())
		}
	}
	return strings.Join(list, "+")
}

package rules

import (
	"fmt"
	"strings"
)

// Kind is a set of bits that say what a request is for. A request may be of several kinds, or of none.
type Kind uint8

// The kinds. Sync and Background are known only where BPF reads them off the request.
const (
	Readahead  Kind = 1 << iota // nobody waits for it yet
	Meta                        // metadata of a filesystem
	Swap                        // a page of a swap device
	Sync                        // somebody waits for it
	Background                  // writeback that the kernel does on its own account

	kindCount = 5
	allKinds  = 1<<kindCount - 1
)

var kindNames = [kindCount]string{"readahead", "meta", "swap", "sync", "background"}

// KindNames lists the kinds in words.
func KindNames() []string { return kindNames[:] }

// ParseKinds reads kinds separated by commas.
func ParseKinds(text string) (Kind, error) {
	var k Kind
	for name := range strings.SplitSeq(text, ",") {
		one := Kind(0)
		for i, n := range kindNames {
			if n == strings.TrimSpace(name) {
				one = 1 << i
			}
		}
		if one == 0 {
			return 0, fmt.Errorf("no such kind %q (one of %s)", name, strings.Join(kindNames[:], ", "))
		}
		k |= one
	}
	return k, nil
}

// String writes the kinds as [ParseKinds] reads them; without any it is empty.
func (k Kind) String() string {
	var list []string
	for i, n := range kindNames {
		if k>>i&1 != 0 {
			list = append(list, n)
		}
	}
	return strings.Join(list, ",")
}

// Known says which properties of a request could be found out. What is not known fits no condition.
type Known uint8

// The properties that not every kernel tells. Size, place, direction and the kinds readahead, meta
// and swap always are.
const (
	KnowCgroup Known = 1 << iota
	KnowUID
	KnowKinds // the kinds sync and background
)

func (k Known) String() string {
	var list []string
	for i, n := range []string{"cgroup", "uid", "kind sync or background"} {
		if k>>i&1 != 0 {
			list = append(list, n)
		}
	}
	return strings.Join(list, ", ")
}

package client

import (
	"testing"

	"ubcache/attrs"
)

// Requests that their caller waits for allocate nothing, with attributes or without, over the ring to a
// daemon as by a system call.
func TestSynchronousAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("with the race detector sync.Pool forgets things on purpose")
	}
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	ring, err := Open("", Options{Device: "data"})
	must(t, err)
	t.Cleanup(func() { must(t, ring.Close()) })
	const off = 256 << 10 // where no example looks
	for name, d := range map[string]*Device{
		"ring": ring, "plain": open(t, makeFile(t), Options{Channel: Plain}),
	} {
		buf, err := d.Alloc(4096)
		must(t, err)
		for _, s := range []*attrs.Set{nil, &set} {
			n := testing.AllocsPerRun(200, func() {
				if _, _, err := d.ReadAt(buf, off, s); err != nil {
					t.Fatal(err)
				}
			})
			if n != 0 {
				t.Errorf("%s, attributes %t: %v allocations", name, s != nil, n)
			}
		}
	}
}

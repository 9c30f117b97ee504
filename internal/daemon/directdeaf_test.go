package daemon

import (
	"testing"

	"golang.org/x/sys/unix"

	api "ubcache/attrs/client"
	"ubcache/attrs/shm"
)

// TestDirectDeafClients: clients that send requests and never look at what is answered are given up when
// there is no room for more answers. Nothing piles up for them, and others do not notice.
func TestDirectDeafClients(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	d := b.open(api.Options{Bytes: 8 << 20})
	t.Cleanup(func() { closeDevice(t, d) })
	want := pattern(1, 4096)
	_, _, err := d.WriteAt(want, 0, nil)
	must(t, err)
	round := func() {
		h := newHostile(t, b)
		defer h.close()
		ring := h.r.Ring()
		taken := 0
		for range 1000 {
			if ok, _ := ring.Submit(&shm.Entry{Op: shm.OpRead, Bytes: 4096}); ok {
				taken++
			}
			_, _ = unix.Write(h.fds[0], wakeWord)
			got := make([]byte, 4096)
			if _, _, err := d.ReadAt(got, 0, nil); err != nil || got[0] != want[0] {
				t.Fatalf("another client's read: %v", err)
			}
			if taken > h.r.Entries() {
				break
			}
		}
		if taken <= h.r.Entries() {
			t.Fatalf("the daemon took %d requests, there is room for %d answers", taken, h.r.Entries())
		}
		b.clients(1)
	}
	for range 20 {
		round()
	}
	before := measure(t)
	for range 300 {
		round()
	}
	after := measure(t)
	t.Logf("before: %v", before)
	t.Logf("after: %v", after)
	if after.fds > before.fds || after.goroutines > before.goroutines+1 || after.maps > before.maps+16 ||
		after.heap > before.heap+1<<20 {
		t.Error("something has leaked")
	}
}

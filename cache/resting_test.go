package cache

import (
	"testing"

	"ubcache/policy"
)

// TestWhatWaitsForADeviceIsNotInTheWay: requests that wait for a backing device that is gone do not count as being served:
// what is cached is served beside them, whatever its class, and other devices are not held back for them.
func TestWhatWaitsForADeviceIsNotInTheWay(t *testing.T) {
	for _, c := range []struct {
		waits, n string
		count    int
		then     string
	}{
		{"rt and be", "prio=be/0", 16, "prio=be/0"},
		{"idle beside be", "prio=idle", 2, "prio=idle"},
		{"rt", "prio=rt/0", 64, "prio=rt/0"},
		{"writes", "write", 16, "prio=be/0"},
	} {
		h := pressed(t)
		h.flush()
		h.flood(0, 8)
		h.c.SetPresence(h.b.ID(), Holding)
		ended := map[*Request]bool{}
		h.finish = func(r *Request) { ended[r] = true }
		send := func(op ReqOp, blk Block, text string) *Request {
			r := request(t, op, blk, 1, text)
			r.Backing = h.b.ID()
			h.l.Submit(r)
			return r
		}
		if c.waits != "idle beside be" {
			send(ReqRead, 1000, "prio=rt/0")
		} else {
			send(ReqRead, 1000, "prio=be/0")
		}
		for i := range Block(c.count) {
			if c.n == "write" {
				h.b.mode.Store(uint32(Writethrough))
				send(ReqWrite, 2000+i, "prio=be/0")
			} else {
				send(ReqRead, 2000+i, c.n)
			}
		}
		h.within(2e9, func() bool { return false })
		if len(ended) != 0 {
			t.Fatalf("%d requests have ended", len(ended))
		}
		hit := send(ReqRead, 0, c.then)
		h.within(2e9, func() bool { return ended[hit] })
		if !ended[hit] {
			t.Errorf("%s: a hit waits for the device", c.waits)
		}
		if h.now += 2 * holdFor; h.c.busy.around(policy.RT, h.now) {
			t.Errorf("%s: they hold other devices back", c.waits)
		}
		h.c.SetPresence(h.b.ID(), Present)
		h.within(2e9, func() bool { return len(ended) == c.count+2 })
		if len(ended) != c.count+2 {
			t.Errorf("%s: %d of %d requests have ended", c.waits, len(ended), c.count+2)
		}
		for k := range policy.Class(3) {
			if n, m := h.l.sched.Serving(k), h.c.busy.now[k].Load(); n != 0 || m != 0 {
				t.Errorf("%s: of class %d %d and %d requests are said to be served", c.waits, k, n, m)
			}
		}
	}
}

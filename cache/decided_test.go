package cache

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"ubcache/attrs"
)

// TestDecidedAgain sends the same reads to two caches. To one of them they come with stamps, as from a server of
// shared memory, so that decisions and places of counters are remembered: it must answer, cache and count as the
// other one does.
func TestDecidedAgain(t *testing.T) {
	texts := []string{
		"hint=cache,tenant=7", "hint=cache,tenant=cgroup:7", "hint=bypass", "hint=once,prio=rt/1", "prio=idle/0",
		"hint=default,lifetime=short,mode=writeback", "hint=pin,tenant=7", "hint=unpin", "hint=evict", "hint=prefetch,tenant=8",
		"hint=cache,required:hint", "tenant=8,required:tenant", "timing,tenant=7", "checksum=crc32c+return", "deadline=1s",
		"required:mode,mode=writeback", "trace=7",
	}
	for i := range maxKinds {
		texts = append(texts, fmt.Sprintf("hint=bypass,prio=be/%d,tenant=%d", i%8, 10+i))
	}
	plain, stamped := pressed(t), pressed(t)
	var dec attrs.SetDecoder
	rng := rand.New(rand.NewPCG(1, 2))
	again := 0
	show := func(h *harness, r *Request) string {
		n, err := h.c.Residency(h.b.ID(), r.Off, r.Len)
		a := h.c.Stats().Attributes
		return fmt.Sprintf("%v, %v, %v of %d, %+v %v, %+v, %+v", r.Err, r.Results, r.Results.Origin, r.Results.Blocks, n, err,
			h.c.Tenants(), a)
	}
	text := texts[0]
	for i := range 12000 {
		if rng.IntN(3) == 0 {
			text = texts[rng.IntN(len(texts))]
		}
		first, n := Block(rng.IntN(1024)), 1+rng.IntN(16)
		op := ReqRead
		if rng.IntN(8) == 0 {
			op = ReqWrite
		}
		mode, quota := -1, int64(-1)
		switch rng.IntN(50) {
		case 0:
			mode = rng.IntN(int(None) + 1)
		case 1:
			quota = int64(rng.IntN(3)) * 100
		}
		var got [2]string
		for k, h := range []*harness{plain, stamped} {
			if mode >= 0 {
				h.b.mode.Store(uint32(mode))
			}
			if quota >= 0 {
				if err := h.c.SetTenantQuota(seven, TenantQuota{Blocks: quota}); err != nil {
					t.Fatal(err)
				}
			}
			set, err := attrs.ParseSet(text)
			if err != nil {
				t.Fatal(err)
			}
			if h == stamped {
				var b [attrs.MaxBytes]byte
				size, err := set.Encode(b[:])
				if err != nil {
					t.Fatal(err)
				}
				if err := dec.Decode(&set, b[:size]); err != nil {
					t.Fatal(err)
				}
				if h.l.decided.stamp != 0 && h.l.decided.stamp == set.Stamp() {
					again++
				}
			}
			r := &Request{
				Op: op, Backing: h.b.ID(), Off: int64(first) * BlockSize, Len: int64(n) * BlockSize,
				Data: make([]byte, n*BlockSize), Attrs: &set, Results: &attrs.Results{},
			}
			_ = h.do(r)
			h.drain()
			got[k] = show(h, r)
		}
		if got[0] != got[1] {
			t.Fatalf("%d: %q, op %v, mode %d, quota %d:\n%s\n%s", i, text, op, mode, quota, got[0], got[1])
		}
	}
	if again < 1000 {
		t.Errorf("a decision was there for only %d requests", again)
	}
	if stamped.l.attrs.kinds[maxKinds-1].Load() == nil {
		t.Error("there were never too many kinds")
	}
}

// TestDecidedTenant: a tenant that has lost its row to others is not decided on as if it had it.
func TestDecidedTenant(t *testing.T) {
	h := pressed(t)
	var dec attrs.SetDecoder
	read := func(tenant uint64) uint8 {
		t.Helper()
		var set attrs.Set
		set.SetHint(attrs.HintBypass)
		set.SetTenant(attrs.Tenant{ID: tenant})
		var b [attrs.MaxBytes]byte
		n, err := set.Encode(b[:])
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(&set, b[:n]); err != nil {
			t.Fatal(err)
		}
		r := &Request{Len: BlockSize, Data: make([]byte, BlockSize), Attrs: &set, Results: &attrs.Results{}}
		if err := h.do(r); err != nil {
			t.Fatal(err)
		}
		return r.way.tenant
	}
	row := func(tenant uint64) uint8 { return (*h.c.tenants.byID.Load())[attrs.Tenant{ID: tenant}] }
	for range 3 {
		if got := read(7); got == 0 || got != row(7) {
			t.Fatalf("tenant 7 is in row %d, and counted in %d", row(7), got)
		}
	}
	if h.l.decided.stamp == 0 {
		t.Fatal("nothing is remembered")
	}
	// From elsewhere, as by another lane, so that this one still remembers.
	for i := uint64(100); row(7) != 0; i++ {
		h.c.tenants.row(attrs.Tenant{ID: i})
		if i > 100+100*tenantRows { // which one goes is a matter of chance
			t.Fatal("tenant 7 keeps its row")
		}
	}
	if got := read(7); got == 0 || got != row(7) {
		t.Errorf("tenant 7 is in row %d, and counted in %d", row(7), got)
	}
}

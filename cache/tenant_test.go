package cache

import (
	"testing"

	"ubcache/attrs"
)

var seven = attrs.Tenant{ID: 7}

// cachedOf is what the status says of a tenant.
func (h *harness) cachedOf(id attrs.Tenant) int64 {
	for _, s := range h.c.Tenants() {
		if s.Tenant == id {
			return s.CachedBlocks
		}
	}
	return 0
}

func TestTenantsAreCounted(t *testing.T) {
	h := pressed(t)
	step := func(what string, op ReqOp, first Block, n int, text string, seven, eight int64) {
		t.Helper()
		h.hint(op, first, n, text)
		a, b := h.cachedOf(attrs.Tenant{ID: 7}), h.cachedOf(attrs.Tenant{ID: 8, Cgroup: true})
		if a != seven || b != eight {
			t.Errorf("%s: %d and %d blocks, want %d and %d", what, a, b, seven, eight)
		}
	}
	step("a read", ReqRead, 0, 8, "tenant=7", 8, 0)
	step("a hit", ReqRead, 0, 8, "tenant=cgroup:8", 8, 0)
	step("another's write", ReqWrite, 4, 8, "tenant=cgroup:8", 4, 8)
	step("nobody's write", ReqWrite, 0, 2, "hint=default", 2, 8)
	step("pins", ReqRead, 0, 16, "hint=pin,tenant=7", 6, 8)
	h.drain()
	h.l.closeBucket(streamPinned)
	h.flood(512, 3584)
	step("pinned and moved", ReqRead, 0, 16, "hint=unpin", 6, 8)
	step("evicted", ReqRead, 0, 16, "hint=evict", 0, 0)
}

// Sectors that a write past the cache takes from a block do not change whose it is.
func TestTenantOfABlockInPart(t *testing.T) {
	h := pressed(t)
	h.hint(ReqWrite, 0, 4, "tenant=7")
	h.b.mode.Store(uint32(Writethrough))
	h.write(512, fill(1, 1)[:1024])
	if got := h.cachedOf(seven); got != 4 {
		t.Errorf("%d blocks, want 4", got)
	}
}

func TestTenantQuota(t *testing.T) {
	h := pressed(t)
	if err := h.c.SetTenantQuota(seven, TenantQuota{Blocks: 16}); err != nil {
		t.Fatal(err)
	}
	tenant := func(op ReqOp, first Block, n int, text string) *attrs.Results {
		t.Helper()
		r := request(t, op, first, n, "tenant=7"+text)
		if err := h.do(r); err != nil {
			t.Fatal(err)
		}
		return r.Results
	}
	ok, over := attrs.Handled, attrs.Ignored
	for _, c := range []struct {
		what   string
		op     ReqOp
		first  Block
		text   string
		st     attrs.Status
		cached int64
	}{
		{"first half", ReqRead, 0, "", ok, 8},
		{"second half", ReqWrite, 8, "", ok, 16},
		{"a read beyond", ReqRead, 16, "", over, 16},
		{"a read that insists", ReqRead, 24, ",hint=cache", over, 16},
		{"a pin", ReqRead, 24, ",hint=pin", over, 16},
		{"a write beyond", ReqWrite, 32, "", over, 16},
		{"a write that insists", ReqWrite, 40, ",mode=writeback", over, 16},
		{"a write over dirty data", ReqWrite, 8, "", over, 8},
		{"where there is room again", ReqWrite, 8, "", ok, 16},
	} {
		res := tenant(c.op, c.first, 8, c.text)
		if a := res.For(attrs.IDTenant); a.Status != c.st || c.st == over && a.Reason != attrs.ReasonQuota {
			t.Errorf("%s: %v", c.what, a)
		}
		if a := res.For(attrs.IDHint); a.Status == attrs.Handled {
			t.Errorf("%s: the hint is %v", c.what, a)
		}
		if r := h.resident(c.first, 8); c.st == over && r.Cached != 0 {
			t.Errorf("%s: the data is cached all the same: %+v", c.what, r)
		}
		if got := h.cachedOf(seven); got != c.cached {
			t.Errorf("%s: %d blocks are cached, want %d", c.what, got, c.cached)
		}
	}
	// Other tenants, and those without, are not held back.
	h.hint(ReqRead, 48, 8, "tenant=9")
	if r := h.resident(48, 8); r.Cached != 8 {
		t.Errorf("another tenant: %+v", r)
	}
	if err := h.c.SetTenantQuota(seven, TenantQuota{Blocks: 24}); err != nil {
		t.Fatal(err)
	}
	if a := tenant(ReqRead, 16, 8, "").For(attrs.IDTenant); a.Status != ok {
		t.Errorf("with a larger quota: %v", a)
	}
	for i := range h.c.tenants.rows {
		if n := h.c.tenants.rows[i].promised.Load(); n != 0 {
			t.Errorf("%d blocks are promised to row %d with no request under way", n, i)
		}
	}
}

// Requests side by side cannot pass the quota together.
func TestTenantQuotaOfParallelRequests(t *testing.T) {
	h := pressed(t)
	_ = h.c.SetTenantQuota(seven, TenantQuota{Blocks: 16})
	answers, left := map[attrs.Status]int{}, 8
	h.finish = func(r *Request) { answers[r.Results.For(attrs.IDTenant).Status]++; left-- }
	for i := range Block(8) {
		r := request(t, ReqRead, 8*i, 8, "tenant=7")
		r.Backing = h.b.ID()
		h.l.Submit(r)
	}
	h.until("the answers", func() bool { return left == 0 })
	if answers[attrs.Handled] != 2 || h.cachedOf(seven) != 16 {
		t.Errorf("%v, %d blocks cached", answers, h.cachedOf(seven))
	}
}

// A tenant above its share loses its blocks first, though they are the youngest and the hottest.
func TestTenantShare(t *testing.T) {
	for _, share := range []int64{0, 64} {
		h := pressed(t)
		if err := h.c.SetTenantQuota(seven, TenantQuota{Share: share}); err != nil {
			t.Fatal(err)
		}
		h.flood(0, 256) // others, once
		for first := Block(1024); first < 1024+512; first += 4 {
			for range 4 {
				h.hint(ReqRead, first, 4, "tenant=7")
			}
			h.tick()
		}
		h.flood(2048, 512)
		others, mine := h.resident(0, 256).Cached, h.cachedOf(seven)
		t.Logf("share %d: of others %d, of the tenant %d", share, others, mine)
		if share == 0 && (others > 128 || mine < 256) {
			t.Errorf("without a share the oldest do not go first: others %d, tenant %d", others, mine)
		}
		if share != 0 && (others < 240 || mine > 300) {
			t.Errorf("above its share: others %d, tenant %d", others, mine)
		}
	}
}

// There are 255 rows; those of tenants with nothing cached and no quota are used again.
func TestTenantRows(t *testing.T) {
	h := pressed(t)
	for i := range uint64(tenantRows) {
		if err := h.c.SetTenantQuota(attrs.Tenant{ID: 100 + i}, TenantQuota{Share: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.c.SetTenantQuota(seven, TenantQuota{Blocks: 1}); err == nil {
		t.Error("a tenant too many")
	}
	r := request(t, ReqRead, 0, 4, "tenant=7")
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	want(t, "no row", r.Results.For(attrs.IDTenant), attrs.Ignored, attrs.ReasonBusy)
	_ = h.c.SetTenantQuota(attrs.Tenant{ID: 200}, TenantQuota{})
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	want(t, "a row that is free again", r.Results.For(attrs.IDTenant), attrs.Handled, attrs.ReasonNone)
	if err := h.c.SetTenantQuota(seven, TenantQuota{Blocks: -1}); err == nil {
		t.Error("a negative quota")
	}
}

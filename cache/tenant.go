package cache

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"ubcache/attrs"
)

// tenants counts what is cached on whose account: whoever wrote or filled a block last. That is a
// byte for each slot, the number of a row here, so that there are at most tenantRows at a time; a
// row whose tenant has neither quota nor blocks is given to the next. Counts begin anew with each
// start of the cache, and quotas are set again by whoever keeps them.
type tenants struct {
	rows   [tenantRows + 1]tenantRow // row 0 is nobody's
	byID   atomic.Pointer[map[attrs.Tenant]uint8]
	shares atomic.Int32 // rows with a share
	mu     sync.Mutex   // guards changes of byID and of limits
}

const tenantRows = 255

type tenantRow struct {
	cached   atomic.Int64 // blocks
	promised atomic.Int64 // blocks that requests under way may add
	quota    atomic.Int64 // blocks; 0 for none
	share    atomic.Int64 // blocks; 0 for none
}

// TenantQuota limits what is cached on a tenant's account.
type TenantQuota struct {
	// Blocks is how many blocks may be cached; 0 sets no limit. Requests that could go beyond it are
	// served, but what they read or write does not enter the cache.
	Blocks int64
	// Share is the number of blocks up to which the tenant competes with others as an equal; what
	// is above that is evicted first. 0 sets no limit.
	Share int64
}

// TenantStatus is what is known of a tenant.
type TenantStatus struct {
	Tenant       attrs.Tenant
	CachedBlocks int64
	Quota        TenantQuota
}

func (t *tenants) init() { t.byID.Store(&map[attrs.Tenant]uint8{}) }

// row finds a tenant's row, or gives it one; 0 if there is none left.
func (t *tenants) row(id attrs.Tenant) uint8 {
	if n, ok := (*t.byID.Load())[id]; ok {
		return n
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addLocked(id)
}

// tenantRow is the row of a request's tenant, which mostly is that of the one before.
func (l *Lane) tenantRow(id attrs.Tenant) uint8 {
	rows := l.c.tenants.byID.Load()
	if rows == l.tenant.rows && id == l.tenant.id {
		return l.tenant.row
	}
	n, ok := (*rows)[id]
	if !ok {
		return l.c.tenants.row(id)
	}
	l.tenant = lastTenant{rows, id, n}
	return n
}

// lastTenant is what a lane looked up last, and in which table.
type lastTenant struct {
	rows *map[attrs.Tenant]uint8
	id   attrs.Tenant
	row  uint8
}

func (t *tenants) addLocked(id attrs.Tenant) uint8 {
	old := *t.byID.Load()
	if n, ok := old[id]; ok {
		return n
	}
	all := maps.Clone(old)
	n := 0
	if len(all) < tenantRows {
		used := [tenantRows + 1]bool{0: true}
		for _, i := range all {
			used[i] = true
		}
		n = slices.Index(used[:], false)
	} else {
		for o, i := range all {
			r := &t.rows[i]
			if r.cached.Load() == 0 && r.promised.Load() == 0 && r.quota.Load() == 0 && r.share.Load() == 0 {
				delete(all, o)
				n = int(i)
				break
			}
		}
	}
	if n > 0 {
		all[id] = uint8(n)
		t.byID.Store(&all)
	}
	return uint8(n)
}

// SetTenantQuota limits a tenant from the next request on. What is above a lowered quota stays
// until it is evicted.
func (c *Cache) SetTenantQuota(id attrs.Tenant, q TenantQuota) error {
	if q.Blocks < 0 || q.Share < 0 {
		return fmt.Errorf("quota of tenant %v is negative", id)
	}
	t := &c.tenants
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.addLocked(id)
	if n == 0 {
		return fmt.Errorf("quota of tenant %v: %d tenants have quotas or cached blocks already (remove a quota)",
			id, tenantRows)
	}
	r := &t.rows[n]
	r.quota.Store(q.Blocks)
	if old := r.share.Swap(q.Share); (old != 0) != (q.Share != 0) {
		if q.Share != 0 {
			t.shares.Add(1)
		} else {
			t.shares.Add(-1)
		}
	}
	return nil
}

// Tenants lists the tenants that have blocks or limits, by id.
func (c *Cache) Tenants() (all []TenantStatus) {
	for id, n := range *c.tenants.byID.Load() {
		r := &c.tenants.rows[n]
		s := TenantStatus{
			Tenant: id, CachedBlocks: r.cached.Load(),
			Quota: TenantQuota{Blocks: r.quota.Load(), Share: r.share.Load()},
		}
		if s.CachedBlocks != 0 || s.Quota != (TenantQuota{}) {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b TenantStatus) int {
		if a.Tenant.Cgroup != b.Tenant.Cgroup {
			if b.Tenant.Cgroup {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Tenant.ID, b.Tenant.ID)
	})
	return all
}

// promise sets n blocks of the quota aside for a request; ok is false if there are not so many
// left. What was promised is given back when the request has ended: what it added is counted by
// then.
func (t *tenants) promise(row uint8, n int64) (promised int64, ok bool) {
	r := &t.rows[row]
	quota := r.quota.Load()
	if quota == 0 {
		return 0, true
	}
	if r.promised.Add(n)+r.cached.Load() > quota {
		r.promised.Add(-n)
		return 0, false
	}
	return n, true
}

// over fills the rows whose tenants have more than their share, and reports whether there are any.
func (t *tenants) over(rows *[tenantRows + 1]bool) (any bool) {
	*rows = [tenantRows + 1]bool{}
	if t.shares.Load() == 0 {
		return false
	}
	for i := range t.rows {
		r := &t.rows[i]
		share := r.share.Load()
		rows[i] = share != 0 && r.cached.Load() > share
		any = any || rows[i]
	}
	return any
}

// own counts a slot that was just inserted. The stripe is locked.
func (c *Cache) own(s Slot, row uint8) {
	if row != 0 {
		c.index.setOwner(s, row)
		c.tenants.rows[row].cached.Add(1)
	}
}

// disown ends that; the slot is about to be removed. The stripe is locked.
func (c *Cache) disown(s Slot) {
	if row := c.index.ownerOf(s); row != 0 {
		c.index.setOwner(s, 0)
		c.tenants.rows[row].cached.Add(-1)
	}
}

package daemon

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"ubcache/attrs"
	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
)

// tenantLimits are the limits of tenants that the configuration has, as they are applied to the
// engine, which forgets them when it ends.
type tenantLimits struct {
	cache  *cache.Cache
	log    *slog.Logger
	cgroup func(path string) (id uint64, err error)
	mu     struct {
		sync.Mutex
		list []*limitedTenant
	}
}

// limitedTenant is one of them.
type limitedTenant struct {
	conf    config.Tenant
	is      attrs.Tenant // if applied
	applied bool
	problem string // why not
}

// load takes the tenants of the configuration, which has checked them. A limit that cannot be applied
// does not keep the cache from starting.
func (t *tenantLimits) load(c *cache.Cache, list []config.Tenant, log *slog.Logger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cache, t.log = c, log
	if t.cgroup == nil {
		t.cgroup = cgroupOf
	}
	for _, conf := range list {
		l := &limitedTenant{conf: conf}
		t.mu.list = append(t.mu.list, l)
		t.update(l)
	}
}

// refresh finds cgroups that have come, gone, or come anew with another id.
func (t *tenantLimits) refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.mu.list {
		t.update(l)
	}
}

// update applies a tenant's limits to whom they are for now. The lock is held.
func (t *tenantLimits) update(l *limitedTenant) {
	who, err := t.resolve(&l.conf)
	if err == nil && l.applied && who == l.is {
		return
	}
	if l.applied {
		t.withdraw(l)
	}
	if err == nil {
		err = t.apply(l, who)
	}
	old := l.problem
	if l.problem = ""; err != nil {
		l.problem = err.Error()
	}
	if l.problem != old && err != nil {
		t.log.Warn("a tenant is not limited", "tenant", l.conf.ID, "error", err)
	}
}

// resolve finds out who a tenant of the configuration is.
func (t *tenantLimits) resolve(conf *config.Tenant) (attrs.Tenant, error) {
	who, path, err := config.ParseTenant(conf.ID)
	if err != nil || path == "" {
		return who, err
	}
	id, err := t.cgroup(path)
	if err != nil {
		return who, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return attrs.Tenant{ID: id, Cgroup: true}, nil
}

func (t *tenantLimits) apply(l *limitedTenant, who attrs.Tenant) error {
	for _, o := range t.mu.list {
		if o != l && o.applied && o.is == who {
			return fmt.Errorf("it is the same as %s, which has limits already", o.conf.ID)
		}
	}
	if err := t.cache.SetTenantQuota(who, blocksOf(&l.conf)); err != nil {
		return err
	}
	l.is, l.applied = who, true
	return nil
}

// withdraw ends the limits of a tenant to which they are applied.
func (t *tenantLimits) withdraw(l *limitedTenant) {
	l.applied = false
	if err := t.cache.SetTenantQuota(l.is, cache.TenantQuota{}); err != nil {
		t.log.Error("the limits of a tenant stay", "tenant", l.is, "error", err)
	}
}

// blocksOf is the limits in blocks; a part of a block counts as one.
func blocksOf(conf *config.Tenant) cache.TenantQuota {
	blocks := func(z config.Size) int64 {
		return (int64(z) + cache.BlockSize - 1) / cache.BlockSize
	}
	return cache.TenantQuota{Blocks: blocks(conf.Quota), Share: blocks(conf.Share)}
}

// find is the place of a tenant in the list; -1 if it has no limits. The lock is held.
func (t *tenantLimits) find(id string) int {
	return config.FindTenant(t.configLocked(), id)
}

func (t *tenantLimits) configLocked() []config.Tenant {
	var list []config.Tenant
	for _, l := range t.mu.list {
		list = append(list, l.conf)
	}
	return list
}

// status lists the tenants that have limits, in the order of the configuration, then those that have
// cached blocks without any.
func (t *tenantLimits) status(name string) []control.Tenant {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := t.cache.Tenants()
	all := []control.Tenant{}
	for _, l := range t.mu.list {
		s := control.Tenant{
			Cache: name, ID: l.conf.ID, QuotaBytes: int64(l.conf.Quota), ShareBytes: int64(l.conf.Share),
			Problem: l.problem,
		}
		if l.applied {
			s.Tenant = l.is.String()
			i := slices.IndexFunc(counts, func(c cache.TenantStatus) bool { return c.Tenant == l.is })
			if i >= 0 {
				s.CachedBytes = counts[i].CachedBlocks * cache.BlockSize
				counts = slices.Delete(counts, i, i+1)
			}
		}
		all = append(all, s)
	}
	for _, c := range counts {
		if c.CachedBlocks > 0 {
			all = append(all, control.Tenant{
				Cache: name, ID: c.Tenant.String(), Tenant: c.Tenant.String(),
				CachedBytes: c.CachedBlocks * cache.BlockSize,
			})
		}
	}
	return all
}

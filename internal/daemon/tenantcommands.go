package daemon

import (
	"context"
	"fmt"
	"slices"

	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// tenantSet limits a tenant, in the cache and in the configuration.
func (in *Instance) tenantSet(_ context.Context, a control.TenantSetArgs, _ control.ProgressFunc) (
	any, error,
) {
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	what := "limit tenant " + a.ID
	id, err := config.TenantID(a.ID)
	if err != nil {
		return nil, report.Misuse("%v", err)
	}
	undo, err := in.tenants.set(id, &a)
	if err != nil {
		return nil, wrapOnce(what, err)
	}
	conf := in.tenants.config(id)
	err = in.editTenants(func(list []config.Tenant) []config.Tenant {
		if i := config.FindTenant(list, id); i >= 0 {
			list[i] = conf
			return list
		}
		return append(list, conf)
	})
	if err != nil {
		undo()
		return nil, wrapOnce(what, err)
	}
	return in.tenants.statusOf(in.opts.Name, id), nil
}

// editTenants changes the tenants of the configuration.
func (in *Instance) editTenants(change func([]config.Tenant) []config.Tenant) error {
	return config.Edit(in.opts.ConfigPath, func(f *config.File) error {
		c := f.Caches[in.opts.Name]
		if c == nil {
			return report.Fail("write configuration", "cache "+in.opts.Name+" is not in it any more", "")
		}
		c.Tenants = change(c.Tenants)
		return nil
	})
}

// set changes the limits of a tenant, or refuses to and leaves them as they are. undo takes the
// change back.
func (t *tenantLimits) set(id string, a *control.TenantSetArgs) (undo func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := &limitedTenant{conf: config.Tenant{ID: id}}
	old := slices.Clone(t.mu.list)
	at := t.find(id)
	if at >= 0 {
		*l = *t.mu.list[at]
	}
	if a.Quota != nil {
		l.conf.Quota = *a.Quota
	}
	if a.Share != nil {
		l.conf.Share = *a.Share
	}
	if l.conf.Quota == 0 && l.conf.Share == 0 {
		return nil, report.Misuse("neither quota nor share would be left (ubcache tenant del %s ends both)",
			id)
	}
	if err := l.conf.CheckLimits(); err != nil {
		return nil, report.Misuse("%v", err)
	}
	is := blocksOf(&l.conf)
	l.conf.Quota, l.conf.Share = config.Size(is.Blocks*cache.BlockSize), config.Size(is.Share*cache.BlockSize)
	who, err := t.resolve(&l.conf)
	if err != nil {
		return nil, report.Refuse("", err.Error(), "")
	}
	list := t.mu.list
	if at >= 0 {
		t.mu.list = slices.Delete(slices.Clone(list), at, at+1)
	}
	if err := t.apply(l, who); err != nil {
		t.mu.list = list
		return nil, report.Refuse("", err.Error(), "")
	}
	if at >= 0 && old[at].applied && old[at].is != who { // a cgroup that has come anew
		t.withdraw(old[at])
	}
	if l.problem = ""; at < 0 {
		at = len(t.mu.list)
	}
	t.mu.list = slices.Insert(slices.Clone(t.mu.list), at, l)
	return func() { t.restore(l, old) }, nil
}

// restore goes back to an earlier list, of which l has changed.
func (t *tenantLimits) restore(l *limitedTenant, old []*limitedTenant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.withdraw(l)
	t.mu.list = old
	if at := t.find(l.conf.ID); at >= 0 {
		old[at].applied = false
		t.update(old[at])
	}
}

// config is what the configuration is to have of a tenant that has limits.
func (t *tenantLimits) config(id string) config.Tenant {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.list[t.find(id)].conf
}

// statusOf is the status of a tenant that has limits.
func (t *tenantLimits) statusOf(name, id string) control.Tenant {
	t.mu.Lock()
	at := t.find(id)
	t.mu.Unlock()
	return t.status(name)[at]
}

// tenantDel ends the limits of a tenant.
func (in *Instance) tenantDel(_ context.Context, a control.TenantArgs, _ control.ProgressFunc) (
	any, error,
) {
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	id, err := config.TenantID(a.ID)
	if err != nil {
		return nil, report.Misuse("%v", err)
	}
	what := "delete limits of tenant " + id
	if !in.tenants.has(id) {
		return nil, report.Fail(what, fmt.Sprintf("cache %s has no limits of it", in.opts.Name),
			"ubcache tenant list shows them")
	}
	st := in.tenants.statusOf(in.opts.Name, id)
	err = in.editTenants(func(list []config.Tenant) []config.Tenant {
		return slices.DeleteFunc(list, func(t config.Tenant) bool {
			return config.FindTenant([]config.Tenant{t}, id) >= 0
		})
	})
	if err != nil {
		return nil, wrapOnce(what, err)
	}
	in.tenants.remove(id)
	return st, nil
}

func (t *tenantLimits) has(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.find(id) >= 0
}

// remove ends the limits of a tenant that has some.
func (t *tenantLimits) remove(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.find(id)
	if l := t.mu.list[at]; l.applied {
		t.withdraw(l)
	}
	t.mu.list = slices.Delete(slices.Clone(t.mu.list), at, at+1)
}

// tenantList lists the tenants that have limits or cached blocks.
func (in *Instance) tenantList(context.Context, struct{}, control.ProgressFunc) (any, error) {
	if !in.enter() {
		return []control.Tenant{}, nil
	}
	defer in.using.RUnlock()
	return in.tenants.status(in.opts.Name), nil
}

package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"ubcache/attrs"
)

// Tenant limits what is cached on a tenant's account. In the file it is a table [[cache.NAME.tenant]].
type Tenant struct {
	// ID is a number, "cgroup:" and the id of a cgroup, or "cgroup:" and the path of its folder, of
	// which the id is looked up.
	ID string `toml:"id" json:"id"`
	// Quota is how much may be cached, Share up to how much the tenant competes with others as an
	// equal; 0 sets no limit.
	Quota Size `toml:"quota,omitzero" json:"quota_bytes"`
	Share Size `toml:"share,omitzero" json:"share_bytes"`
}

const cgroupPrefix = "cgroup:"

// ParseTenant reads the id of a tenant: the tenant itself, or the path of the cgroup that it is.
func ParseTenant(id string) (t attrs.Tenant, path string, err error) {
	text, cgroup := strings.CutPrefix(id, cgroupPrefix)
	if cgroup && filepath.IsAbs(text) {
		return t, filepath.Clean(text), nil
	}
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		return t, "", fmt.Errorf(
			"tenant %q is no number, nor cgroup: and an id or a path as in cgroup:/sys/fs/cgroup/x", id)
	}
	return attrs.Tenant{ID: n, Cgroup: cgroup}, "", nil
}

// TenantID is the one way in which an id is written.
func TenantID(id string) (string, error) {
	t, path, err := ParseTenant(id)
	switch {
	case err != nil:
		return "", err
	case path != "":
		return cgroupPrefix + path, nil
	}
	return t.String(), nil
}

// CheckTenants reports the first fault of the tenants of a cache.
func CheckTenants(list []Tenant) error {
	seen := map[string]bool{}
	for i := range list {
		t := &list[i]
		id, err := TenantID(t.ID)
		switch {
		case err != nil:
			return err
		case seen[id]:
			return fmt.Errorf("tenant %s is there twice", id)
		}
		if err := t.CheckLimits(); err != nil {
			return fmt.Errorf("tenant %s: %w", id, err)
		}
		seen[id] = true
	}
	return nil
}

// CheckLimits reports the first fault of a tenant's limits.
func (t *Tenant) CheckLimits() error {
	switch {
	case t.Quota == 0 && t.Share == 0:
		return errors.New("neither quota nor share")
	case max(t.Quota, t.Share) > 1<<62:
		return errors.New("a limit of more than 4E")
	}
	return nil
}

// FindTenant is the index of a tenant, -1 if it is not there.
func FindTenant(list []Tenant, id string) int {
	want, err := TenantID(id)
	for i := range list {
		if got, e := TenantID(list[i].ID); err == nil && e == nil && got == want {
			return i
		}
	}
	return -1
}

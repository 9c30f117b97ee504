package config

import (
	"os"
	"strings"
	"testing"

	"ubcache/attrs"
)

var sampleTenants = strings.Replace(sample, "\n[cache.main.backing", `
[[cache.main.tenant]]
id = "7"
quota = "10G"
share = "5G"

[[cache.main.tenant]]
id = "cgroup:/sys/fs/cgroup/batch"
quota = "1G"

[[cache.main.tenant]]
id = "cgroup:4242"
share = "4K"

[cache.main.backing`, 1) + "pin-quota = 0\n"

func TestTenantsRoundTrip(t *testing.T) {
	path := write(t, sampleTenants)
	if err := Edit(path, func(*File) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != sampleTenants {
		t.Errorf("rewritten without a change (%v):\n%s", err, got)
	}
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	c := f.Caches["main"]
	if n := c.Backings["data"].PinQuota; n == nil || *n != 0 {
		t.Errorf("a pin-quota of 0 is read as %v", n)
	}
	list := c.Tenants
	if len(list) != 3 || list[0] != (Tenant{ID: "7", Quota: 10 << 30, Share: 5 << 30}) ||
		list[2].Share != 4096 || list[2].Quota != 0 {
		t.Fatalf("read %+v", list)
	}
	for id, want := range map[string]int{
		"7": 0, "0x7": 0, "cgroup:/sys/fs/cgroup/batch/": 1, "cgroup:4242": 2, "cgroup:7": -1, "8": -1,
		"x": -1, "": -1,
	} {
		if got := FindTenant(list, id); got != want {
			t.Errorf("tenant %q is number %d, want %d", id, got, want)
		}
	}
	f, err = Load(write(t, sample))
	if err != nil || f.Caches["main"].Backings["data"].PinQuota != nil {
		t.Errorf("a file without pin-quota: %v", err)
	}
}

func TestParseTenant(t *testing.T) {
	for _, c := range []struct {
		text string
		who  attrs.Tenant
		path string
		id   string // empty: an error
	}{
		{"0", attrs.Tenant{}, "", "0"},
		{"0x10", attrs.Tenant{ID: 16}, "", "16"},
		{"18446744073709551615", attrs.Tenant{ID: 1<<64 - 1}, "", "18446744073709551615"},
		{"cgroup:16", attrs.Tenant{ID: 16, Cgroup: true}, "", "cgroup:16"},
		{"cgroup:/a/../b/", attrs.Tenant{}, "/b", "cgroup:/b"},
		{"", attrs.Tenant{}, "", ""},
		{"-1", attrs.Tenant{}, "", ""},
		{"batch", attrs.Tenant{}, "", ""},
		{"/sys/fs/cgroup/batch", attrs.Tenant{}, "", ""},
		{"cgroup:batch", attrs.Tenant{}, "", ""},
		{"cgroup:", attrs.Tenant{}, "", ""},
		{"18446744073709551616", attrs.Tenant{}, "", ""},
	} {
		who, path, err := ParseTenant(c.text)
		if who != c.who || path != c.path || (err != nil) != (c.id == "") {
			t.Errorf("%q: %+v, %q, %v", c.text, who, path, err)
		}
		if id, err := TenantID(c.text); id != c.id || (err != nil) != (c.id == "") {
			t.Errorf("%q is written %q, %v", c.text, id, err)
		}
	}
}

func TestTenantErrors(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", `share = "5G"`, `part = "5G"`, `unknown key "cache.main.tenant.part"`},
		{"no id", `id = "7"`, ``, `cache main: tenant "" is no number`},
		{"bad id", `"cgroup:4242"`, `"cgroup:web"`, `tenant "cgroup:web" is no number`},
		{"twice", `"cgroup:4242"`, `"0x7"`, "tenant 7 is there twice"},
		{"no limit", `quota = "1G"`, ``, "tenant cgroup:/sys/fs/cgroup/batch: neither quota nor share"},
		{"bad size", `"10G"`, `"much"`, "is not a size"},
		{"too large", `"10G"`, `"7E"`, "tenant 7: a limit of more than 4E"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(sampleTenants, c.old, c.new, 1)
			if text == sampleTenants {
				t.Fatal("nothing replaced")
			}
			if _, err := Load(write(t, text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

package config

import (
	"os"
	"slices"
	"strings"
	"testing"

	"ubcache/attrs"
	"ubcache/attrs/rules"
)

const sampleRules = sample + `
[[cache.main.backing.data.rule]]
name = "backups"
path = "/srv/backups"
set = "hint=bypass"

[[cache.main.backing.data.rule]]
range = ["0-1G", "4G+64K", "1T-"]
min-size = "4K"
max-size = "1M"
kind = ["meta", "sync"]
direction = "write"
set = "hint=pin,prio=rt/1"

[[cache.main.backing.data.rule]]
name = "web"
cgroup = "/sys/fs/cgroup/web.slice"
uid = "www-data"
set = "tenant=7"
`

func TestRulesRoundTrip(t *testing.T) {
	path := write(t, sampleRules)
	if err := Edit(path, func(*File) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != sampleRules {
		t.Errorf("rewritten without a change (%v):\n%s", err, got)
	}
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	list := f.Caches["main"].Backings["data"].Rules
	if len(list) != 3 || FindRule(list, "web") != 2 || FindRule(list, "2") != 1 ||
		FindRule(list, "4") != -1 || FindRule(list, "") != -1 || FindRule(list, "0") != -1 {
		t.Fatalf("read %+v", list)
	}
	if list[0].Label(1) != "backups" || list[1].Label(2) != "2" {
		t.Errorf("called %q and %q", list[0].Label(1), list[1].Label(2))
	}
	r, err := list[1].Parse()
	want := []rules.Range{{Off: 0, End: 1 << 30}, {Off: 4 << 30, End: 4<<30 + 64<<10}, {Off: 1 << 40, End: 1<<63 - 1}}
	if err != nil || !r.Ranged || !slices.Equal(r.Ranges, want) || r.Direction != attrs.Write ||
		r.Kinds != rules.Meta|rules.Sync || r.MinBytes != 4096 || r.MaxBytes != 1<<20 ||
		r.Set.String() != "hint=pin,prio=rt/1" || r.InCgroups || r.OfUID {
		t.Errorf("parsed %+v (%v)", r, err)
	}
	if r, err := list[0].Parse(); err != nil || !r.Ranged || len(r.Ranges) != 0 {
		t.Errorf("a path makes %+v (%v)", r, err)
	}
	if r, err := list[2].Parse(); err != nil || r.Ranged || !r.InCgroups || !r.OfUID {
		t.Errorf("cgroup and uid make %+v (%v)", r, err)
	}
}

func TestRuleErrors(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "\nuid = ", "\nuser = ", `unknown key "cache.main.backing.data.rule.user"`},
		{"no set", `set = "tenant=7"`, ``, "rule web: gives no attribute"},
		{"bad set", `"tenant=7"`, `"tenant=x"`, "rule web: attribute"},
		{"bad range", `0-1G`, `1G-0`, `rule 2: range "1G-0" is empty`},
		{"no range", `0-1G`, `1G`, `"1G" is no range`},
		{"bad kind", `"meta"`, `"mega"`, `rule 2: no such kind "mega"`},
		{"bad direction", `direction = "write"`, `direction = "up"`, `direction "up"`},
		{"sizes", `min-size = "4K"`, `min-size = "4M"`, "min-size 4M is above max-size 1M"},
		{"two names", `name = "web"`, `name = "backups"`, "two rules named backups"},
		{"a number", `name = "web"`, `name = "3"`, "rule 3: name \"3\": it must not be a number"},
		{"a bad name", `name = "web"`, `name = "a b"`, `name "a b"`},
		{"relative path", `"/srv/backups"`, `"backups"`, `path "backups" does not begin with /`},
		{"cgroup", `"/sys/fs/cgroup/web.slice"`, `"web"`, `cgroup "web" is neither`},
		{"both", `path = "/srv/backups"`, "path = \"/srv\"\nrange = [\"0-1\"]", "exclude each other"},
		{"checksum", `"tenant=7"`, `"checksum=crc32c"`, "a rule cannot give them"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(sampleRules, c.old, c.new, 1)
			if text == sampleRules {
				t.Fatal("nothing replaced")
			}
			if _, err := Load(write(t, text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
	many := sample + strings.Repeat("\n[[cache.main.backing.data.rule]]\nset = \"hint=pin\"\n",
		rules.MaxRules+1)
	if _, err := Load(write(t, many)); err == nil || !strings.Contains(err.Error(), "65 rules") {
		t.Errorf("too many rules: %v", err)
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"0-1G", "1G+64K", "5-", "8E-", "4E+4E", "-", "+", "1-+2", "7E+1.9E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRange(s); err == nil && (r.Off < 0 || r.End <= r.Off) {
			t.Errorf("%q is %+v", s, r)
		}
	})
}

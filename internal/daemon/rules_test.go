package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/rules"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/extents"
	"ubcache/internal/extents/loopmount"
)

// TestMain makes the test binary the process that watches files when a daemon's rules run it so.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == WatchFilesCommand {
		if err := extents.Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newTestRules(t *testing.T) *ruleSet {
	t.Helper()
	s := newRuleSet()
	t.Cleanup(s.close)
	return s
}

// gives is what the rules of a device give to a request.
func (d *deviceRules) gives(q rules.Query) string {
	var s attrs.Set
	if q.Direction == 0 {
		q.Direction = attrs.Read
	}
	d.table.Load().Apply(q, &s)
	return s.String()
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// firstExtent is where a rule's data begins on the device.
func firstExtent(s *ruleSet, r *rule) (at int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(r.found.Ranges) == 0 {
		return 0, false
	}
	return r.found.Ranges[0].Off, true
}

func TestRulesForFiles(t *testing.T) {
	m := loopmount.New(t, false)
	m.Write("hot", "h", 16)
	if err := os.Mkdir(m.Path("cold"), 0o755); err != nil {
		t.Fatal(err)
	}
	target, err := deviceOf(m.Loop)
	if err != nil {
		t.Fatal(err)
	}
	s := newTestRules(t)
	d := &deviceRules{}
	err = s.load(d, 64<<20, []config.Rule{
		{Name: "cold", Path: m.Path("cold"), Set: "hint=bypass"},
		{Name: "hot", Path: m.Path("hot"), Set: "hint=pin"},
	})
	if err != nil {
		t.Fatal(err)
	}
	hot, cold := d.list[1], d.list[0]
	if got := s.status("d", d)[1]; got.Problem != "the device is not served as a block device" {
		t.Errorf("without a device: %+v", got)
	}
	s.serve(d, target)
	if err := s.await(hot); err != nil {
		t.Fatal(err)
	}
	at, ok := firstExtent(s, hot)
	if got := d.gives(rules.Query{Off: at, Len: 4096}); !ok || got != "hint=pin" {
		t.Fatalf("a request for the file is given %q", got)
	}
	if got := d.gives(rules.Query{Off: at - 4096, Len: 8192}); got != "" {
		t.Errorf("a request that reaches out of it is given %q", got)
	}
	st := s.status("d", d)[1]
	if st.Requests != 1 || st.RequestBytes != 4096 || st.Bytes != 16*4096 || st.Files != 1 ||
		st.Extents == 0 || st.Resolving || st.Problem != "" {
		t.Errorf("status %+v", st)
	}

	// The file moves into the folder: what the one gave, the other gives now.
	if err := os.Rename(m.Path("hot"), m.Path("cold/hot")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "moved", 5*time.Second, func() bool {
		return d.gives(rules.Query{Off: at, Len: 4096}) == "hint=bypass"
	})
	if err := os.Remove(m.Path("cold/hot")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removed", 5*time.Second, func() bool {
		return d.gives(rules.Query{Off: at, Len: 4096}) == ""
	})
	eventually(t, "the other has a problem", 20*time.Second, func() bool {
		return strings.Contains(s.status("d", d)[1].Problem, "no such file")
	})
	m.Write("cold/new", "n", 3)
	eventually(t, "a new file", 5*time.Second, func() bool { _, ok := firstExtent(s, cold); return ok })
	at, _ = firstExtent(s, cold)
	s.serve(d, extents.Device{})
	if got := d.gives(rules.Query{Off: at, Len: 4096}); got != "" {
		t.Errorf("with the device gone a request is given %q", got)
	}
	s.serve(d, target)
	eventually(t, "served again", 5*time.Second, func() bool {
		return d.gives(rules.Query{Off: at, Len: 4096}) == "hint=bypass"
	})
	s.drop(d)
	if d.table.Load() != nil || len(s.mu.watched) != 0 || len(s.mu.devices) != 0 {
		t.Errorf("left after drop: %v", s.mu.watched)
	}
}

func TestRuleAddAndRemove(t *testing.T) {
	m := loopmount.New(t, false)
	m.Write("a", "a", 4)
	target, err := deviceOf(m.Loop)
	if err != nil {
		t.Fatal(err)
	}
	s := newTestRules(t)
	d := &deviceRules{}
	if err := s.load(d, 64<<20, nil); err != nil {
		t.Fatal(err)
	}
	if d.table.Load() != nil {
		t.Error("no rules make a table")
	}
	s.serve(d, target)
	add := func(r config.Rule, before string) error {
		at, err := s.place(d, &control.RuleAddArgs{Name: "d", Rule: r, Before: before})
		if err != nil {
			return err
		}
		added, err := s.add(d, r, at)
		if err != nil {
			return err
		}
		if err := s.await(added); err != nil {
			s.remove(d, at)
			return err
		}
		return nil
	}
	for _, c := range []struct {
		rule         config.Rule
		before, want string
	}{
		{config.Rule{Name: "all", Set: "hint=once"}, "", ""},
		{config.Rule{Name: "a", Path: m.Path("a"), Set: "hint=pin"}, "all", ""},
		{config.Rule{Name: "a", Set: "hint=pin"}, "", "two rules named a"},
		{config.Rule{Path: m.Path("none"), Set: "hint=pin"}, "", "none: no such file or directory"},
		{config.Rule{Path: "/proc/self/stat", Set: "hint=pin"}, "", "not on a block device of its own"},
		{config.Rule{Ranges: []string{"64M-"}, Set: "hint=pin"}, "", "the device ends at 64M"},
		{config.Rule{UID: "no-such-user", Set: "hint=pin"}, "", "no user"},
		{config.Rule{Set: "hint=pin"}, "nowhere", `no rule "nowhere"`},
	} {
		err := add(c.rule, c.before)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("add %+v: %v, want %q", c.rule, err, c.want)
		}
	}
	if len(d.list) != 2 || d.list[0].conf.Name != "a" || len(s.mu.watched) != 1 {
		t.Fatalf("the rules are %+v", d.config())
	}
	at, _ := firstExtent(s, d.list[0])
	if got := d.gives(rules.Query{Off: at, Len: 4096}); got != "hint=pin" {
		t.Errorf("first given %q", got)
	}
	s.remove(d, 0)
	if got := d.gives(rules.Query{Off: at, Len: 4096}); got != "hint=once" {
		t.Errorf("after the first was removed given %q", got)
	}
}

func TestRulesForUsersAndCgroups(t *testing.T) {
	s := newTestRules(t)
	d := &deviceRules{}
	err := s.load(d, 64<<20, []config.Rule{
		{UID: "root", Set: "hint=pin"},
		{UID: "no-such-user", Set: "trace=7"},
		{Cgroup: "4242", Set: "tenant=1"},
		{Cgroup: "/proc", Set: "tenant=2"},
		{Kinds: []string{"sync"}, Set: "prio=idle"},
	})
	if err != nil {
		t.Fatal(err)
	}
	q := rules.Query{Len: 512, Known: rules.KnowUID | rules.KnowCgroup | rules.KnowKinds, Cgroup: 4242}
	if got := d.gives(q); got != "hint=pin,tenant=1" {
		t.Errorf("given %q", got)
	}
	q.UID = 1
	if got := d.gives(q); got != "tenant=1" {
		t.Errorf("another user is given %q", got)
	}
	problems := func() string { _, list := s.problems(d); return strings.Join(list, "\n") }
	for _, want := range []string{
		"rule 1: without BPF a request's uid", `rule 2: there is no user "no-such-user"`,
		"rule 3: without BPF a request's cgroup", "rule 4: cgroup /proc: not a folder",
		"rule 5: without BPF a request's kind",
	} {
		if !strings.Contains(problems(), want) {
			t.Errorf("no %q in\n%s", want, problems())
		}
	}
	s.setKnown(rules.KnowCgroup | rules.KnowUID | rules.KnowKinds)
	if got := problems(); strings.Count(got, "\n") != 1 || strings.Contains(got, "BPF") {
		t.Errorf("with BPF:\n%s", got)
	}
}

// TestCgroupsBelow follows cgroups that come and go.
func TestCgroupsBelow(t *testing.T) {
	top := cgroupRoot(t) + fmt.Sprintf("/ubcache-test-%d", os.Getpid())
	mkdir := func(path string) uint64 {
		t.Helper()
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(path) })
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	id := mkdir(top)
	s := newTestRules(t)
	d := &deviceRules{}
	if err := s.load(d, 1<<20, []config.Rule{{Cgroup: top, Set: "tenant=1"}}); err != nil {
		t.Fatal(err)
	}
	gives := func(id uint64) string {
		return d.gives(rules.Query{Len: 512, Known: rules.KnowCgroup, Cgroup: id})
	}
	if gives(id) != "tenant=1" {
		t.Error("the cgroup itself is given nothing")
	}
	below := mkdir(top + "/below")
	if gives(below) != "" {
		t.Error("a cgroup is known before it was looked for")
	}
	eventually(t, "a cgroup below", 2*cgroupsEvery, func() bool { return gives(below) == "tenant=1" })
	if err := os.Remove(top + "/below"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone", 2*cgroupsEvery, func() bool { return gives(below) == "" })
}

// cgroupRoot finds the cgroup filesystem, version 2, or mounts it.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	for _, at := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var sf unix.Statfs_t
		if unix.Statfs(at, &sf) == nil && sf.Type == unix.CGROUP2_SUPER_MAGIC {
			return at
		}
	}
	at := t.TempDir()
	if err := exec.Command("mount", "-t", "cgroup2", "none", at).Run(); err != nil {
		t.Skip("no cgroup filesystem of version 2, and none can be mounted")
	}
	t.Cleanup(func() { _ = exec.Command("umount", at).Run() })
	return at
}

// TestTooManyExtents leaves out the rules that a table has no room for, and says so.
func TestTooManyExtents(t *testing.T) {
	s := newTestRules(t)
	d := &deviceRules{}
	err := s.load(d, 1<<40, []config.Rule{
		{Path: "/a", Set: "hint=pin"},
		{Path: "/b", Set: "hint=once"},
		{Ranges: []string{"0-1M"}, Set: "hint=bypass"},
	})
	if err != nil {
		t.Fatal(err)
	}
	fill := func(r *rule, n int, at int64) {
		for range n {
			r.found.Ranges = append(r.found.Ranges, rules.Range{Off: at, End: at + 512})
			at += 1024
		}
	}
	fill(d.list[0], rules.MaxRanges-1, 1<<30)
	fill(d.list[1], 2, 2<<20)
	s.mu.Lock()
	s.compile(d)
	s.mu.Unlock()
	if d.gives(rules.Query{Off: 1 << 30, Len: 512}) != "hint=pin" ||
		d.gives(rules.Query{Off: 2 << 20, Len: 512}) != "" ||
		d.gives(rules.Query{Off: 0, Len: 512}) != "hint=bypass" {
		t.Error("not the rules for which there is room")
	}
	st := s.status("d", d)
	if !strings.Contains(st[1].Problem, "can have 1048576 extents") || strings.Contains(st[2].Problem, "extents") {
		t.Errorf("said of them: %q and %q", st[1].Problem, st[2].Problem)
	}
}

//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ubcache/internal/control"
)

// ruleRead is how much a read or write of TestRules moves.
const ruleRead = 64 << 10

// ruleCase is a condition of a rule: a program that meets it, and one that does not.
type ruleCase struct {
	name    string
	flags   []string
	yes, no func(off int64) []string
}

// TestRules has plain programs on a mounted filesystem, and rules that tell them apart by what they read, who they are,
// and how they ask. The rule bypasses the cache, so that what meets it is not cached, and all else is.
func TestRules(t *testing.T) {
	Limit(t, 3*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, Slice(t, "slow", 0, 256), "data", "--mode=none")
	kernelSource(t, c)
	Sh(t, `mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
		mkdir -p `+attrCgroup)
	t.Cleanup(func() { _ = os.Remove(attrCgroup) })
	Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
	dir := Mount(t, dev, "noatime")
	Run(t, "chmod", "755", filepath.Dir(dir), dir) // another user reads there
	Run(t, "mkdir", dir+"/folder")
	files := map[string]string{}
	for _, name := range []string{"one", "other", "folder/in"} {
		files[name] = filepath.Join(dir, name)
		Run(t, "dd", "if=/dev/urandom", "of="+files[name], "bs=1M", "count=8", "oflag=direct", "status=none")
	}
	Run(t, "sync", "-f", dir)
	c.Set(t, "data", "mode=writethrough", "sequential-cutoff=0")

	// A program reads or writes at off, which no other one does.
	dd := func(name string, size int64, flag string) func(off int64) []string {
		return func(off int64) []string {
			return []string{
				"dd", "status=none", "if=" + files[name], "of=/dev/null", "iflag=" + flag, fmt.Sprintf("bs=%d", size),
				fmt.Sprintf("count=%d", ruleRead/size), fmt.Sprintf("skip=%d", off/size),
			}
		}
	}
	direct := dd("one", ruleRead, "direct")
	write := func(off int64) []string {
		return []string{
			"dd", "status=none", "if=/dev/zero", "of=" + files["one"], "oflag=direct", "conv=notrunc",
			fmt.Sprintf("bs=%d", ruleRead), "count=1", fmt.Sprintf("seek=%d", off/ruleRead),
		}
	}
	by := func(who ...string) func(off int64) []string {
		return func(off int64) []string { return append(who[:len(who):len(who)], direct(off)...) }
	}
	user := by("setpriv", "--reuid=1234", "--clear-groups")
	cases := []ruleCase{
		{name: "file", flags: []string{"--path", files["one"]}, yes: direct, no: dd("other", ruleRead, "direct")},
		{
			name: "folder", flags: []string{"--path", filepath.Join(dir, "folder")},
			yes: dd("folder/in", ruleRead, "direct"), no: direct,
		},
		{name: "user", flags: []string{"--uid", "1234"}, yes: user, no: direct},
		{
			name: "cgroup", flags: []string{"--cgroup", attrCgroup}, no: direct,
			yes: by("sh", "-ec", "echo $$ >"+attrCgroup+`/cgroup.procs; exec "$@"`, "sh"),
		},
		{name: "size", flags: []string{"--min-size", "32K"}, yes: direct, no: dd("one", 4096, "direct")},
		{name: "writes", flags: []string{"--write"}, yes: write, no: direct},
		{name: "reads", flags: []string{"--read"}, yes: direct, no: write},
		{
			name: "readahead", flags: []string{"--kind", "readahead"},
			yes: dd("one", ruleRead, "noatime"), no: direct,
		},
		{name: "waited for", flags: []string{"--kind", "sync"}, yes: write, no: dd("one", ruleRead, "noatime")},
	}
	off := int64(0)
	try := func(t *testing.T, cmd func(int64) []string) (cachedBytes int64, matched uint64) {
		t.Helper()
		Sh(t, "sync; echo 1 >/proc/sys/vm/drop_caches")
		before, was := c.Device(t, "data").CachedBytes, ruleRequests(t)
		args := cmd(off)
		off += 2 * ruleRead
		Run(t, args[0], args[1:]...)
		return c.Device(t, "data").CachedBytes - before, ruleRequests(t) - was
	}
	check := func(t *testing.T, k *ruleCase) {
		t.Helper()
		if n, matched := try(t, k.yes); n != 0 || matched == 0 {
			t.Errorf("what meets the condition: %d bytes cached, %d requests matched", n, matched)
		}
		if n, matched := try(t, k.no); n < ruleRead || matched != 0 {
			t.Errorf("what does not: %d bytes cached, %d requests matched", n, matched)
		}
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			Ubcache(t, append([]string{"rule", "add", "data", "--name", "it", "--set", "hint=bypass"}, k.flags...)...)
			gone := sync.OnceFunc(func() { Ubcache(t, "rule", "del", "data", "it") })
			defer gone()
			check(t, &k)
			gone()
			if n, _ := try(t, k.yes); n < ruleRead {
				t.Errorf("%d bytes cached when the rule is gone", n)
			}
		})
	}
	t.Run("restart", func(t *testing.T) {
		Ubcache(t, "rule", "add", "data", "--name", "it", "--set", "hint=bypass", "--uid", "1234")
		c.Kill(t)
		c.Start(t)
		Wait(t, 30*time.Second, "the BPF program is loaded", func() bool {
			return c.Status(t).KernelAttributes == "on"
		})
		check(t, &ruleCase{yes: user, no: direct})
	})
}

// ruleRequests is how many requests the rules have matched.
func ruleRequests(t testing.TB) (n uint64) {
	t.Helper()
	var list []control.Rule
	decode(t, Ubcache(t, "rule", "list", "--json"), &list)
	for _, r := range list {
		if r.Problem != "" {
			t.Errorf("rule %s: %s", r.Name, r.Problem)
		}
		n += r.Requests
	}
	return n
}

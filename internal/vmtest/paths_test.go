//go:build vm

package vmtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// attrPath is a way from a program to a cached device.
type attrPath struct {
	name string
	// open makes what is between, on a device in mode none, and returns what the program opens.
	open func(t *testing.T, c *Cache, dev string) string
	// backing makes the backing device; nil for a plain one.
	backing func(t *testing.T) string
	channel client.Channel // asked for
	foreign bool           // it does not lead to the cache
}

const attrFileBytes = 32 << 20

// attrPaths are those of the table.
var attrPaths = []attrPath{
	{name: "raw device", open: func(_ *testing.T, _ *Cache, dev string) string { return dev }},
	{name: "partition", open: func(t *testing.T, _ *Cache, dev string) string {
		Sh(t, "printf 'label: gpt\nsize=100M\nsize=100M\n' | sfdisk -q "+dev)
		waitForDevice(t, dev+"p2")
		return dev + "p2"
	}},
	{name: "dm-linear", open: func(t *testing.T, _ *Cache, dev string) string {
		return Mapper(t, "above", fmt.Sprintf("0 262144 linear %s 8192", dev))
	}},
	{name: "LVM", open: logicalVolume},
	{name: "ext4 file", open: func(t *testing.T, _ *Cache, dev string) string {
		// What the kernel writes by itself, after mkfs or five seconds after a write for the time of it,
		// would be dirty, too.
		Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
		return fileOn(t, dev, "noatime,commit=600")
	}},
	{name: "xfs file", open: func(t *testing.T, _ *Cache, dev string) string {
		Run(t, "mkfs.xfs", "-q", "-f", dev)
		return fileOn(t, dev, "noatime")
	}},
	{
		name: "cache on md RAID1", backing: raid1,
		open: func(_ *testing.T, _ *Cache, dev string) string { return dev },
	},
	{name: "another device", foreign: true, open: func(t *testing.T, _ *Cache, _ string) string {
		return Slice(t, "slow", 2048, 64)
	}},
	{
		name: "direct ring", channel: client.Direct,
		open: func(_ *testing.T, _ *Cache, dev string) string { return dev },
	},
}

func logicalVolume(t *testing.T, _ *Cache, dev string) string {
	// What is written reaches the backing device at once, on which LVM must not find it.
	lvm := []string{"--config", `devices { types = ["ublk",16,"blkext",16] use_devicesfile=0 ` +
		`filter = ["a|^/dev/ublkb|","r|.*|"] }`}
	run := func(name string, args ...string) { Run(t, name, append(lvm, args...)...) }
	run("pvcreate", "-q", "-y", dev)
	run("vgcreate", "-q", "vgattrs", dev)
	t.Cleanup(func() { _, _ = Try(t, "vgchange", append(lvm, "-q", "-an", "vgattrs")...) })
	run("lvcreate", "-q", "-y", "-W", "n", "-L", "128M", "-n", "one", "vgattrs")
	return "/dev/vgattrs/one"
}

func fileOn(t *testing.T, dev, options string) string {
	file := filepath.Join(Mount(t, dev, options), "file")
	Run(t, "dd", "if=/dev/urandom", "of="+file, "bs=1M", "oflag=direct", "status=none",
		fmt.Sprintf("count=%d", attrFileBytes>>20))
	Run(t, "sync", "-f", file)
	return file
}

func raid1(t *testing.T) string {
	Modprobe(t, "raid1")
	a, b := Slice(t, "slow", 1024, 256), Slice(t, "slow", 1536, 256)
	Run(t, "mdadm", "--create", "/dev/md9", "--run", "--quiet", "--assume-clean", "--metadata=1.2",
		"--level=1", "--raid-devices=2", a, b)
	t.Cleanup(func() { Run(t, "mdadm", "--stop", "--quiet", "/dev/md9") })
	return "/dev/md9"
}

// TestAttributePaths is the table attribute × path: each cell tried, and shown in effect by what the
// cache then holds or did; where nothing of ours is below, or the kernel cannot carry it, nobody
// answers and what is required fails.
func TestAttributePaths(t *testing.T) {
	checks := append(slices.Clip(attrChecks), asyncCheck)
	table := newAttrTable("attribute × path", checks)
	for _, p := range attrPaths {
		table.column(p.name)
		t.Run(p.name, func(t *testing.T) {
			Limit(t, 3*time.Minute)
			b := p.bench(t)
			for i, k := range checks {
				if !b.heard {
					table.run(t, i, "not handled", func(t *testing.T) { b.with(t).silent() })
					continue
				}
				table.run(t, i, "in effect", func(t *testing.T) { k.do(b.with(t)) })
			}
		})
	}
	table.print(t, "attributes.txt")
}

// attrTable is a table of what was tried: a row for each attribute, a column for each way to say it.
type attrTable struct {
	title string
	rows  [][]string
}

func newAttrTable(title string, checks []attrCheck) *attrTable {
	a := &attrTable{title: title, rows: [][]string{{"attribute"}}}
	for _, k := range checks {
		a.rows = append(a.rows, []string{k.name})
	}
	return a
}

// column begins the next one.
func (a *attrTable) column(name string) {
	a.rows[0] = append(a.rows[0], name)
	for i := range a.rows[1:] {
		a.rows[i+1] = append(a.rows[i+1], "not tried")
	}
}

// last is the column that was begun last.
func (a *attrTable) last() string { return a.rows[0][len(a.rows[0])-1] }

// all fills in the whole column.
func (a *attrTable) all(text string) {
	for i := range a.rows[1:] {
		a.set(i, text)
	}
}

// set fills in check i of the column.
func (a *attrTable) set(i int, text string) { a.rows[i+1][len(a.rows[0])-1] = text }

// fail takes back what was said of a check.
func (a *attrTable) fail(name string) {
	for _, r := range a.rows {
		for i := range r {
			if r[0] == name && r[i] == "in effect" {
				r[i] = "FAILED"
			}
		}
	}
}

// run fills in what it is called if it succeeds.
func (a *attrTable) run(t *testing.T, i int, text string, f func(t *testing.T)) {
	a.set(i, "FAILED")
	if t.Run(a.rows[i+1][0], f) {
		a.set(i, text)
	}
}

// print prints the table, and gives it to the host as a file.
func (a *attrTable) print(t *testing.T, file string) {
	t.Helper()
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, r := range a.rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush()
	fmt.Printf("%s, Linux %s\n%s", a.title, os.Getenv("UBVM_KERNEL"), text.String())
	if err := os.WriteFile(Out(t, file), []byte(text.String()), 0o644); err != nil {
		t.Error(err)
	}
}

// bench sets a path up.
func (p *attrPath) bench(t *testing.T) *attrBench {
	t.Helper()
	backing := ""
	if p.backing != nil {
		backing = p.backing(t)
	} else {
		backing = Slice(t, "slow", 0, 320)
	}
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, backing, "data", "--mode=none")
	path := p.open(t, c, dev)
	c.Set(t, "data", "mode=writeback", "sequential-cutoff=0", "writeback-delay=1h")
	d, buf := openClient(t, path, client.Options{Channel: p.channel})
	b := &attrBench{T: t, c: c, attrIssuer: clientIssuer(d, buf), buf: buf, next: new(int64), idle: new(int64)}
	channel, why := d.Channel()
	switch shared := KernelAtLeast(t, "7.1"); {
	case p.foreign:
	case shared && p.channel == client.Auto:
		if b.heard = channel == client.Shared; !b.heard {
			t.Errorf("channel %v (%s), want shared", channel, why)
		}
	case p.channel == client.Direct || p.name == "raw device" || p.backing != nil:
		// An older kernel: the cache's own block device has the ring.
		if b.heard = channel == client.Direct; !b.heard {
			t.Errorf("channel %v (%s), want direct", channel, why)
		}
	default:
		if channel != client.Plain || !strings.Contains(why, "7.1") {
			t.Errorf("channel %v (%s), want plain, and that it needs Linux 7.1", channel, why)
		}
	}
	t.Logf("channel %v: %s", channel, why)
	return b
}

// silent wants nobody to answer, and what is required to fail.
func (b *attrBench) silent() {
	b.Helper()
	off := b.fresh() % (16 << 20)
	r, err := b.read(off, "hint=cache,prio=rt/1,timing,0xf001=00")
	if err != nil || len(r.Devices()) != 0 {
		b.Errorf("error %v, answered by %v", err, r.Devices())
	}
	for _, id := range []attrs.ID{attrs.IDHint, attrs.IDPriority, attrs.IDTiming, 0xf001} {
		if st := r.For(id).Status; st != attrs.NotHandled {
			b.Errorf("%v: %v where nobody handles it", id, st)
		}
	}
	if ch, _ := b.client.Channel(); ch == client.Plain {
		if _, err := b.read(off, "hint=cache,required:hint"); !errors.Is(err, unix.EREMOTEIO) {
			b.Errorf("required where nobody handles it: %v", err)
		}
	}
}

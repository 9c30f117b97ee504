//go:build vm

package vmtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
		Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", dev)
		return fileOn(t, dev)
	}},
	{name: "xfs file", open: func(t *testing.T, _ *Cache, dev string) string {
		Run(t, "mkfs.xfs", "-q", "-f", dev)
		return fileOn(t, dev)
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

func fileOn(t *testing.T, dev string) string {
	file := filepath.Join(Mount(t, dev, ""), "file")
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

// attrBench is a path that is open.
type attrBench struct {
	*testing.T
	c    *Cache
	d    *client.Device
	buf  []byte
	next *int64 // the first byte that no check has touched
	// heard says whether this path leads attributes to the cache on this kernel.
	heard bool
}

const attrBytes = 64 << 10

// fresh is a place that is not cached.
func (b *attrBench) fresh() int64 {
	*b.next += 1 << 20
	return *b.next
}

// with is the bench for a subtest.
func (b *attrBench) with(t *testing.T) *attrBench {
	sub := *b
	sub.T = t
	return &sub
}

func (b *attrBench) set(text string) *attrs.Set {
	b.Helper()
	s, err := attrs.ParseSet(text)
	if err != nil {
		b.Fatal(err)
	}
	return &s
}

func (b *attrBench) read(off int64, text string) (attrs.Results, error) {
	b.Helper()
	_, r, err := b.d.ReadAt(b.buf, off, b.set(text))
	return r, err
}

func (b *attrBench) write(off int64, text string) (attrs.Results, error) {
	b.Helper()
	_, r, err := b.d.WriteAt(b.buf, off, b.set(text))
	return r, err
}

// must wants a request to succeed and its attribute to be handled.
func (b *attrBench) must(r attrs.Results, err error) func(id attrs.ID) attrs.Results {
	b.Helper()
	return func(id attrs.ID) attrs.Results {
		b.Helper()
		if err != nil || r.For(id).Status != attrs.Handled {
			b.Errorf("%v: %v, error %v, want handled", id, r.For(id), err)
		}
		return r
	}
}

// origin wants the data of a place to be on the SSD or on the backing device, as a read finds it that
// changes nothing.
func (b *attrBench) origin(off int64, want attrs.Origin, after string) {
	b.Helper()
	r, err := b.read(off, "hint=bypass")
	if err != nil || r.Origin != want {
		b.Errorf("after %s the data is on %v, want %v (error %v)", after, r.Origin, want, err)
	}
}

// attrCheck tries an attribute and looks at what the cache holds or did.
type attrCheck struct {
	name string
	do   func(b *attrBench)
}

var attrChecks = []attrCheck{
	{"hint=cache", func(b *attrBench) {
		off := b.fresh()
		b.must(b.read(off, "hint=cache"))(attrs.IDHint)
		b.origin(off, attrs.OriginSSD, "hint=cache")
	}},
	{"hint=bypass", func(b *attrBench) {
		off := b.fresh()
		b.must(b.read(off, "hint=bypass"))(attrs.IDHint)
		b.origin(off, attrs.OriginBacking, "hint=bypass")
	}},
	{"hint=once", func(b *attrBench) {
		off := b.fresh()
		b.must(b.read(off, "hint=once"))(attrs.IDHint)
		b.origin(off, attrs.OriginBacking, "hint=once")
	}},
	{"hint=prefetch", func(b *attrBench) {
		off := b.fresh()
		b.must(b.read(off, "hint=prefetch"))(attrs.IDHint)
		b.origin(off, attrs.OriginSSD, "hint=prefetch")
	}},
	{"hint=pin, unpin", func(b *attrBench) {
		off, before := b.fresh(), b.c.Device(b, "data").PinnedBytes
		b.must(b.read(off, "hint=pin"))(attrs.IDHint)
		if n := b.c.Device(b, "data").PinnedBytes - before; n != attrBytes {
			b.Errorf("%d bytes pinned, want %d", n, attrBytes)
		}
		b.must(b.read(off, "hint=unpin"))(attrs.IDHint)
		if n := b.c.Device(b, "data").PinnedBytes; n != before {
			b.Errorf("%d bytes pinned after unpin, %d before", n, before)
		}
	}},
	{"hint=evict", func(b *attrBench) {
		off := b.fresh()
		b.must(b.read(off, "hint=cache"))(attrs.IDHint)
		Ubcache(b, "flush", "data")
		b.must(b.read(off, "hint=evict"))(attrs.IDHint)
		Wait(b, 10*time.Second, "the data is evicted", func() bool {
			r, err := b.read(off, "hint=bypass")
			return err == nil && r.Origin == attrs.OriginBacking
		})
	}},
	{"mode", func(b *attrBench) {
		Ubcache(b, "flush", "data")
		dirty := func() int64 { return b.c.Device(b, "data").DirtyBytes }
		off, before := b.fresh(), dirty()
		b.must(b.write(off, "mode=writethrough"))(attrs.IDMode)
		if r := b.must(b.write(b.fresh(), "mode=writearound"))(attrs.IDMode); r.Origin != attrs.OriginBacking {
			b.Errorf("writearound went to %v", r.Origin)
		}
		if n := dirty(); n != before {
			b.Errorf("%d bytes made dirty by writes past writeback", n-before)
		}
		b.must(b.write(b.fresh(), "mode=writeback"))(attrs.IDMode)
		if n := dirty() - before; n != attrBytes {
			b.Errorf("%d bytes made dirty by writeback, want %d", n, attrBytes)
		}
	}},
	{"prio", func(b *attrBench) {
		before := b.c.Attributes(b).ByPriority["rt/1"].Requests
		b.must(b.read(b.fresh(), "prio=rt/1"))(attrs.IDPriority)
		if n := b.c.Attributes(b).ByPriority["rt/1"].Requests; n <= before {
			b.Error("no request of class rt, level 1, was served")
		}
	}},
	{"checksum", checkChecksums},
	{"lifetime", func(b *attrBench) {
		before := b.c.Attributes(b).ByAttribute["lifetime"].Handled
		b.must(b.write(b.fresh(), "lifetime=short"))(attrs.IDLifetime)
		if b.c.Attributes(b).ByAttribute["lifetime"].Handled == before {
			b.Error("no write was placed by its lifetime")
		}
	}},
	{"tenant", func(b *attrBench) {
		before := b.c.Attributes(b).ByTenant["77"]
		b.must(b.read(b.fresh(), "tenant=77,hint=cache"))(attrs.IDTenant)
		if n := b.c.Attributes(b).ByTenant["77"].Bytes - before.Bytes; n != attrBytes {
			b.Errorf("%d bytes on the tenant's account, want %d", n, attrBytes)
		}
	}},
	{"deadline", func(b *attrBench) {
		if r := b.must(b.read(b.fresh(), "deadline=1m"))(attrs.IDDeadline); r.For(attrs.IDDeadline).Reason != attrs.ReasonNone {
			b.Errorf("a deadline in a minute: %v", r.For(attrs.IDDeadline))
		}
		r, err := b.read(b.fresh(), "deadline=1us")
		if !errors.Is(err, attrs.ErrnoDeadline) && r.For(attrs.IDDeadline).Reason != attrs.ReasonOverdue {
			b.Errorf("a deadline that cannot be met: %v, error %v", r.For(attrs.IDDeadline), err)
		}
	}},
	{"timing", func(b *attrBench) {
		off, began := b.fresh(), time.Now()
		r := b.must(b.read(off, "hint=cache,timing"))(attrs.IDTiming)
		took := time.Since(began)
		miss, _ := r.Timing()
		r = b.must(b.read(off, "timing"))(attrs.IDTiming)
		hit, _ := r.Timing()
		if miss.Backing <= 0 || miss.Total < miss.Backing || miss.Total > took {
			b.Errorf("a miss that took %v from outside: %+v", took, miss)
		}
		if hit.SSD <= 0 || hit.Backing != 0 || hit.Total < hit.SSD {
			b.Errorf("a hit: %+v", hit)
		}
	}},
	{"trace", func(b *attrBench) {
		id := uint64(time.Now().UnixNano())
		b.must(b.read(b.fresh(), fmt.Sprintf("trace=%d", id)))(attrs.IDTrace)
		if out := Ubcache(b, "--json", "trace"); !strings.Contains(out, fmt.Sprintf("%#x", id)) {
			b.Errorf("trace %d is not in\n%s", id, out)
		}
	}},
	{"unknown id", func(b *attrBench) {
		off := b.fresh()
		r, err := b.read(off, "0xf001=c0ffee")
		if err != nil || r.For(0xf001).Status != attrs.Unsupported {
			b.Errorf("%v, error %v, want unsupported", r.For(0xf001), err)
		}
		want := bytes.Clone(b.buf)
		Fill(b.buf, 99)
		if _, err := b.write(off, "0xf001=00,required:0xf001"); !errors.Is(err, attrs.ErrnoRefused) {
			b.Errorf("required and unknown: %v, want %v", err, attrs.ErrnoRefused)
		}
		if _, err := b.read(off, "hint=bypass"); err != nil || !bytes.Equal(b.buf, want) {
			b.Errorf("a refused write had an effect (%v)", err)
		}
	}},
}

// checkChecksums: right ones pass and are returned, wrong ones fail a write without effect, and a read.
func checkChecksums(b *attrBench) {
	off := b.fresh()
	for _, a := range []attrs.Algorithm{attrs.XXH64, attrs.CRC32C, attrs.CRC64NVMe} {
		Fill(b.buf, uint64(a))
		want := bytes.Clone(b.buf)
		good := attrs.Checksum{Algorithm: a, Sums: a.AppendSums(nil, b.buf), Return: true}
		var set attrs.Set
		set.SetChecksum(good)
		_, r, err := b.d.WriteAt(b.buf, off, &set)
		b.must(r, err)(attrs.IDChecksum)
		if _, sums := r.Checksums(); !bytes.Equal(sums, good.Sums) {
			b.Errorf("%v: returned %x, want %x", a, sums, good.Sums)
		}
		b.buf[5*attrs.BlockSize] ^= 1
		_, r, err = b.d.WriteAt(b.buf, off, &set)
		if block, bad := r.Mismatch(); !errors.Is(err, attrs.ErrnoMismatch) || !bad || block != 5 {
			b.Errorf("%v: write of other data: %v, block %d %v", a, err, block, bad)
		}
		_, r, err = b.d.ReadAt(b.buf, off, &set)
		b.must(r, err)(attrs.IDChecksum)
		if !bytes.Equal(b.buf, want) {
			b.Errorf("%v: a refused write had an effect", a)
		}
		bad := good
		bad.Sums = bytes.Clone(good.Sums)
		bad.Sums[2*a.Width()] ^= 1
		set.SetChecksum(bad)
		_, r, err = b.d.ReadAt(b.buf, off, &set)
		if block, no := r.Mismatch(); !errors.Is(err, attrs.ErrnoMismatch) || !no || block != 2 {
			b.Errorf("%v: read of other data: %v, block %d %v", a, err, block, no)
		}
	}
}

// TestAttributePaths is the table attribute × path: each cell tried, and shown in effect by what the
// cache then holds or did; where nothing of ours is below, or the kernel cannot carry it, nobody
// answers and what is required fails.
func TestAttributePaths(t *testing.T) {
	rows := [][]string{{"attribute"}}
	for _, k := range attrChecks {
		rows = append(rows, []string{k.name})
	}
	for _, p := range attrPaths {
		for i := range rows {
			rows[i] = append(rows[i], "not tried")
		}
		column := len(rows[0]) - 1
		rows[0][column] = p.name
		t.Run(p.name, func(t *testing.T) {
			Limit(t, 3*time.Minute)
			b := p.bench(t)
			for i, k := range attrChecks {
				cell := &rows[i+1][column]
				*cell = "FAILED"
				if !b.heard {
					if t.Run(k.name, func(t *testing.T) { b.with(t).silent() }) {
						*cell = "not handled"
					}
				} else if t.Run(k.name, func(t *testing.T) { k.do(b.with(t)) }) {
					*cell = "in effect"
				}
			}
		})
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush()
	fmt.Printf("attribute × path, Linux %s\n%s", os.Getenv("UBVM_KERNEL"), text.String())
	if err := os.WriteFile(Out(t, "attributes.txt"), []byte(text.String()), 0o644); err != nil {
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
	o := client.Options{Channel: p.channel}
	d, err := client.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &attrBench{T: t, c: c, d: d, next: new(int64)}
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
	if b.buf, err = d.Alloc(attrBytes); err != nil {
		t.Fatal(err)
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
	if ch, _ := b.d.Channel(); ch == client.Plain {
		if _, err := b.read(off, "hint=cache,required:hint"); !errors.Is(err, unix.EREMOTEIO) {
			b.Errorf("required where nobody handles it: %v", err)
		}
	}
}

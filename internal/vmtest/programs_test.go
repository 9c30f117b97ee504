//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// attrCgroup is the cgroup of programs that are on its account.
const attrCgroup = "/sys/fs/cgroup/attrs.slice"

// attrProgram is a program that knows nothing of ubcache: what it can say goes by the kernel's means.
type attrProgram struct {
	name string
	// says are the attributes for which it has an option.
	says []attrs.ID
	// list has the tests of which a part is not for the short one: a start takes a second.
	list func(t testing.TB) (there bool, name string)
	// command does one request of attrBytes at off, with O_DIRECT.
	command func(dev string, write bool, off int64, s *attrs.Set) []string
}

var attrPrograms = []attrProgram{
	{
		name: "fio io_uring", list: func(t testing.TB) (bool, string) { return Full(t), "full" },
		says: []attrs.ID{attrs.IDHint, attrs.IDPriority, attrs.IDLifetime},
		command: func(dev string, write bool, off int64, s *attrs.Set) []string {
			return attrFio("io_uring", dev, write, off, s)
		},
	},
	{
		name: "fio libaio", list: func(t testing.TB) (bool, string) { return Long(t), "long" },
		says: []attrs.ID{attrs.IDHint, attrs.IDPriority},
		command: func(dev string, write bool, off int64, s *attrs.Set) []string {
			return attrFio("libaio", dev, write, off, s)
		},
	},
	{
		name: "ionice dd", says: []attrs.ID{attrs.IDPriority},
		command: func(dev string, write bool, off int64, s *attrs.Set) []string {
			dd := attrDD(dev, write, off)
			if !s.Has(attrs.IDPriority) {
				return dd
			}
			p := s.Priority()
			return append([]string{"ionice", fmt.Sprintf("-c%d", p.Class), fmt.Sprintf("-n%d", p.Level)}, dd...)
		},
	},
	{
		name: "ubcache run dd", says: []attrs.ID{attrs.IDHint, attrs.IDPriority},
		command: func(dev string, write bool, off int64, s *attrs.Set) []string {
			run, dd := []string{"ubcache", "run"}, attrDD(dev, write, off)
			if s.Has(attrs.IDHint) {
				run = append(run, "--hint", s.Hint().String())
			}
			if s.Has(attrs.IDPriority) {
				run = append(run, "--prio", s.Priority().String())
			}
			if len(run) == 2 {
				return dd
			}
			return append(append(run, "--"), dd...)
		},
	},
}

// attrFio is fio with the options for an ioprio, of which the hint is a part, and for a write hint.
func attrFio(engine, dev string, write bool, off int64, s *attrs.Set) []string {
	rw := "read"
	if write {
		rw = "write"
	}
	cmd := []string{
		"fio", "--name=fio", "--filename=" + dev, "--ioengine=" + engine, "--direct=1", "--thread",
		"--rw=" + rw, fmt.Sprintf("--bs=%d", attrBytes), fmt.Sprintf("--size=%d", attrBytes),
		fmt.Sprintf("--offset=%d", off), "--allow_mounted_write=1", "--output-format=terse",
	}
	if v := s.IOPrio(); v != 0 {
		cmd = append(cmd, "--cmdprio_percentage=100", fmt.Sprintf("--cmdprio_class=%d", v>>13),
			fmt.Sprintf("--cmdprio_hint=%d", v>>3&0x3ff), fmt.Sprintf("--cmdprio=%d", v&7))
	}
	if write && engine == "io_uring" {
		// The hint stays with the inode of the device until another is set.
		life := attrs.LifetimeNone
		if s.Has(attrs.IDLifetime) {
			life = s.Lifetime()
		}
		cmd = append(cmd, "--write_hint="+life.String())
	}
	return cmd
}

func attrDD(dev string, write bool, off int64) []string {
	dd := []string{"dd", "status=none", "count=1", fmt.Sprintf("bs=%d", attrBytes)}
	if write {
		return append(dd, "if=/dev/zero", "of="+dev, "oflag=direct", "conv=notrunc",
			fmt.Sprintf("seek=%d", off/attrBytes))
	}
	return append(dd, "if="+dev, "of=/dev/null", "iflag=direct", fmt.Sprintf("skip=%d", off/attrBytes))
}

// issuer runs the program for each request.
func (p *attrProgram) issuer(t testing.TB, dev string) attrIssuer {
	later := ""
	if p.list != nil {
		if there, name := p.list(t); !there {
			later = "on the " + name + " list"
		}
	}
	return attrIssuer{
		source: "ioprio", later: later,
		can: func(s *attrs.Set) bool {
			left := s.Came()
			for _, id := range p.says {
				left &^= 1 << id
			}
			return left == 0 && s.NumUnknown() == 0
		},
		do: func(t testing.TB, write bool, off int64, s *attrs.Set) (attrs.Results, error) {
			if s == nil {
				s = &attrs.Set{}
			}
			cmd := p.command(dev, write, off, s)
			_, err := Try(t, cmd[0], cmd[1:]...)
			return attrs.Results{}, err
		},
	}
}

// cgroupCheck is for programs: the one that is in a cgroup is on its account.
func cgroupCheck(p *attrProgram, dev string) attrCheck {
	return attrCheck{"tenant, by cgroup", "prio=rt/1", func(b *attrBench) {
		var st unix.Stat_t
		if err := unix.Stat(attrCgroup, &st); err != nil {
			b.Fatal(err)
		}
		name := fmt.Sprintf("cgroup:%d", st.Ino)
		before := b.c.Attributes(b).ByTenant[name]
		cmd := p.command(dev, false, b.fresh(), &attrs.Set{})
		Run(b, "sh", append([]string{"-ec", "echo $$ >" + attrCgroup + `/cgroup.procs; exec "$@"`, "sh"}, cmd...)...)
		if n := b.c.Attributes(b).ByTenant[name].Bytes - before.Bytes; n != attrBytes {
			b.Errorf("%d bytes on the cgroup's account, want %d", n, attrBytes)
		}
	}}
}

// TestAttributePrograms is the table attribute × program, on all kernels: each cell tried, and shown in effect
// by what the cache then holds or did. Where a program has no means to say something, or a kernel
// lacks the channel, that is what the cell says, and the attempt was refused in so many words.
func TestAttributePrograms(t *testing.T) {
	checks := append(slices.Clone(attrChecks), asyncCheck, attrCheck{name: "tenant, by cgroup"})
	table := newAttrTable("attribute × program", checks)
	t.Run("programs", func(t *testing.T) {
		Limit(t, 6*time.Minute)
		c := NewCache(t, Slice(t, "ssd", 0, 128))
		dev := c.Attach(t, Slice(t, "slow", 0, 320), "data", "--mode=writeback", "--sequential-cutoff=0",
			"--writeback-delay=1h")
		kernelSource(t, c)
		Sh(t, `mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
			mkdir -p `+attrCgroup)
		t.Cleanup(func() { _ = os.Remove(attrCgroup) })
		// Requests are counted, so none may become a part of another.
		if err := os.WriteFile(QueueFile(t, dev, "nomerges"), []byte("2"), 0); err != nil {
			t.Fatal(err)
		}
		b := newProgramBench(t, c)
		for _, ch := range []client.Channel{client.Shared, client.Direct} {
			table.column("our client, " + ch.String())
			b.clientColumn(t, table, checks, dev, ch)
		}
		for _, p := range attrPrograms {
			table.column(p.name)
			list := slices.Clone(checks)
			list[len(list)-1] = cgroupCheck(&p, dev)
			b.columnOf(t, table, list, func(_ *testing.T, b *attrBench) { b.attrIssuer = p.issuer(t, dev) })
		}
		b.checkPlaces(t)
	})
	t.Run("integrity", func(t *testing.T) {
		Limit(t, 2*time.Minute)
		table.column("io_uring PI")
		integrityColumn(t, table, checks)
	})
	table.print(t, "attributes-programs.txt")
}

// newProgramBench is the bench of programs that are no clients: a client looks at what they did.
func newProgramBench(t *testing.T, c *Cache) *attrBench {
	b := &attrBench{T: t, c: c, next: new(int64), idle: new(int64), short: map[int64]bool{}, heard: true}
	b.probe, b.look = openClient(t, "", client.Options{Device: "data"})
	return b
}

// columnOf tries all that an issuer can say; open makes it.
func (b *attrBench) columnOf(t *testing.T, table *attrTable, checks []attrCheck,
	open func(t *testing.T, b *attrBench),
) {
	t.Run(table.last(), func(t *testing.T) {
		b := b.with(t)
		open(t, b)
		for i, k := range checks {
			switch {
			case k.do == nil || b.can != nil && !b.can(attrSet(t, k.says)):
				table.set(i, "cannot be said")
			case b.later != "" && !slices.Contains(attrBrief, k.name):
				table.set(i, b.later)
			default:
				table.run(t, i, "in effect", func(t *testing.T) { k.do(b.with(t)) })
			}
		}
	})
}

// attrBrief are the checks of a program whose others are on a longer list of tests.
var attrBrief = []string{"hint=bypass", "prio", "lifetime", "tenant, by cgroup"}

// clientColumn is that of a program with the client library.
func (b *attrBench) clientColumn(t *testing.T, table *attrTable, checks []attrCheck, dev string, ch client.Channel) {
	if ch == client.Shared && !KernelAtLeast(t, "7.1") {
		d, err := client.Open(dev, client.Options{Channel: ch})
		if err == nil {
			_ = d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "needs Linux 7.1") {
			t.Errorf("%v, want that it needs Linux 7.1", err)
		}
		table.all("needs Linux 7.1")
		return
	}
	b.columnOf(t, table, checks, func(t *testing.T, b *attrBench) {
		d, buf := openClient(t, dev, client.Options{Channel: ch})
		b.attrIssuer, b.buf, b.probe = clientIssuer(d, buf), buf, nil
	})
}

// checkPlaces stops the cache and looks where on its SSD the data is: what was written with a short lifetime
// is with nothing else in a bucket.
func (b *attrBench) checkPlaces(t *testing.T) {
	t.Helper()
	if t.Failed() {
		return
	}
	if err := b.probe.Close(); err != nil {
		t.Error(err)
	}
	b.c.Stop(t)
	var dump struct {
		Blocks []struct{ Bucket, Block int64 }
	}
	decode(t, Ubcache(t, "dump", "--json", "--blocks", "main"), &dump)
	short, other := map[int64]int64{}, map[int64]int64{}
	for _, k := range dump.Blocks {
		if off := k.Block * attrs.BlockSize; b.short[off-off%attrBytes] {
			short[k.Bucket] = off
		} else {
			other[k.Bucket] = off
		}
	}
	for bucket, off := range short {
		if at, mixed := other[bucket]; mixed {
			t.Errorf("bucket %d has data with a short lifetime, of %d, and other data, of %d", bucket, off, at)
		}
	}
	if len(short) == 0 || len(other) == 0 {
		t.Errorf("%d buckets with short-lived data, %d with other", len(short), len(other))
	}
}

//go:build vm

package blkbpf

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/internal/vmtest"
	"ubcache/ublk"
)

// These tests run programs that know nothing of ubcache on a ublk device, and look at what its server
// learns of their requests.

// expect fails the test if there are fewer requests than wanted, if Lookup did not know one of them, or
// if one is not as it should be.
func expect(t *testing.T, list []noted, atLeast int, right func(Event) bool) {
	t.Helper()
	if len(list) < atLeast {
		t.Fatalf("saw %d requests, want %d at least", len(list), atLeast)
	}
	wrong := 0
	for _, n := range list {
		if n.found && right(n.Event) {
			continue
		}
		if wrong++; wrong <= 3 {
			t.Errorf("sector %d+%d: found %t, %+v", n.sector, n.sectors, n.found, n.Event)
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d requests are not as they should be", wrong, len(list))
	}
}

func TestPrograms(t *testing.T) {
	vmtest.Limit(t, 5*time.Minute)
	d := newRAMDisk(t, openSource(t))
	dev := d.Path()
	const dd = "if=%s of=/dev/null bs=1M count=8 iflag=direct status=none"
	ddArgs := func() []string { return strings.Fields(fmt.Sprintf(dd, dev)) }

	t.Run("fio io_uring", func(t *testing.T) {
		var pid uint32
		list := d.during(ublk.OpRead, func() {
			pid = fio(t, dev, "ioengine=io_uring", "rw=randread", "size=4m", "iodepth=16",
				"cmdprio_percentage=100", "cmdprio_class=1", "cmdprio=3", "cmdprio_hint=300")
		})
		expect(t, list, 1024, func(e Event) bool {
			return e.IOPrio == 1<<13|300<<3|3 && e.PID == pid && !e.Kernel && e.UID == 0
		})
	})
	t.Run("fio libaio", func(t *testing.T) {
		var pid uint32
		list := d.during(ublk.OpWrite, func() {
			pid = fio(t, dev, "ioengine=libaio", "rw=randwrite", "size=4m", "iodepth=16",
				"cmdprio_percentage=100", "cmdprio_class=2", "cmdprio=6")
		})
		expect(t, list, 1024, func(e Event) bool { return e.IOPrio == 2<<13|6 && e.PID == pid })
	})
	t.Run("ionice dd", func(t *testing.T) {
		dropCaches(t)
		var pid uint32
		list := d.during(ublk.OpRead, func() {
			pid = command(t, "ionice", "-c3", "dd", "if="+dev, "of=/dev/null", "bs=64k", "count=64")
		})
		expect(t, list, 8, func(e Event) bool { return e.IOPrio>>13 == 3 && e.PID == pid && e.Readahead })
	})
	t.Run("ubcache run", func(t *testing.T) {
		var pid uint32
		list := d.during(ublk.OpRead, func() {
			pid = command(t, "ubcache", append([]string{"run", "--hint", "bypass", "--", "dd"}, ddArgs()...)...)
		})
		expect(t, list, 8<<20/(512<<10), func(e Event) bool { return e.PID == pid && attributes(e) == "hint=bypass" })
		list = d.during(ublk.OpRead, func() {
			command(t, "ubcache", append([]string{"run", "--hint=pin", "--prio=idle", "sh", "-c", `dd "$@"; true`, "sh"},
				ddArgs()...)...)
		})
		expect(t, list, 8<<20/(512<<10), func(e Event) bool { return attributes(e) == "hint=pin,prio=idle/0" })
	})
	t.Run("nobody in particular", func(t *testing.T) {
		list := d.during(ublk.OpRead, func() { command(t, "dd", ddArgs()...) })
		expect(t, list, 8<<20/(512<<10), func(e Event) bool { return attributes(e) == "" && e.Cgroup == RootCgroup })
	})
	t.Run("another user", func(t *testing.T) {
		vmtest.Run(t, "chmod", "666", dev)
		list := d.during(ublk.OpRead, func() {
			command(t, "setpriv", append([]string{"--reuid=1234", "--clear-groups", "dd"}, ddArgs()...)...)
		})
		expect(t, list, 8<<20/(512<<10), func(e Event) bool { return e.UID == 1234 })
	})
	t.Run("fio write hint", func(t *testing.T) { // the last, for the device keeps it
		list := d.during(ublk.OpWrite, func() {
			fio(t, dev, "ioengine=io_uring", "rw=write", "size=1m", "write_hint=short")
		})
		expect(t, list, 256, func(e Event) bool { return attributes(e) == "lifetime=short" })
		list = d.during(ublk.OpRead, func() { command(t, "dd", ddArgs()...) })
		expect(t, list, 8<<20/(512<<10), func(e Event) bool { return e.WriteHint == 2 && attributes(e) == "" })
	})
}

// attributes is what the engine would learn from the event.
func attributes(e Event) string {
	var s attrs.Set
	e.AddTo(&s)
	return s.String()
}

// TestStacked has device-mapper and a filesystem on the device.
func TestStacked(t *testing.T) {
	vmtest.Limit(t, 5*time.Minute)
	d := newRAMDisk(t, openSource(t))
	linear := vmtest.Mapper(t, "linear", fmt.Sprintf("0 %d linear %s 0", ramBytes>>9, d.Path()))
	list := d.during(ublk.OpRead, func() {
		command(t, "ubcache", "run", "--hint=once", "--prio=be/1", "dd", "if="+linear, "of=/dev/null",
			"bs=64k", "count=32", "iflag=direct")
	})
	expect(t, list, 32, func(e Event) bool { return attributes(e) == "hint=once,prio=be/1" })

	mkfs := d.during(ublk.OpWrite, func() { command(t, "mkfs.ext4", "-q", linear) })
	expect(t, mkfs, 1, func(Event) bool { return true })
	dir := vmtest.Mount(t, linear, "data=ordered")
	file := dir + "/file"
	list = d.during(ublk.OpWrite, func() {
		fio(t, file, "ioengine=io_uring", "rw=randwrite", "size=4m", "fallocate=posix",
			"cmdprio_percentage=100", "cmdprio_class=1", "cmdprio=2", "cmdprio_hint=775")
		vmtest.Run(t, "sync")
	})
	data, meta := 0, 0
	for _, n := range list {
		if !n.found {
			t.Errorf("sector %d+%d: not found", n.sector, n.sectors)
		}
		if n.IOPrio == 1<<13|775<<3|2 {
			data++
		}
		if n.Meta {
			meta++
		}
	}
	if data < 1024 || meta == 0 {
		t.Errorf("%d writes, %d of them tagged, want 1024; %d of metadata", len(list), data, meta)
	}
}

// TestCgroup: requests are booked on the cgroup of whoever caused them, whether or not the cgroup has the
// io controller; with it (and memory's), buffered writes too, which kernel threads issue.
func TestCgroup(t *testing.T) {
	vmtest.Limit(t, 5*time.Minute)
	d := newRAMDisk(t, openSource(t))
	command(t, "mkfs.ext4", "-q", d.Path())
	file := vmtest.Mount(t, d.Path(), "data=ordered") + "/file"
	const root = "/sys/fs/cgroup"
	for _, controllers := range []string{"", "+io +memory"} {
		name := "plain"
		if controllers != "" {
			name = "io controller"
		}
		t.Run(name, func(t *testing.T) {
			if controllers != "" {
				writeFile(t, root+"/cgroup.subtree_control", controllers)
				t.Cleanup(func() { writeFile(t, root+"/cgroup.subtree_control", "-io -memory") })
			}
			dir, err := os.MkdirTemp(root, "blkbpf")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				vmtest.Wait(t, time.Minute, "removal of a cgroup", func() bool { return os.Remove(dir) == nil })
			})
			var st unix.Stat_t
			if err := unix.Stat(dir, &st); err != nil {
				t.Fatal(err)
			}
			in := func(script string) uint32 {
				return command(t, "sh", "-ec", "echo $$ >"+dir+"/cgroup.procs; exec "+script)
			}
			var pid uint32
			list := d.during(ublk.OpRead, func() {
				pid = in("dd if=" + d.Path() + " of=/dev/null bs=64k count=32 iflag=direct")
			})
			// A new ext4 is still being initialised, by a kernel thread.
			list = slices.DeleteFunc(list, func(n noted) bool { return n.found && n.PID != pid })
			expect(t, list, 32, func(e Event) bool { return e.Cgroup == st.Ino })
			if got, want := attributes(list[0].Event), fmt.Sprintf("tenant=cgroup:%d", st.Ino); got != want {
				t.Errorf("attributes %s, want %s", got, want)
			}
			if controllers == "" {
				return
			}
			// Written by the flusher, or by somebody who is in no cgroup.
			for _, sync := range []string{"sync", "sync " + file} {
				list := d.during(ublk.OpWrite, func() {
					in("dd if=/dev/zero of=" + file + " bs=64k count=64 conv=notrunc status=none")
					vmtest.Sh(t, sync)
				})
				byFlusher, byTask := uint32(0), uint32(0)
				for _, n := range list {
					switch {
					case !n.found || n.Cgroup != st.Ino || n.Meta:
					case n.Kernel:
						byFlusher += n.sectors
					default:
						byTask += n.sectors
					}
				}
				if byFlusher+byTask < 64*128 || sync == "sync" && byFlusher == 0 || sync != "sync" && byTask == 0 {
					t.Errorf("%s: booked on the cgroup of the writer are %d sectors written by the flusher and "+
						"%d by sync, want %d in all: %+v", sync, byFlusher, byTask, 64*128, list)
				}
			}
		})
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// TestTooLate: requests that were issued before the program could see them are not found, as after a
// restart of the daemon; later ones with the same tags are.
func TestTooLate(t *testing.T) {
	vmtest.Limit(t, 2*time.Minute)
	src := openSource(t)
	d := newRAMDisk(t, src)
	read := func() {
		fio(t, d.Path(), "ioengine=io_uring", "rw=read", "size=32k", "iodepth=8", "offset=1m",
			"cmdprio_percentage=100", "cmdprio_class=3", "cmdprio_hint=770")
	}
	tagged := func(e Event) bool { return e.IOPrio == 3<<13|770<<3 }
	d.take()
	d.hold.Store(true)
	done := make(chan struct{})
	go func() { defer close(done); read() }()
	d.waitHeld(t, 4) // more than the kernel reads by itself when a disk appears
	d.untrack(t)     // as if the daemon had died
	d.track(t, src)
	d.release()
	<-done
	late := slices.DeleteFunc(d.take(), func(n noted) bool { return n.sector < 1<<20>>9 })
	if len(late) == 0 || late[0].found {
		t.Errorf("found what could not be known: %+v", late)
	}
	expect(t, d.during(ublk.OpRead, read), 1, tagged)
}

// TestSelfInCgroup: what a process issues in a cgroup is on its account, but not what the serving process issues.
func TestSelfInCgroup(t *testing.T) {
	const group = "/sys/fs/cgroup/self.slice"
	vmtest.Sh(t, `mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
		mkdir -p `+group)
	move := func(to string) {
		t.Helper()
		if err := os.WriteFile(to+"/cgroup.procs", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	move(group)
	t.Cleanup(func() {
		move("/sys/fs/cgroup")
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	disk := loopDisk(t)
	for _, self := range []int{0, os.Getpid()} {
		s, err := open(options{MaxQueues, self})
		if err != nil {
			t.Fatal(err)
		}
		d := track(t, s, disk)
		directIO(t, disk, false, 8192, nil)
		if got := d.only(t); (got.Cgroup > RootCgroup) != (self == 0) || got.Kernel != (self != 0) {
			t.Errorf("the server is %d: saw %+v", self, got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

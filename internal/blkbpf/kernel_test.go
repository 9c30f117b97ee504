package blkbpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"ubcache/attrs"
)

// These tests load the program into the running kernel and watch a loop device. They need root.

// openSource is Open. Where the kernel cannot do it the test is skipped, except in the integration
// VM, whose kernels all can.
func openSource(t *testing.T) *Source {
	t.Helper()
	s, err := open(options{MaxQueues, 0}) // the requests of this process are its own
	if err != nil {
		if os.Getenv("UBVM_KERNEL") == "" {
			t.Skip(err)
		}
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// loopDisk makes a loop device of 16 MiB and returns its name.
func loopDisk(t *testing.T) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(16 << 20); err != nil {
		t.Fatal(err)
	}
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no loop devices here: open /dev/loop-control: %v", err)
	}
	defer unix.Close(ctl)
	for range 10 { // somebody else may take the free one first
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatalf("free loop device: %v", err)
		}
		name := fmt.Sprintf("loop%d", n)
		fd, err := unix.Open("/dev/"+name, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Skipf("no loop devices here: open /dev/%s: %v", name, err)
		}
		err = unix.IoctlLoopConfigure(fd, &unix.LoopConfig{Fd: uint32(f.Fd())})
		if errors.Is(err, unix.EBUSY) {
			_ = unix.Close(fd)
			continue
		}
		if err != nil {
			t.Fatalf("set up %s: %v", name, err)
		}
		t.Cleanup(func() {
			if _, err := unix.IoctlRetInt(fd, unix.LOOP_CLR_FD); err != nil {
				t.Errorf("remove %s: %v", name, err)
			}
			_ = unix.Close(fd)
		})
		setWriteHint(t, fd, 0) // the device has that of its last user
		return name
	}
	t.Fatal("all loop devices are taken by others")
	return ""
}

func setWriteHint(t *testing.T, fd int, hint uint64) {
	t.Helper()
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SET_RW_HINT,
		uintptr(unsafe.Pointer(&hint)))
	if errno != 0 {
		t.Fatalf("write hint %d: %v", hint, errno)
	}
}

// track has all requests of a disk written down.
func track(t *testing.T, s *Source, disk string) *Device {
	t.Helper()
	queues, err := filepath.Glob("/sys/block/" + disk + "/mq/*")
	if err != nil || len(queues) == 0 {
		t.Fatalf("queues of %s: %v, %v", disk, queues, err)
	}
	d, err := s.Track(disk, len(queues), 256)
	if err != nil {
		t.Fatal(err)
	}
	d.ShowAll(true)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// seen is a request that the program has written down.
type seen struct {
	sector  uint64
	sectors uint32
	Event
}

// drain takes what is in the slots, but for requests of other processes, such as udev's looking at a
// new device.
func (d *Device) drain() (list []seen) {
	self := uint32(os.Getpid())
	for q, slots := range d.slots {
		for tag := range len(slots) / slotBytes {
			slot := slots[tag*slotBytes:]
			s := seen{
				sector:  binary.NativeEndian.Uint64(slot[slotSector:]),
				sectors: binary.NativeEndian.Uint32(slot[slotBlkLen:]) >> 9,
			}
			var ok bool
			if s.Event, ok = d.Lookup(q, tag, s.sector, s.sectors); ok && s.PID == self {
				list = append(list, s)
			}
		}
	}
	return list
}

// only is the single request that the program has written down.
func (d *Device) only(t *testing.T) seen {
	t.Helper()
	list := d.drain()
	if len(list) != 1 {
		t.Fatalf("saw %+v, want one request", list)
	}
	return list[0]
}

// withPriority runs a function on a thread with this I/O priority, which ends with it.
func withPriority(t *testing.T, prio uint16, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		const whoProcess = 1
		_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(prio))
		if errno == 0 {
			f()
			done <- nil
		} else {
			done <- errno
		}
	}()
	if err := <-done; err != nil {
		t.Fatalf("ioprio_set: %v", err)
	}
}

// directIO reads or writes 4096 bytes at a position of the disk.
func directIO(t *testing.T, disk string, write bool, at int64, prepare func(fd int)) {
	t.Helper()
	fd, err := unix.Open("/dev/"+disk, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	if prepare != nil {
		prepare(fd)
	}
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Munmap(mem)
	if write {
		_, err = unix.Pwrite(fd, mem, at)
	} else {
		_, err = unix.Pread(fd, mem, at)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestPriority(t *testing.T) {
	s, disk := openSource(t), loopDisk(t)
	d := track(t, s, disk)
	for i, prio := range []uint16{
		2<<13 | 770<<3 | 4, 1<<13 | 769<<3, 3 << 13, 2<<13 | 1023<<3 | 7, 2<<13 | 4,
	} {
		write := i%2 == 0
		at := int64(i+1) << 20
		withPriority(t, prio, func() { directIO(t, disk, write, at, nil) })
		got := d.only(t)
		if got.Cgroup == 0 {
			t.Error("no cgroup")
		}
		// Only a write says so by itself, or a read with O_SYNC, too.
		if write && !got.Sync {
			t.Error("a direct write is not sync")
		}
		want := seen{uint64(at) >> 9, 8, Event{
			IOPrio: prio, PID: uint32(os.Getpid()), UID: uint32(os.Getuid()),
			Cgroup: got.Cgroup, Sync: got.Sync, Write: write,
		}}
		if got != want {
			t.Errorf("saw  %+v\nwant %+v", got, want)
		}
	}
}

// TestSilent: requests from which nothing follows are not written down, unless somebody wants them; and they empty the
// slots of others.
func TestSilent(t *testing.T) {
	s, disk := openSource(t), loopDisk(t)
	d := track(t, s, disk)
	const plain = 2<<13 | 4
	read := func(prio uint16) { withPriority(t, prio, func() { directIO(t, disk, false, 8192, nil) }) }
	for _, all := range []bool{false, true, false} {
		d.ShowAll(all)
		for _, prio := range []uint16{plain, 2<<13 | 5, 1 << 13, 2<<13 | 770<<3 | 4} {
			read(prio)
			got := d.drain()
			switch want := all || prio != plain; {
			case len(got) > 1 || (len(got) == 1) != want:
				t.Fatalf("all %t, priority %#x: saw %+v", all, prio, got)
			case want && got[0].IOPrio != prio:
				t.Errorf("all %t, priority %#x: saw %+v", all, prio, got)
			}
		}
	}
	directIO(t, disk, true, 8192, func(fd int) { setWriteHint(t, fd, uint64(attrs.LifetimeShort)) })
	if got := d.only(t); got.WriteHint != uint8(attrs.LifetimeShort) {
		t.Errorf("saw %+v", got)
	}
	setHint := func(hint uint64) { directIO(t, disk, false, 8192, func(fd int) { setWriteHint(t, fd, hint) }) }
	setHint(0)
	d.drain()

	slots := 0
	for _, queue := range d.slots {
		for at := 0; at < len(queue); at += slotBytes {
			fill(queue[at:], 16, 8, 0, 0)
			slots++
		}
	}
	read(plain)
	for q := range d.slots {
		for tag := range 256 {
			if _, ok := d.Lookup(q, tag, 16, 8); ok {
				slots--
			}
		}
	}
	if slots != 1 {
		t.Errorf("%d slots were emptied, want one", slots)
	}
}

func TestWriteHint(t *testing.T) {
	s, disk := openSource(t), loopDisk(t)
	d := track(t, s, disk)
	for hint := uint64(0); hint <= uint64(attrs.LifetimeExtreme); hint++ {
		directIO(t, disk, true, 0, func(fd int) { setWriteHint(t, fd, hint) })
		if got := d.only(t); uint64(got.WriteHint) != hint {
			t.Errorf("write hint %d, want %d", got.WriteHint, hint)
		}
	}
}

func TestReadahead(t *testing.T) {
	s, disk := openSource(t), loopDisk(t)
	d := track(t, s, disk)
	fd, err := unix.Open("/dev/"+disk, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Fadvise(fd, 1<<20, 64<<10, unix.FADV_WILLNEED); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	if _, err := unix.Pread(fd, buf, 1<<20); err != nil { // waits for it
		t.Fatal(err)
	}
	for _, r := range d.drain() {
		if r.sector == 2048 && r.Readahead {
			return
		}
	}
	t.Error("no readahead seen")
}

// TestSelf: what the serving process issues counts as issued by a kernel thread.
func TestSelf(t *testing.T) {
	openSource(t) // skips
	disk := loopDisk(t)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	d := track(t, s, disk)
	withPriority(t, 3<<13, func() { directIO(t, disk, false, 0, nil) })
	if got := d.only(t); !got.Kernel || got.IOPrio != 3<<13 {
		t.Errorf("saw %+v", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := Probe(); err != nil {
		t.Error(err)
	}
}

// TestOthers: disks that are not tracked fill no slots, nor do those whose names are alike.
func TestOthers(t *testing.T) {
	s, disk, other := openSource(t), loopDisk(t), loopDisk(t)
	d := track(t, s, disk)
	similar, err := s.Track(other+"x", 1, 256)
	if err != nil {
		t.Fatal(err)
	}
	directIO(t, other, false, 0, nil)
	if got := append(d.drain(), similar.drain()...); len(got) != 0 {
		t.Errorf("saw requests of another disk: %+v", got)
	}
	d2 := track(t, s, other)
	directIO(t, other, false, 8192, nil)
	if got := d2.only(t); got.sector != 16 {
		t.Errorf("saw %+v", got)
	}
	if got := d.drain(); len(got) != 0 {
		t.Errorf("saw requests of another disk: %+v", got)
	}
	if err := similar.Close(); err != nil {
		t.Error(err)
	}
}

// TestCrowded: a disk is seen though others have taken the places before its own in the directory, and when some of them
// have left.
func TestCrowded(t *testing.T) {
	s, disk := openSource(t), loopDisk(t)
	var others []*Device
	for i := 0; len(others) < directoryTries-1; i++ {
		name := fmt.Sprintf("other%d", i)
		if keyOf(name, 0).home() != keyOf(disk, 0).home() {
			continue
		}
		d, err := s.Track(name, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, d)
	}
	d := track(t, s, disk)
	if want := keyOf(disk, 0).home() + len(others); d.places[0] != want {
		t.Fatalf("the disk is at place %d, not %d", d.places[0], want)
	}
	for _, o := range others {
		directIO(t, disk, false, 8192, nil)
		if got := d.only(t); got.sector != 16 {
			t.Errorf("saw %+v", got)
		}
		if got := o.drain(); len(got) != 0 {
			t.Errorf("saw requests of another disk: %+v", got)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
	directIO(t, disk, false, 8192, nil)
	d.only(t)
}

// TestTrack has what Track refuses, and that Close gives everything back.
func TestTrack(t *testing.T) {
	s := openSource(t)
	refused := func(disk string, queues, depth int, want string) {
		t.Helper()
		d, err := s.Track(disk, queues, depth)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s, %d queues of %d: %v, %v; want an error with %q", disk, queues, depth, d, err, want)
		}
	}
	refused("", 1, 1, "the name has 0 bytes")
	refused("a-name-of-17-byte", 1, 1, "the name has 17 bytes")
	refused("ublkb0", 0, 1, "0 queues")
	refused("ublkb0", 1, 4097, "1 queues of 4097")
	first, err := s.Track("ublkb0", 2, 128)
	if err != nil {
		t.Fatal(err)
	}
	refused("ublkb0", 1, 128, "tracked already")
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	again, err := s.Track("ublkb0", 1, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), again.Close(), again.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	refused("ublkb1", 1, 1, "closed")
}

// TestLimit: what does not fit is refused as a whole.
func TestLimit(t *testing.T) {
	openSource(t) // skips
	s, err := open(options{3, 0})
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Track("ublkb0", 2, 8)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Track("ublkb1", 2, 8); err == nil || !strings.Contains(err.Error(), "3 queues are") {
		t.Errorf("two queues more: %v", err)
	}
	second, err := s.Track("ublkb1", 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Close(), second.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestExplain has what users are told.
func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("make a map: %w", unix.EPERM), "operation not permitted (needs root, or CAP_BPF"},
		{fmt.Errorf("read: %w", fs.ErrPermission), "operation not permitted (needs root, or CAP_BPF"},
		{fmt.Errorf("make a map: %w", unix.ENOSYS), "not implemented (the kernel is built without CONFIG_BPF"},
		{errors.New("something else"), "something else"},
	} {
		if got := explain(c.err); !strings.Contains(got.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.err, got, c.want)
		}
	}
}

// TestClose: after it, requests are not written down any more.
func TestClose(t *testing.T) {
	s, disk := openSource(t), loopDisk(t)
	d := track(t, s, disk)
	directIO(t, disk, false, 0, nil)
	d.only(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	directIO(t, disk, false, 0, nil)
	if got := d.drain(); len(got) != 0 {
		t.Errorf("saw %+v", got)
	}
}

// TestVariants loads the program as it is for kernels without block cgroups, or without any. Then the
// cgroup is that of the task, or none.
func TestVariants(t *testing.T) {
	openSource(t) // skips
	disk := loopDisk(t)
	types, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	for _, cgroups := range []bool{true, false} {
		l, err := newLayout(types)
		if err != nil {
			t.Fatal(err)
		}
		l.hasBlkcg, l.hasCgroups = false, cgroups
		s := &Source{bits: l.bits, options: options{maxQueues: 1}}
		if err := s.load(l); err != nil {
			t.Fatalf("%+v", err)
		}
		d, err := s.Track(disk, 1, 256)
		if err != nil {
			t.Fatal(err)
		}
		withPriority(t, 3<<13, func() { directIO(t, disk, false, 0, nil) })
		if got := d.only(t); got.IOPrio != 3<<13 || (got.Cgroup != 0) != cgroups {
			t.Errorf("cgroups %t: saw %+v", cgroups, got)
		}
		if err := errors.Join(d.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
}

//go:build vm

package vmtest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// The daemon's own life: signals, namespaces, devices that come late.

// TestDaemonLife is the way of a cache from format to detach, as its manual has it.
func TestDaemonLife(t *testing.T) {
	for _, format := range [][]string{nil, {"--no-checksums"}} {
		name := "checksums"
		if format != nil {
			name = "zero copy"
		}
		t.Run(name, func(t *testing.T) { daemonLife(t, format) })
	}
}

func daemonLife(t *testing.T, format []string) {
	Limit(t, 3*time.Minute)
	slow := Slice(t, "slow", 0, 512)
	c := NewCache(t, Slice(t, "ssd", 0, 512), format...)
	dev := c.Attach(t, slow, "data", "--mode=writeback")
	Run(t, "mkfs.ext4", "-q", dev)
	dir := t.TempDir()
	Run(t, "mount", dev, dir)
	from := t.TempDir()
	want := MakeTree(t, from, 100, 7)
	copyTree(t, from, filepath.Join(dir, "one"))
	c.Kill(t)
	// These wait in the kernel until the new daemon takes the device over.
	late := make(chan error, 1)
	go func() { late <- os.WriteFile(filepath.Join(dir, "late"), []byte("late"), 0o644) }()
	c.Start(t)
	if err := <-late; err != nil {
		t.Error(err)
	}
	Run(t, "sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches")
	want.Compare(t, "after kill -9", ListTree(t, filepath.Join(dir, "one")))
	// The new daemon began with a copy of all mounts; it must not keep this one.
	Run(t, "umount", dir)
	Ubcache(t, "stop")
	c.Start(t)
	Run(t, "mount", dev, dir)
	want.Compare(t, "after a restart", ListTree(t, filepath.Join(dir, "one")))
	Refused(t, 3, "is mounted on "+dir, "detach", "data")
	Run(t, "umount", dir)
	Ubcache(t, "detach", "data")
	if _, err := os.Stat(dev); err == nil {
		t.Errorf("%s is still there", dev)
	}
	Run(t, "fsck.ext4", "-fn", slow)
	Run(t, "mount", slow, dir)
	want.Compare(t, "on the backing device", ListTree(t, filepath.Join(dir, "one")))
	Run(t, "umount", dir)
}

// TestTerminate ends the daemon with SIGTERM: it stops if its devices are unused, and otherwise
// leaves them to the next daemon.
func TestTerminate(t *testing.T) {
	Limit(t, 2*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	dev := c.Attach(t, Slice(t, "slow", 0, 256), "data", "--mode=writeback")
	Run(t, "mkfs.ext4", "-q", dev)
	dir := t.TempDir()
	Run(t, "mount", dev, dir)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.terminate(t)
	if _, err := os.Stat(dev); err != nil {
		t.Fatalf("%s is gone although it was mounted", dev)
	}
	late := make(chan error, 1)
	go func() { late <- os.WriteFile(filepath.Join(dir, "late"), []byte("late"), 0o644) }()
	c.Start(t)
	if err := <-late; err != nil {
		t.Error(err)
	}
	for _, name := range []string{"file", "late"} {
		if _, err := os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	Run(t, "umount", dir)
	c.terminate(t)
	if _, err := os.Stat(dev); err == nil {
		t.Errorf("%s is still there although it was not in use", dev)
	}
	if left, err := ublk.List(); err != nil || len(left) > 0 {
		t.Errorf("ublk devices are left: %v %v", left, err)
	}
	if left, _ := filepath.Glob(runtimeDir + "/*.pending"); len(left) > 0 {
		t.Errorf("pending rings are left after a stop in order: %v", left)
	}
	c.Start(t)
}

// terminate sends SIGTERM and waits for the end of the process.
func (c *Cache) terminate(t testing.TB) {
	t.Helper()
	pid := c.Status(t).PID
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	Wait(t, time.Minute, "end of the daemon after SIGTERM", func() bool {
		return unix.Kill(pid, 0) == unix.ESRCH
	})
}

// TestLateDevice starts a cache whose backing device is not there yet, with dirty data for it.
func TestLateDevice(t *testing.T) {
	Limit(t, 2*time.Minute)
	base := Slice(t, "slow", 0, 256)
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	other := c.Attach(t, Slice(t, "slow", 256, 128), "other")
	sectors := SizeBytes(t, base) / 512
	table := "0 " + strconv.FormatInt(sectors, 10) + " linear " + base + " 0"
	Run(t, "dmsetup", "create", "late", "--table", table)
	t.Cleanup(func() {
		c.close(t)
		_, _ = Try(t, "dmsetup", "remove", "late")
	})
	Run(t, "dmsetup", "mknodes")
	dev := c.Attach(t, "/dev/mapper/late", "data", "--mode=writeback")
	Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=1M", "count=8", "oflag=direct")
	want := Run(t, "sh", "-c", "head -c 8M "+dev+" | sha256sum")
	Ubcache(t, "stop")
	Run(t, "dmsetup", "remove", "late")
	if out := Ubcache(t, "start"); !strings.Contains(out, "data: missing") {
		t.Errorf("start says\n%s", out)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("the other device is not served: %v", err)
	}
	if d := c.Device(t, "data"); d.Service != "missing" || d.DirtyBytes == 0 {
		t.Errorf("device without its backing device: %+v", d)
	}
	Run(t, "dmsetup", "create", "late", "--table", table)
	Run(t, "dmsetup", "mknodes")
	Wait(t, 30*time.Second, "service of the late device", func() bool {
		return c.Device(t, "data").Service == "served"
	})
	if got := Run(t, "sh", "-c", "head -c 8M "+dev+" | sha256sum"); got != want {
		t.Error("the late device reads differently")
	}
	Ubcache(t, "detach", "data")
}

// TestDetachGoesOn kills the daemon in the middle of a detach.
func TestDetachGoesOn(t *testing.T) {
	Limit(t, 3*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 512))
	dev := c.Attach(t, Slice(t, "slow", 0, 512), "data", "--mode=writeback", "--sequential-cutoff=0")
	Fio(t, dev, "rw=randwrite", "bs=4k", "iodepth=16", "size=256m", "io_size=16m")
	Ubcache(t, "detach", "data", "--no-wait")
	if d := c.Device(t, "data"); d.State != "detaching" || d.DirtyBytes == 0 {
		t.Fatalf("a detach that has just begun: %+v", d)
	}
	c.Kill(t)
	c.Start(t)
	if d := c.Device(t, "data"); d.State != "detaching" {
		t.Errorf("the detach was forgotten: %+v", d)
	}
	Ubcache(t, "detach", "data", "--cancel")
	if d := c.Device(t, "data"); d.State == "detaching" || d.Mode != "writeback" {
		t.Errorf("the detach was not cancelled: %+v", d)
	}
	Ubcache(t, "detach", "data")
	if n := len(c.Status(t).Devices); n != 0 {
		t.Errorf("%d devices are left", n)
	}
}

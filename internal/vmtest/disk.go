//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Disk returns the device of a test disk (ssd, ssd4k, slow, slow4k or one of ubvm's --disk),
// discarded as a whole, so that a test does not find what another has left there.
func Disk(t testing.TB, name string) string {
	t.Helper()
	dev := RawDisk(t, name)
	if QueueLimit(t, dev, "discard_max_bytes") > 0 {
		Run(t, "blkdiscard", "-f", dev)
	}
	Run(t, "wipefs", "-q", "-a", "-f", dev)
	return dev
}

// RawDisk is [Disk] with the content left alone, for tests that go on after a power cut.
func RawDisk(t testing.TB, name string) string {
	t.Helper()
	dev := os.Getenv("UBVM_" + strings.ToUpper(name))
	if dev == "" {
		t.Fatalf("no test disk %s: run ubvm with --disk %s,size=…", name, name)
	}
	real, err := filepath.EvalSymlinks(dev)
	if err != nil {
		t.Fatal(err)
	}
	return real
}

// QueueFile is the name of a file in a block device's queue folder in sysfs.
func QueueFile(t testing.TB, dev, name string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		t.Fatalf("stat %s: %v", dev, err)
	}
	// By number, for device-mapper's nodes have other names than its devices.
	return fmt.Sprintf("/sys/dev/block/%d:%d/queue/%s", unix.Major(st.Rdev), unix.Minor(st.Rdev), name)
}

// QueueLimit reads a number from a block device's queue folder in sysfs.
func QueueLimit(t testing.TB, dev, name string) int64 {
	t.Helper()
	text, err := os.ReadFile(QueueFile(t, dev, name))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// SizeBytes returns the size of a block device.
func SizeBytes(t testing.TB, dev string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(Run(t, "blockdev", "--getsize64", dev), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// RamDisk loads brd with one RAM disk of this size and returns it. It is the fastest device there
// is here; brd has no write cache and no throttle. One test at a time can have it.
func RamDisk(t testing.TB, sizeMiB int) string {
	t.Helper()
	_, _ = Try(t, "modprobe", "-r", "brd")
	Run(t, "modprobe", "brd", "rd_nr=1", fmt.Sprintf("rd_size=%d", sizeMiB<<10))
	t.Cleanup(func() { _, _ = Try(t, "modprobe", "-r", "brd") })
	return "/dev/ram0"
}

// Delays are what [DelayDevice] adds to each request of a kind, in milliseconds.
type Delays struct{ ReadMs, WriteMs, FlushMs int }

// DelayDevice puts dm-delay over a device, which then behaves like a slow disk, and removes it at
// the end of the test.
func DelayDevice(t testing.TB, dev string, d Delays) string {
	t.Helper()
	sectors := SizeBytes(t, dev) / 512
	table := fmt.Sprintf("0 %d delay %s 0 %d %s 0 %d %s 0 %d", sectors,
		dev, d.ReadMs, dev, d.WriteMs, dev, d.FlushMs)
	return Mapper(t, "delay", table)
}

// notInMapperName is what the tools of the device mapper would write in another way.
var notInMapperName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// Mapper makes a device-mapper device with this table and removes it at the end of the test. The
// name is made unique with the test's.
func Mapper(t testing.TB, name, table string) string {
	t.Helper()
	name = notInMapperName.ReplaceAllString(name+"-"+t.Name(), "-")
	Run(t, "dmsetup", "create", name, "--table", table)
	t.Cleanup(func() {
		t.Helper()
		// Whoever scans new devices may hold it for a moment.
		Wait(t, 30*time.Second, "removal of device-mapper device "+name, func() bool {
			_, err := Try(t, "dmsetup", "remove", name)
			return err == nil
		})
	})
	dev := "/dev/mapper/" + name
	if _, err := os.Stat(dev); err != nil {
		Run(t, "dmsetup", "mknodes", name)
	}
	return dev
}

// Mount mounts a device on a new folder, with options such as "discard", and unmounts it at the
// end of the test.
func Mount(t testing.TB, dev, options string) string {
	t.Helper()
	dir := t.TempDir()
	Run(t, "mount", "-o", "defaults,"+options, dev, dir)
	t.Cleanup(func() {
		t.Helper()
		if _, err := Try(t, "mountpoint", "-q", dir); err == nil {
			Run(t, "umount", dir)
		}
	})
	return dir
}

// Slice makes a device of a part of a test disk, with what was there discarded, so that a test has
// devices of the sizes it needs.
func Slice(t testing.TB, disk string, offsetMiB, sizeMiB int) string {
	t.Helper()
	dev := RawSlice(t, disk, offsetMiB, sizeMiB)
	Run(t, "blkdiscard", "-f", dev)
	return dev
}

// RawSlice is [Slice] with the content left alone.
func RawSlice(t testing.TB, disk string, offsetMiB, sizeMiB int) string {
	t.Helper()
	table := fmt.Sprintf("0 %d linear %s %d", sizeMiB<<11, RawDisk(t, disk), offsetMiB<<11)
	return Mapper(t, fmt.Sprintf("%s-%d", disk, offsetMiB), table)
}

// Snapshot is what a device holds now, as a device of its own: what is written to it, such as
// the replay of a filesystem's journal, does not reach the original.
func Snapshot(t testing.TB, dev string) string {
	t.Helper()
	Modprobe(t, "dm_snapshot")
	file := filepath.Join(t.TempDir(), "cow")
	Run(t, "truncate", "-s", "256M", file)
	loop := Run(t, "losetup", "--show", "-f", file)
	t.Cleanup(func() { Run(t, "losetup", "-d", loop) })
	// A test may have snapshots of several devices.
	return Mapper(t, "snapshot-"+filepath.Base(loop), fmt.Sprintf("0 %d snapshot %s %s N 8",
		SizeBytes(t, dev)/512, dev, loop))
}

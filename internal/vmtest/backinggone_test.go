//go:build vm

package vmtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBackingGone takes the backing device away under a filesystem in writeback mode, and brings it back:
// hits and writes go on, a miss waits, nobody sees an I/O error, and in the end the backing device alone
// has everything.
func TestBackingGone(t *testing.T) {
	for _, k := range []struct {
		name string
		make func(t *testing.T) vanishing
	}{
		{"table", errorTable}, {"removed", scsiDebug},
	} {
		t.Run(k.name, func(t *testing.T) {
			if OnlyFull(t); k.name == "removed" {
				OnlyLong(t)
			}
			Limit(t, 12*time.Minute)
			backingGone(t, k.make(t), k.name)
		})
	}
}

// vanishing is a device that can be taken away, and brought back, perhaps under another name: dev says
// which it has now.
type vanishing struct {
	dev         func() string
	leave, back func()
	header      bool // it is to have one
}

// errorTable has its device-mapper table swapped for one of errors.
func errorTable(t *testing.T) vanishing {
	dev := Slice(t, "slow", 0, 256)
	name := filepath.Base(dev)
	good := Run(t, "dmsetup", "table", name)
	swap := func(table string) {
		Run(t, "dmsetup", "load", name, "--table", table)
		// Without a flush: I/O that is under way fails with the old table or the new one.
		Run(t, "dmsetup", "suspend", "--noflush", "--nolockfs", name)
		Run(t, "dmsetup", "resume", name)
	}
	return vanishing{
		dev:   func() string { return dev },
		leave: func() { swap(fmt.Sprintf("0 %d error", SizeBytes(t, dev)/512)) },
		back:  func() { swap(good) },
	}
}

// scsiDebug is a SCSI disk in memory that is removed from its host, and found again by a scan.
func scsiDebug(t *testing.T) vanishing {
	_, _ = Try(t, "modprobe", "-r", "scsi_debug")
	Modprobe(t, "sd_mod") // no udev does
	// Removed and added, it has the same data: that belongs to the host.
	Run(t, "modprobe", "scsi_debug", "dev_size_mb=256", "per_host_store=1", "delay=0", "lbpu=1")
	t.Cleanup(func() {
		Wait(t, 30*time.Second, "removal of scsi_debug", func() bool {
			_, err := Try(t, "modprobe", "-r", "scsi_debug")
			return err == nil
		})
	})
	host := Sh(t, "basename $(dirname $(grep -l scsi_debug /sys/class/scsi_host/host*/proc_name))")
	dev := func() (dev string) {
		Wait(t, 30*time.Second, "disk of "+host, func() bool {
			disks, _ := filepath.Glob("/sys/class/scsi_host/" + host + "/device/target*/*/block/*")
			if len(disks) == 1 {
				dev = "/dev/" + filepath.Base(disks[0])
			}
			_, err := os.Stat(dev)
			return dev != "" && err == nil
		})
		return dev
	}
	return vanishing{
		dev:    dev,
		leave:  func() { Sh(t, "echo 1 > /sys/block/"+filepath.Base(dev())+"/device/delete") },
		back:   func() { Sh(t, "echo - - - > /sys/class/scsi_host/"+host+"/scan") },
		header: true,
	}
}

// goneRows are the names in the table of faults.
var goneRows = map[string]string{
	"table":   "backing device: gone under a filesystem, I/O waits",
	"removed": "backing device: gone under a filesystem, returns by another path",
}

func backingGone(t *testing.T, v vanishing, name string) {
	y := Fault(t, goneRows[name])
	c := NewCache(t, Slice(t, "ssd", 0, 512))
	was := v.dev()
	flags := []string{"--mode=writeback", "--sequential-cutoff=0", "--backing-loss=hold"}
	if v.header {
		flags = append(flags, "--header")
	}
	dev := c.Attach(t, was, "data", flags...)
	Run(t, "mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", dev)
	dir := Mount(t, dev, "errors=panic")
	file := func(name string, mib int) {
		Run(t, "dd", "if=/dev/urandom", "of="+filepath.Join(dir, name), "bs=1M", fmt.Sprint("count=", mib),
			"conv=fsync")
	}
	sums := func(dir string) string {
		return Sh(t, "cd "+dir+`; for f in clean dirty late; do dd if=$f bs=1M iflag=direct status=none | sha256sum; done`)
	}
	file("clean", 16)
	Ubcache(t, "flush", "data")
	file("dirty", 8)
	Run(t, "dmesg", "-C")

	y.Tried(1)
	v.leave()
	// A miss, far behind what the filesystem has: nobody else has to find out.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	miss := exec.CommandContext(ctx, "dd", "if="+dev, "of=/dev/null", "bs=4k", "count=1", "iflag=direct",
		fmt.Sprint("skip=", (SizeBytes(t, dev)-32<<20)/4096))
	if err := miss.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- miss.Wait() }()
	Wait(t, time.Minute, "loss of the backing device", func() bool {
		return c.Device(t, "data").Presence == "holding"
	})
	file("late", 8)
	want := sums(dir)
	d := c.Device(t, "data")
	t.Logf("gone: %d bytes dirty, %q", d.DirtyBytes, d.Problem)
	if d.DirtyBytes < 16<<20 {
		t.Errorf("%d bytes are dirty", d.DirtyBytes)
	}
	Refused(t, refused, "gone", "detach", "data")
	select {
	case err := <-over:
		y.Failed("the miss did not wait: %v", err)
		t.FailNow()
	default:
	}

	v.back()
	begun := time.Now()
	Wait(t, time.Minute, "return of the backing device", func() bool {
		return c.Device(t, "data").Presence == "present"
	})
	d = c.Device(t, "data")
	t.Logf("back after %v: was %s, is %s", time.Since(begun).Round(time.Millisecond), was, d.BackingDevice)
	if now := v.dev(); d.BackingDevice != now || name == "removed" && now == was {
		t.Errorf("the backing device is %s, was %s, and is %s to the cache", now, was, d.BackingDevice)
	}
	if err := <-over; err != nil {
		y.Failed("the miss: %v", err)
	}
	Ubcache(t, "flush", "data")
	if got := sums(dir); got != want {
		y.Wrong("the files are not what they were")
	}
	if log := Run(t, "dmesg"); strings.Contains(log, filepath.Base(dev)) && strings.Contains(log, "error") {
		for line := range strings.Lines(log) {
			if strings.Contains(line, filepath.Base(dev)) {
				y.Failed("kernel: %s", line)
			}
		}
	}
	Run(t, "umount", dir)
	Run(t, "e2fsck", "-f", "-n", dev)
	Ubcache(t, "detach", "data")
	// The backing device alone.
	options := "ro"
	if v.header {
		options += ",loop,offset=1048576"
	}
	raw := Mount(t, v.dev(), options)
	if got := sums(raw); got != want {
		y.Lost("the backing device alone has other files")
	}
	Run(t, "umount", raw)
}

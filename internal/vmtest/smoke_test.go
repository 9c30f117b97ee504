//go:build vm

package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The VM itself: what every other test here takes for granted.

func TestKernelHasUblk(t *testing.T) {
	if _, err := os.Stat("/sys/module/ublk_drv"); err != nil {
		t.Error("ublk_drv is not loaded: ", err)
	}
	info, err := os.Stat("/dev/ublk-control")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("/dev/ublk-control is no character device: %s", info.Mode())
	}
	if !KernelAtLeast(t, "6.12") {
		t.Errorf("kernel %s is older than the oldest of the matrix", os.Getenv("UBVM_KERNEL"))
	}
}

func TestDisks(t *testing.T) {
	for _, d := range []struct {
		name           string
		sector, rotate int64
	}{{"ssd", 512, 0}, {"ssd4k", 4096, 0}, {"slow", 512, 1}, {"slow4k", 4096, 1}} {
		t.Run(d.name, func(t *testing.T) {
			dev := Disk(t, d.name)
			for limit, want := range map[string]int64{
				"logical_block_size": d.sector, "physical_block_size": 4096, "rotational": d.rotate,
			} {
				if got := QueueLimit(t, dev, limit); got != want {
					t.Errorf("%s is %d, not %d", limit, got, want)
				}
			}
			if QueueLimit(t, dev, "discard_max_bytes") == 0 {
				t.Error("no discard")
			}
			cache, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(dev), "queue/write_cache"))
			if err != nil || strings.TrimSpace(string(cache)) != "write back" {
				t.Errorf("write cache is %q (%v): flushes would not reach the disk", cache, err)
			}
			checkDiscard(t, dev)
		})
	}
}

// checkDiscard writes, discards and reads back: QEMU's files read as zeros then.
func checkDiscard(t *testing.T, dev string) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(block) }()
	for i := range block {
		block[i] = byte(i) | 1
	}
	if _, err := f.WriteAt(block, 1<<20); err != nil {
		t.Fatal(err)
	}
	Run(t, "blkdiscard", "-f", "-o", "1048576", "-l", "1048576", dev)
	if _, err := f.ReadAt(block, 1<<20); err != nil {
		t.Fatal(err)
	}
	for i, b := range block {
		if b != 0 {
			t.Fatalf("byte %d is %d after a discard", i, b)
		}
	}
}

// TestUnplug takes a disk away that a program has open, and brings it back.
func TestUnplug(t *testing.T) {
	Limit(t, 2*time.Minute)
	p := OpenPlug(t, "plug0")
	f := openDirect(t, p.Dev(t), unix.O_DSYNC)
	page := alignedMemory(t, 4096)
	writeAt(t, f, page, 1, 8192)
	p.Out(t)
	if _, err := f.ReadAt(page, 8192); err == nil {
		t.Error("a disk that was unplugged can be read")
	}
	dev := p.In(t)
	readBack(t, openDirect(t, dev, 0), page, 1, 8192)
	if _, err := f.ReadAt(page, 8192); err == nil {
		t.Error("the disk that has come back is the one that went")
	}
}

// TestSlowDiskIsSlow reads small blocks one after the other. The slow disk allows 120 in a second;
// even an emulated machine manages a multiple of that on the other.
func TestSlowDiskIsSlow(t *testing.T) {
	perSecond := func(name string) float64 {
		f, err := os.OpenFile(RawDisk(t, name), os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Munmap(block) }()
		const reads = 240
		start := time.Now()
		for i := range int64(reads) {
			if _, err := f.ReadAt(block, i*7919*4096%(1<<30)); err != nil {
				t.Fatal(err)
			}
		}
		return reads / time.Since(start).Seconds()
	}
	slow, ssd := perSecond("slow"), perSecond("ssd")
	t.Logf("4 KiB reads a second: slow %.0f, ssd %.0f", slow, ssd)
	if slow > 200 {
		t.Errorf("slow disk does %.0f reads a second: its throttle does not work", slow)
	}
	if ssd < 2*slow {
		t.Errorf("ssd does %.0f reads a second, slow disk %.0f", ssd, slow)
	}
}

func TestDeviceMapper(t *testing.T) {
	ram := RamDisk(t, 64)
	dev := DelayDevice(t, ram, Delays{ReadMs: 20, WriteMs: 1, FlushMs: 1})
	start := time.Now()
	Run(t, "dd", "if="+dev, "of=/dev/null", "bs=4k", "count=10", "iflag=direct")
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("10 reads took %s, expected 20 ms each", took)
	}
}

func TestFileSystems(t *testing.T) {
	dev := Disk(t, "ssd")
	for _, mkfs := range [][]string{
		{"mkfs.ext4", "-q", "-F"}, {"mkfs.xfs", "-q", "-f"}, {"mkfs.btrfs", "-q", "-f"},
	} {
		t.Run(mkfs[0], func(t *testing.T) {
			Run(t, mkfs[0], append(mkfs[1:], dev)...)
			dir := Mount(t, dev, "discard")
			if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestLVM(t *testing.T) {
	dev := Disk(t, "ssd")
	Run(t, "pvcreate", "-q", "-y", dev)
	Run(t, "vgcreate", "-q", "vgsmoke", dev)
	t.Cleanup(func() { Run(t, "vgremove", "-q", "-f", "vgsmoke") })
	Run(t, "lvcreate", "-q", "-y", "-L", "100M", "-n", "one", "vgsmoke")
	if size := SizeBytes(t, "/dev/vgsmoke/one"); size != 100<<20 {
		t.Errorf("logical volume has %d bytes", size)
	}
}

//go:build vm

package vmtest

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writeback is how these tests attach. Without a bypass all of the data goes through the cache.
var writeback = []string{"--mode=writeback", "--sequential-cutoff=0"}

// treeFiles is the size of the file tree; making it takes as long as copying it.
func treeFiles(t testing.TB) int {
	if Full(t) {
		return 2000
	}
	return 1000
}

// newTree is a file tree in memory to copy from.
func newTree(t testing.TB, files int, seed uint64) (dir string, list Tree) {
	t.Helper()
	dir = t.TempDir()
	return dir, MakeTree(t, dir, files, seed)
}

// mounted mounts a device, does something with its files, and unmounts it again.
func mounted(t testing.TB, dev string, use func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	Run(t, "mount", dev, dir)
	defer func() {
		t.Helper()
		Run(t, "umount", dir)
	}()
	use(dir)
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	Run(t, "cp", "-a", "--sparse=always", from+"/.", to)
}

// TestFileSystem copies a file tree into each filesystem, restarts the cache and compares.
func TestFileSystem(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			if fs.name != "ext4" {
				OnlyFull(t)
			}
			Limit(t, 4*time.Minute)
			c := NewCache(t, Slice(t, "ssd", 0, 512))
			dev := c.Attach(t, Slice(t, "slow", 0, 1024), "data", writeback...)
			fs.Create(t, dev)
			src, want := newTree(t, treeFiles(t), 1)
			mounted(t, dev, func(dir string) { copyTree(t, src, dir) })
			c.Stop(t)
			c.Start(t)
			dev = c.Device(t, "data").Path
			mounted(t, dev, func(dir string) { want.Compare(t, "after a restart", ListTree(t, dir)) })
			if c.Stats(t).Devices["data"].HitBlocks == 0 {
				t.Error("nothing came from the cache")
			}
			fs.Verify(t, dev)
		})
	}
}

// TestLVMOnTop makes a logical volume on the cached device.
func TestLVMOnTop(t *testing.T) {
	OnlyFull(t)
	Limit(t, 3*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 512))
	dev := c.Attach(t, Slice(t, "slow", 0, 1024), "data", writeback...)
	// LVM does not know the type of block device.
	lvm := []string{"--config", `devices { types = ["ublk",16,"blkext",16] use_devicesfile=0 }`}
	run := func(name string, args ...string) { Run(t, name, append(lvm, args...)...) }
	run("pvcreate", "-q", "-y", dev)
	run("vgcreate", "-q", "vgcached", dev)
	deactivate := func() { _, _ = Try(t, "vgchange", append(lvm, "-q", "-an", "vgcached")...) }
	t.Cleanup(deactivate)
	run("lvcreate", "-q", "-y", "-W", "n", "-L", "600M", "-n", "one", "vgcached")
	fileSystems[0].Create(t, "/dev/vgcached/one")
	src, want := newTree(t, 600, 2)
	mounted(t, "/dev/vgcached/one", func(dir string) { copyTree(t, src, dir) })
	Refused(t, 3, "vgcached-one", "stop")
	deactivate()
	c.Stop(t)
	c.Start(t)
	run("vgchange", "-q", "-ay", "vgcached")
	mounted(t, "/dev/vgcached/one", func(dir string) { want.Compare(t, "LV", ListTree(t, dir)) })
	fileSystems[0].Verify(t, "/dev/vgcached/one")
}

// TestOnDeviceMapper has SSD and backing device on dm-linear, the latter of two pieces, and
// compares what comes through the cache with what is on the backing device in the end.
func TestOnDeviceMapper(t *testing.T) {
	OnlyFull(t)
	Limit(t, 3*time.Minute)
	raw := Disk(t, "slow")
	backing := Mapper(t, "pieces", "0 1048576 linear "+raw+" 4194304\n1048576 524288 linear "+raw+" 2048\n")
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	dev := c.Attach(t, backing, "data", writeback...)
	fileSystems[0].Create(t, dev)
	src, want := newTree(t, 600, 3)
	mounted(t, dev, func(dir string) { copyTree(t, src, dir) })
	Ubcache(t, "flush", "data")
	c.Stop(t)
	fileSystems[0].Verify(t, backing)
	// Mounting would change it behind the cache's back. The subtest's end removes the snapshot.
	t.Run("alone", func(t *testing.T) {
		mounted(t, Snapshot(t, backing), func(dir string) {
			want.Compare(t, "backing device alone", ListTree(t, dir))
		})
	})
	c.Start(t)
	mounted(t, c.Device(t, "data").Path, func(dir string) {
		want.Compare(t, "through the cache", ListTree(t, dir))
	})
}

// TestPartitions makes a partition table on the cached device, and filesystems in two partitions.
func TestPartitions(t *testing.T) {
	OnlyFull(t)
	Limit(t, 3*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	dev := c.Attach(t, Slice(t, "slow", 0, 1024), "data", writeback...)
	Sh(t, "printf 'label: gpt\nsize=400M\nsize=400M\n' | sfdisk -q "+dev)
	src, want := newTree(t, 600, 4)
	parts := []string{dev + "p1", dev + "p2"}
	for _, p := range parts {
		waitForDevice(t, p)
		fileSystems[0].Create(t, p)
		mounted(t, p, func(dir string) {
			copyTree(t, src, dir)
			// Partition 1 being mounted is the whole device being in use.
			Refused(t, 3, p+" is mounted", "stop")
		})
	}
	c.Stop(t)
	c.Start(t)
	for _, p := range parts {
		waitForDevice(t, p)
		mounted(t, p, func(dir string) { want.Compare(t, p, ListTree(t, dir)) })
		fileSystems[0].Verify(t, p)
	}
}

func waitForDevice(t testing.TB, dev string) {
	t.Helper()
	Wait(t, 10*time.Second, dev, func() bool {
		_, err := os.Stat(filepath.Clean(dev))
		return err == nil
	})
}

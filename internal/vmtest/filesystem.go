//go:build vm

package vmtest

import "testing"

// FS says how a filesystem is made and checked.
type FS struct {
	name        string
	make, check []string
}

var fileSystems = []FS{
	{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-fn"}},
	{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
	{"btrfs", []string{"mkfs.btrfs", "-q", "-f"}, []string{"btrfs", "check", "--readonly"}},
}

// FileSystem is ext4, xfs or btrfs.
func FileSystem(name string) FS {
	for _, fs := range fileSystems {
		if fs.name == name {
			return fs
		}
	}
	panic("no filesystem " + name)
}

// Create makes the filesystem.
func (fs FS) Create(t testing.TB, dev string) {
	t.Helper()
	Run(t, fs.make[0], append(fs.make[1:], dev)...)
}

// Verify checks it without changing anything; it must not be mounted.
func (fs FS) Verify(t testing.TB, dev string) {
	t.Helper()
	Run(t, fs.check[0], append(fs.check[1:], dev)...)
}

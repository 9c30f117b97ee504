// Package loopmount mounts filesystems on loop devices, for tests.
package loopmount

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Mount is an ext4 filesystem on a loop device, or on a partition of one.
type Mount struct {
	Image  string // the image file
	At     string // the mount point
	Loop   string // the loop device
	Source string // what is mounted: the loop device or the partition

	t *testing.T
}

// New makes an image with a filesystem, on a partition of it if so wished, and mounts it until the end
// of the test.
func New(t *testing.T, partition bool) *Mount {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	m := &Mount{t: t, Image: filepath.Join(dir, "image"), At: filepath.Join(dir, "mnt")}
	m.Run("truncate", "-s", "64M", m.Image)
	m.Loop = strings.TrimSpace(m.Run("losetup", "-f", "--show", m.Image))
	t.Cleanup(func() { m.Run("losetup", "-d", m.Loop) })
	m.Source = m.Loop
	if partition {
		m.Source = m.partition()
	}
	m.Run("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal,inline_data", m.Source)
	if err := os.Mkdir(m.At, 0o755); err != nil {
		t.Fatal(err)
	}
	m.Run("mount", m.Source, m.At)
	t.Cleanup(func() { m.Run("umount", m.At) })
	return m
}

// partition makes a partition that begins at 1 MiB, and its device file, where no udev does.
func (m *Mount) partition() string {
	m.t.Helper()
	m.Run("addpart", m.Loop, "1", "2048", "122880")
	m.t.Cleanup(func() { m.Run("delpart", m.Loop, "1") })
	name := filepath.Base(m.Loop)
	text, err := os.ReadFile("/sys/block/" + name + "/" + name + "p1/dev")
	if err != nil {
		m.t.Fatal(err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		m.t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(m.Image), "partition")
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// Run runs a program, which must not fail.
func (m *Mount) Run(name string, args ...string) string {
	m.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Path is that of a file on the filesystem.
func (m *Mount) Path(name string) string { return filepath.Join(m.At, name) }

// Write makes a file of n blocks, each full of text, on the device when it returns.
func (m *Mount) Write(name, text string, n int) {
	m.t.Helper()
	f, err := os.Create(m.Path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	block := bytes.Repeat([]byte(text), 4096)[:4096]
	if _, err := f.Write(bytes.Repeat(block, n)); err != nil {
		m.t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		m.t.Fatal(err)
	}
}

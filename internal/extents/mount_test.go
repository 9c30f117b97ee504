package extents

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted is an ext4 filesystem on a loop device.
type mounted struct {
	t      *testing.T
	image  string
	at     string
	target Device // the loop device
}

// mount makes an image with a filesystem, on a partition of it if so wished, and mounts it.
func mount(t *testing.T, partition bool) *mounted {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	m := &mounted{t: t, image: filepath.Join(dir, "image"), at: filepath.Join(dir, "mnt")}
	m.run("truncate", "-s", "64M", m.image)
	loop := strings.TrimSpace(m.run("losetup", "-f", "--show", m.image))
	t.Cleanup(func() { m.run("losetup", "-d", loop) })
	m.target = device(t, loop)
	what := loop
	if partition {
		what = m.partition(loop)
	}
	m.run("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal,inline_data", what)
	if err := os.Mkdir(m.at, 0o755); err != nil {
		t.Fatal(err)
	}
	m.run("mount", what, m.at)
	t.Cleanup(func() { m.run("umount", m.at) })
	return m
}

// partition makes a partition that begins at 1 MiB, and its device file, where no udev does.
func (m *mounted) partition(loop string) string {
	m.t.Helper()
	m.run("addpart", loop, "1", "2048", "122880")
	m.t.Cleanup(func() { m.run("delpart", loop, "1") })
	name := filepath.Base(loop)
	dev, err := parseDevice(sysText("/sys/block/"+name+"/"+name+"p1", "dev"))
	if err != nil {
		m.t.Fatalf("the kernel has not found the partition: %v", err)
	}
	path := filepath.Join(filepath.Dir(m.image), "partition")
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(dev.Major, dev.Minor))); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func device(t *testing.T, path string) Device {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return DeviceOf(st.Rdev)
}

func (m *mounted) run(name string, args ...string) string {
	m.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (m *mounted) shell(line string) string { m.t.Helper(); return m.run("sh", "-c", line) }

func (m *mounted) path(name string) string { return filepath.Join(m.at, name) }

// write makes a file of n blocks, each full of text, on the device when it returns.
func (m *mounted) write(name, text string, n int) {
	m.t.Helper()
	f, err := os.Create(m.path(name))
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

// onDevice counts the blocks of the image that are full of text at the places of an update.
func (m *mounted) onDevice(u Update, text string) (blocks, others int) {
	m.t.Helper()
	m.run("sync")
	f, err := os.Open(m.image)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte(text), 4096)[:4096]
	b := make([]byte, 4096)
	for _, r := range u.Ranges {
		for off := r.Off; off < r.End; off += 4096 {
			if _, err := f.ReadAt(b, off); err != nil {
				m.t.Fatal(err)
			}
			if bytes.Equal(b, want) {
				blocks++
			} else {
				others++
			}
		}
	}
	return blocks, others
}

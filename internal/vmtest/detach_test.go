//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDetach adopts a filesystem in place, makes much of it dirty, and takes the cache away under
// load: interrupted, cancelled, resumed after a restart and a kill. In the end the backing device
// alone has everything.
func TestDetach(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	backing := Slice(t, "slow", 0, 512)
	fileSystems[0].Create(t, backing)
	src, first := newTree(t, 300, 6)
	mounted(t, backing, func(dir string) { copyTree(t, src, dir) })

	c := NewCache(t, Slice(t, "ssd", 0, 256))
	// Nothing is written back before the detach.
	dev := c.Attach(t, backing, "data", "--mode=writeback", "--sequential-cutoff=0",
		"--dirty-target=60", "--writeback-delay=1h")
	second, more := newTree(t, 300, 7)
	dir := t.TempDir()
	Run(t, "mount", dev, dir)
	t.Cleanup(func() { _, _ = Try(t, "umount", "-q", dir) })
	first.Compare(t, "adopted in place", ListTree(t, dir))
	Run(t, "mkdir", dir+"/more")
	copyTree(t, second, dir+"/more")
	Run(t, "sync", "-f", dir)
	dirty := c.Device(t, "data").DirtyBytes
	if dirty < 4<<20 {
		t.Fatalf("only %d bytes are dirty", dirty)
	}
	scatter(t, dir) // at 120 requests a second the writeback of this takes its time

	t.Log(interrupted(t))
	if d := c.Device(t, "data"); d.State != "detaching" {
		t.Errorf("state is %q after an interrupted detach", d.State)
	}
	Ubcache(t, "detach", "data", "--cancel")
	if d := c.Device(t, "data"); d.State == "detaching" || d.Mode != "writeback" {
		t.Errorf("state is %q, mode %s after --cancel", d.State, d.Mode)
	}
	Run(t, "cp", "-a", dir+"/more", dir+"/again")
	Ubcache(t, "detach", "data", "--no-wait")
	c.Kill(t)
	c.Start(t)
	if d := c.Device(t, "data"); d.State != "detaching" {
		t.Errorf("state is %q after a restart: the detach was forgotten", d.State)
	}
	Run(t, "cp", "-a", dir+"/more", dir+"/third") // it goes on working
	Run(t, "umount", dir)
	Ubcache(t, "detach", "data")
	if n := len(c.Status(t).Devices); n != 0 {
		t.Errorf("%d devices are left after detach", n)
	}
	fileSystems[0].Verify(t, backing)
	mounted(t, backing, func(dir string) {
		for _, sub := range []string{"/more", "/again", "/third"} {
			more.Compare(t, "backing device alone"+sub, ListTree(t, dir+sub))
		}
		Run(t, "rm", "-r", dir+"/more", dir+"/again", dir+"/third", dir+"/scattered")
		first.Compare(t, "backing device alone", ListTree(t, dir))
	})
}

// TestDetachFlushes writes without a flush past the cache and detaches: nobody is left then who could flush the
// disk, so the detach has to.
func TestDetachFlushes(t *testing.T) {
	OnlyFull(t)
	Limit(t, time.Minute)
	backing := Slice(t, "slow", 0, 64)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	for _, mode := range []string{"writethrough", "writearound", "none"} {
		dev := c.Attach(t, backing, "data", "--mode="+mode)
		Run(t, "dd", "if=/dev/zero", "of="+dev, "bs=64k", "count=16", "oflag=direct")
		before := flushes(t, RawDisk(t, "slow"))
		Ubcache(t, "detach", "data")
		if flushes(t, RawDisk(t, "slow")) == before {
			t.Errorf("%s: the disk got no flush after the writes that the cache has acknowledged", mode)
		}
	}
}

// flushes is the number of flushes that a disk has done (Documentation/block/stat.rst).
func flushes(t *testing.T, disk string) int {
	t.Helper()
	b, err := os.ReadFile("/sys/class/block/" + filepath.Base(disk) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(b))[15])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// scatter makes dirty blocks that are not neighbours.
func scatter(t *testing.T, dir string) {
	t.Helper()
	if _, err := TryFio(dir+"/scattered", time.Minute, "rw=randwrite", "bs=4k", "size=64m",
		"io_size=6m", "iodepth=16", "randseed=1"); err != nil {
		t.Fatal(err)
	}
}

// interrupted begins a detach, waits for its progress and ends the command with Ctrl-C.
func interrupted(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ubcache", "detach", "data")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	Wait(t, 30*time.Second, "progress of detach", func() bool { return strings.Contains(out.String(), "left") })
	_ = cmd.Process.Signal(unix.SIGINT)
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("interrupted detach: %v\n%s", err, out.String())
	}
	return out.String()
}

// TestHeader attaches with a header: the backing device alone cannot be mounted, and shows nothing
// of the filesystem that is in the cached device; cache and data survive restarts.
func TestHeader(t *testing.T) {
	OnlyFull(t)
	Limit(t, 2*time.Minute)
	backing := Slice(t, "slow", 0, 256)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, backing, "data", "--header", "--mode=writeback", "--sequential-cutoff=0")
	const reserved = 1 << 20
	if got, want := SizeBytes(t, dev), SizeBytes(t, backing)-reserved; got != want {
		t.Errorf("cached device has %d bytes, expected %d", got, want)
	}
	fileSystems[0].Create(t, dev)
	src, want := newTree(t, 200, 8)
	mounted(t, dev, func(dir string) { copyTree(t, src, dir) })
	Ubcache(t, "flush", "data")
	c.Stop(t)
	if out, err := Try(t, "mount", "-o", "ro", backing, t.TempDir()); err == nil {
		t.Errorf("the backing device alone was mounted: %s", out)
	}
	c.Start(t)
	dev = c.Device(t, "data").Path
	mounted(t, dev, func(dir string) { want.Compare(t, "after a restart", ListTree(t, dir)) })
	whole := readAll(t, dev)
	Ubcache(t, "detach", "data")
	if raw := readAll(t, backing); !bytes.Equal(whole, raw[reserved:]) {
		t.Error("after detach the data behind the header differs: ", firstDifference(whole, raw[reserved:]))
	}
	// blkid fails if it finds nothing at all.
	if out, _ := Try(t, "blkid", "-p", "-o", "export", backing); strings.Contains(out, "ext4") {
		t.Error("blkid sees a filesystem on a device with a header")
	}
}

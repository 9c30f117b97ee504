//go:build vm

package vmtest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

const envSharedChild = "UBCACHE_TEST_SHARED_CHILD"

// TestSharedChild is the process that other tests kill: it says when it has done something.
func TestSharedChild(t *testing.T) {
	path := os.Getenv(envSharedChild)
	if path == "" {
		t.Skip("for other tests to execute")
	}
	l := startSharedLoad(t, path)
	l.goesOn(t)
	_, _ = os.Stdout.WriteString("busy\n")
	l.wg.Wait()
}

// sharedChild starts a client in a process of its own, and waits until it is busy.
func sharedChild(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestSharedChild$")
	child.Env = append(os.Environ(), envSharedChild+"="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if child.ProcessState == nil {
			_ = child.Process.Kill()
			_ = child.Wait()
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "busy\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return child
}

// TestSharedClientKilled kills clients in the midst of their I/O: with a daemon; while there is none,
// where the client cannot end before the next daemon has answered; and between two daemons. What they
// had registered is given back each time, and another client is served all along.
func TestSharedClientKilled(t *testing.T) {
	OnlyLong(t)
	NeedKernel(t, "7.1")
	Limit(t, 4*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", writeback...)
	other := c.Attach(t, Slice(t, "slow", 256, 128), "other", writeback...)
	load := startSharedLoad(t, other)
	kill := func(child *exec.Cmd) {
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		child := sharedChild(t, dev)
		c.sharesMemory(t, "data", 1)
		kill(child)
		_ = child.Wait()
		c.sharesMemory(t, "data", 0)
	}
	child := sharedChild(t, dev)
	c.Kill(t)
	kill(child)
	c.Start(t)
	_ = child.Wait()
	c.sharesMemory(t, "data", 0)
	// One that has ended in order while nobody saw it.
	idle, err := client.Open(dev, client.Options{Channel: client.Shared})
	if err != nil {
		t.Fatal(err)
	}
	c.sharesMemory(t, "data", 1)
	c.Kill(t)
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
	c.Start(t)
	c.sharesMemory(t, "data", 0)
	load.goesOn(t)
	load.stop(t)
	c.sharesMemory(t, "other", 0)
	c.nothingShared(t, "data")
}

// TestSharedMirror: a mirror above two cached devices. A write is handled by both, a read by one, and
// while one of them refuses, nobody says that all was handled.
func TestSharedMirror(t *testing.T) {
	NeedKernel(t, "7.1")
	Limit(t, 3*time.Minute)
	Modprobe(t, "raid1")
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	one := c.Attach(t, Slice(t, "slow", 0, 128), "one", writeback...)
	two := c.Attach(t, Slice(t, "slow", 256, 128), "two", writeback...)
	Run(t, "mdadm", "--create", "/dev/md8", "--run", "--quiet", "--assume-clean", "--metadata=1.2",
		"--level=1", "--raid-devices=2", one, two)
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			Run(t, "mdadm", "--stop", "--quiet", "/dev/md8")
		}
	}
	t.Cleanup(stop)
	d, err := client.Open("/dev/md8", client.Options{Channel: client.Shared})
	if err != nil {
		t.Fatal(err)
	}
	buf, err := d.Alloc(512 << 10)
	if err != nil {
		t.Fatal(err)
	}
	check := func(text string, id attrs.ID, write bool, status attrs.Status, devices int) {
		t.Helper()
		s, err := attrs.ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		do := d.ReadAt
		if write {
			do = d.WriteAt
		}
		_, r, err := do(buf, 8<<20, &s)
		if got := r.For(id); err != nil || got.Status != status || len(r.Devices()) != devices {
			t.Errorf("%s, write %v: %v by %v, error %v; want %v by %d", text, write, got, r.Devices(),
				err, status, devices)
		}
	}
	check("hint=cache", attrs.IDHint, true, attrs.Handled, 2)
	check("hint=cache", attrs.IDHint, false, attrs.Handled, 1)
	check("checksum=crc32c", attrs.IDChecksum, true, attrs.Handled, 2)
	// Also with one half served by the next daemon's first requests.
	c.Kill(t)
	c.Start(t)
	check("hint=cache", attrs.IDHint, true, attrs.Handled, 2)
	// One half that does not handle it.
	c.Set(t, "two", "mode=none")
	check("hint=cache", attrs.IDHint, true, attrs.Ignored, 2)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	stop()
	for _, name := range []string{"one", "two"} {
		c.sharesMemory(t, name, 0)
	}
	if files, _ := filepath.Glob(runtimeDir + "/*.shared"); len(files) != 2 {
		t.Errorf("records %v, want two", files)
	}
}

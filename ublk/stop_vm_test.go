//go:build vm

package ublk_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// reader reads the first block again and again until an error ends it.
func reader(t testing.TB, path string, n int) (stop func()) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer unix.Close(fd)
			buf, err := ublk.NewArena(4096)
			if err != nil {
				t.Error(err)
				return
			}
			defer buf.Free()
			for {
				// A removed disk has size 0.
				if n, err := unix.Pread(fd, buf.Bytes(), 0); err != nil || n == 0 {
					return
				}
			}
		})
	}
	return wg.Wait
}

func TestStopUnderLoad(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		for _, r := range []ublk.Recovery{ublk.RecoveryNone, ublk.RecoveryReissue} {
			o := testOptions(mode, testDiskSize)
			o.Recovery = r
			disk := newDisk(t, testDiskSize)
			d := serve(t, o, disk.factory)
			wait := reader(t, d.Path(), 8)
			waitFor(t, "reads", func() bool { return disk.reads.Load() > 100 })
			if err := d.Stop(timeout(t, 20*time.Second)); err != nil {
				t.Fatal(err)
			}
			wait()
			for _, q := range disk.queue {
				if !q.stopped.Load() {
					t.Error("Handler.Stop was not called")
				}
			}
		}
	})
}

// The handler has requests for a while when the device is asked to stop.
func TestStopWithHeldRequests(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		disk := newDisk(t, testDiskSize)
		d := serve(t, testOptions(mode, testDiskSize), disk.factory)
		wait := reader(t, d.Path(), 4)
		for _, q := range disk.queue {
			q.hold.Store(true)
		}
		held := func() (n int64) {
			for _, q := range disk.queue {
				n += q.holding.Load()
			}
			return n
		}
		waitFor(t, "held requests", func() bool { return held() >= 4 })
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		if err := d.Stop(ctx); !errors.Is(err, ublk.ErrLost) {
			t.Fatalf("Stop while requests are held: %v", err)
		}
		for i, q := range disk.queue {
			q.hold.Store(false)
			d.Queue(i).Wake()
		}
		if err := d.Stop(timeout(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		wait()
	})
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestStopWhileOpen(t *testing.T) {
	disk := newDisk(t, testDiskSize)
	d := serve(t, testOptions(ublk.Copy, testDiskSize), disk.factory)
	fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.TryStop(timeout(t, 20*time.Second)); !errors.Is(err, ublk.ErrBusy) {
		t.Fatalf("TryStop while open: %v, want ErrBusy", err)
	}
	verify(t, d.Path(), testDiskSize, 10)
	if err := d.Delete(timeout(t, time.Second)); !errors.Is(err, ublk.ErrBusy) {
		t.Fatalf("Delete while open: %v, want ErrBusy", err)
	}
	buf, err := ublk.NewArena(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	if n, err := unix.Pread(fd, buf.Bytes(), 0); err == nil && n > 0 {
		t.Error("a read of a deleted device succeeded")
	}
	_ = unix.Close(fd)
	waitFor(t, "the device to go", func() bool {
		_, err := ublk.Lookup(d.ID())
		return errors.Is(err, ublk.ErrNotFound)
	})
}

func TestTryStopUnused(t *testing.T) {
	d := serve(t, testOptions(ublk.Copy, testDiskSize), newDisk(t, testDiskSize).factory)
	// The partition scan has it open for a moment.
	waitFor(t, "TryStop", func() bool {
		err := d.TryStop(timeout(t, 20*time.Second))
		if err != nil && !errors.Is(err, ublk.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil
	})
	if _, err := os.Stat(d.Path()); err == nil {
		t.Error("the disk is still there")
	}
}

func TestStopWhileMounted(t *testing.T) {
	disk := newDisk(t, testDiskSize)
	d := serve(t, testOptions(ublk.Copy, testDiskSize), disk.factory)
	run(t, "mke2fs", "-q", "-t", "ext4", d.Path())
	dir := t.TempDir()
	run(t, "mount", d.Path(), dir)
	if err := os.WriteFile(dir+"/file", make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.TryStop(timeout(t, 20*time.Second)); !errors.Is(err, ublk.ErrBusy) {
		t.Errorf("TryStop while mounted: %v, want ErrBusy", err)
	}
	if err := d.Delete(timeout(t, time.Second)); !errors.Is(err, ublk.ErrBusy) {
		t.Errorf("Delete while mounted: %v, want ErrBusy", err)
	}
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		t.Errorf("umount: %v: %s", err, out)
	}
	waitFor(t, "the device to go", func() bool {
		_, err := ublk.Lookup(d.ID())
		return errors.Is(err, ublk.ErrNotFound)
	})
}

// Somebody else, with a command line, stops and deletes the device.
func TestDeleteFromOutside(t *testing.T) {
	disk := newDisk(t, testDiskSize)
	d, err := ublk.Create(testOptions(ublk.Copy, testDiskSize))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(disk.factory); err != nil {
		t.Fatal(err)
	}
	wait := reader(t, d.Path(), 4)
	waitFor(t, "reads", func() bool { return disk.reads.Load() > 100 })
	// The readers close their descriptors when their reads fail.
	if err := ublk.DeleteID(timeout(t, 20*time.Second), d.ID()); err != nil {
		t.Fatal(err)
	}
	wait()
	select {
	case <-d.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the queues did not end")
	}
	if err := d.Err(); err != nil {
		t.Error(err)
	}
	if err := d.Delete(timeout(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestDeleteWithoutStart(t *testing.T) {
	d, err := ublk.Create(testOptions(ublk.Copy, testDiskSize))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(timeout(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(timeout(t, 20*time.Second)); err != nil {
		t.Fatalf("second Delete: %v", err)
	}
	if err := d.Start(newDisk(t, testDiskSize).factory); err == nil {
		t.Error("Start after Delete succeeded")
	}
}

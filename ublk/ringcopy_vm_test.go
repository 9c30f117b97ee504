//go:build vm

package ublk_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// TestRingCopyFails takes the queues' memory away: requests whose data cannot be copied fail, and the
// tags go on being used.
func TestRingCopyFails(t *testing.T) {
	need(t, modeFeatures(ublk.RingCopy))
	o := testOptions(ublk.RingCopy, testDiskSize)
	o.Queues, o.Depth = 1, 4
	var told atomic.Int64
	o.OnError = func(err error) {
		if !strings.Contains(err.Error(), "copy data of") {
			t.Error(err)
		}
		told.Add(1)
	}
	d := serve(t, o, func(int) (ublk.Handler, error) {
		return ublk.HandlerFunc(func(q *ublk.Queue, r *ublk.Request) { q.CompleteOK(r.Tag) }), nil
	})
	fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf, err := ublk.NewArena(128 << 10)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	serves := func() {
		t.Helper()
		for range 20 {
			if _, err := unix.Pread(fd, buf.Slice(0, 64<<10), 0); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Pwrite(fd, buf.Slice(0, 4096), 8192); err != nil {
				t.Fatal(err)
			}
		}
	}
	serves()
	if err := ublk.TruncateMemory(d.Queue(0), 0); err != nil {
		t.Fatal(err)
	}
	// A write past the end of the file makes it longer.
	for range 20 {
		if _, err := unix.Pread(fd, buf.Slice(0, 64<<10), 0); !errors.Is(err, unix.EIO) {
			t.Fatalf("read: %v, want EIO", err)
		}
	}
	if told.Load() < 20 {
		t.Errorf("told of %d failed copies, want 20", told.Load())
	}
	if err := ublk.TruncateMemory(d.Queue(0), int64(o.Depth*o.MaxIOBytes)); err != nil {
		t.Fatal(err)
	}
	serves()
}

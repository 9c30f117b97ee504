package daemon

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	api "ubcache/attrs/client"
	"ubcache/internal/uring"
)

// noMemory refuses the driver memory of its own until the test takes that back.
func noMemory(t *testing.T, on bool) {
	uring.NoMemory.Store(on)
	t.Cleanup(func() { uring.NoMemory.Store(false) })
}

// TestNoMemoryForAStart: a start that gets no memory fails, leaves nothing behind, and can be repeated.
func TestNoMemoryForAStart(t *testing.T) {
	b := newDirectBench(t, directOptions{inMemory: true})
	d := b.open(api.Options{})
	must(t, b.writeAt(d, 0, 1, 64<<10))
	b.flushed(d)
	closeDevice(t, d)
	must(t, b.Stop(context.Background(), true))
	open := func() int {
		t.Helper()
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(fds)
	}
	before := open()
	noMemory(t, true)
	for range 3 {
		if err := b.startNow(0); !errors.Is(err, unix.ENOMEM) {
			t.Fatalf("start without memory: %v", err)
		}
	}
	if n := open(); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	noMemory(t, false)
	b.again()
	d = b.open(api.Options{})
	b.wantAt(d, 0, 1, 64<<10)
	closeDevice(t, d)
}

// TestNoMemoryForAClient: what a client asks for fails if there is no memory for its data, all else goes on, and so does the
// client when there is some. Writes that cannot be gathered for want of memory go alone.
func TestNoMemoryForAClient(t *testing.T) {
	b := newDirectBench(t, directOptions{inMemory: true})
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	noMemory(t, true)
	for _, n := range []int{4096, directSmall + 4096} {
		buf, err := d.Alloc(n)
		must(t, err)
		if _, _, err := d.ReadAt(buf, 0, nil); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("read of %d bytes without memory: %v", n, err)
		}
		if _, _, err := d.WriteAt(buf, 0, nil); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("write of %d bytes without memory: %v", n, err)
		}
	}
	b.flushed(d)
	_, err := d.Discard(1<<20, 4096, nil)
	must(t, err)
	noMemory(t, false)
	b.wantAt(d, 0, 0, 256<<10)
	noMemory(t, true) // now there are buffers, and nothing to gather writes in
	other := b.open(api.Options{Device: "disk1"})
	defer closeDevice(t, other)
	for _, d := range []*api.Device{d, other} {
		must(t, b.writeAt(d, 0, 1, 256<<10))
		b.flushed(d)
		b.wantAt(d, 0, 1, 256<<10)
	}
}

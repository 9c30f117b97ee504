//go:build vm

package vmtest

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFlush counts the flushes that fsync and O_DSYNC cause: they reach the cache, and plain
// writes do not pretend to be more than they are.
func TestFlush(t *testing.T) {
	OnlyFull(t)
	for _, mode := range []string{"writeback", "writethrough", "writearound"} {
		t.Run(mode, func(t *testing.T) {
			Limit(t, 2*time.Minute)
			c := NewCache(t, Slice(t, "ssd", 0, 128))
			dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", "--mode="+mode)
			flushes := func() int64 { return c.Stats(t).Devices["data"].Flushes }
			page := alignedMemory(t, 4096)

			f := openDirect(t, dev, 0)
			before := flushes()
			for i := range int64(20) {
				writeAt(t, f, page, i, i*8192)
			}
			if n := flushes() - before; n != 0 {
				t.Errorf("%d flushes for plain writes", n)
			}
			for range 5 {
				writeAt(t, f, page, 100, 0)
				if err := unix.Fdatasync(int(f.Fd())); err != nil {
					t.Fatal(err)
				}
			}
			if n := flushes() - before; n != 5 {
				t.Errorf("%d flushes for five fdatasync", n)
			}
			// To a block device with FUA, O_DSYNC is one write with FUA and one flush, both the
			// kernel's doing. Without FUA each write would cause two flushes.
			if QueueLimit(t, dev, "fua") != 1 {
				t.Error("the device has no FUA")
			}
			s := openDirect(t, dev, unix.O_DSYNC)
			before = flushes()
			for i := range int64(20) {
				writeAt(t, s, page, 200+i, 1<<20+i*4096)
			}
			if n := flushes() - before; n != 20 {
				t.Errorf("%d flushes for 20 writes with O_DSYNC", n)
			}
			// It is durable: a power cut is another test's, but kill -9 is a start.
			c.Kill(t)
			c.Start(t)
			for i := range int64(20) {
				readBack(t, f, page, 200+i, 1<<20+i*4096)
			}
		})
	}
}

func openDirect(t testing.TB, dev string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func writeAt(t testing.TB, f *os.File, page []byte, seed, off int64) {
	t.Helper()
	Fill(page, uint64(seed))
	if _, err := f.WriteAt(page, off); err != nil {
		t.Fatal(err)
	}
}

func readBack(t testing.TB, f *os.File, page []byte, seed, off int64) {
	t.Helper()
	want := make([]byte, len(page))
	Fill(want, uint64(seed))
	if _, err := f.ReadAt(page, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(page, want) {
		t.Errorf("byte %d: not what was written", off)
	}
}

// TestDiscard discards and zeroes through the cache, on backing devices that can discard and
// that cannot, of both sector sizes.
func TestDiscard(t *testing.T) {
	OnlyFull(t)
	for _, d := range []struct {
		name, disk string
		discard    bool
	}{{"discard-512", "ssd", true}, {"discard-4k", "ssd4k", true}, {"none-512", "ssd", false}} {
		t.Run(d.name, func(t *testing.T) {
			Limit(t, 2*time.Minute)
			backing := Slice(t, d.disk, 1024, 256)
			if !d.discard {
				if err := os.WriteFile(QueueFile(t, backing, "discard_max_bytes"), []byte("0"), 0); err != nil {
					t.Fatal(err)
				}
			}
			c := NewCache(t, Slice(t, d.disk, 0, 128))
			dev := c.Attach(t, backing, "data", writeback...)
			if has := QueueLimit(t, dev, "discard_max_bytes") > 0; has != d.discard {
				t.Errorf("cached device discards: %t, backing device: %t", has, d.discard)
			}
			checkZeroing(t, c, dev)
			if d.discard {
				checkTrim(t, c, dev)
			}
		})
	}
}

// checkZeroing zeroes parts of what was written, cached and not, at borders that are no cache
// block's where the sectors allow it; zeroes are read, and all around is as it was, also by the
// next daemon.
func checkZeroing(t *testing.T, c *Cache, dev string) {
	t.Helper()
	const size = 8 << 20
	f := openDirect(t, dev, 0)
	all := alignedMemory(t, size)
	Fill(all, 9)
	if _, err := f.WriteAt(all, 0); err != nil {
		t.Fatal(err)
	}
	sector := QueueLimit(t, dev, "logical_block_size")
	for i, r := range []struct{ off, len int64 }{
		{1 << 20, 64 << 10}, {2<<20 + sector, 5 * sector}, {3<<20 - sector, 1<<20 + 3*sector},
	} {
		if i == 2 {
			Ubcache(t, "flush", "data") // so that this one is clean
		}
		Run(t, "blkdiscard", "-z", "-f", "-o", fmt.Sprint(r.off), "-l", fmt.Sprint(r.len), dev)
		clear(all[r.off : r.off+r.len])
	}
	want := bytes.Clone(all)
	for _, what := range []string{"at once", "after a restart"} {
		if _, err := f.ReadAt(all, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(all, want) {
			t.Errorf("%s: after zeroing: %s", what, firstDifference(want, all))
		}
		c.Kill(t)
		c.Start(t)
	}
}

// checkTrim discards all, and then what a filesystem does not use.
func checkTrim(t *testing.T, c *Cache, dev string) {
	t.Helper()
	before := c.Stats(t).Devices["data"].Discards
	Run(t, "blkdiscard", "-f", dev)
	if c.Stats(t).Devices["data"].Discards == before {
		t.Error("blkdiscard did not reach the cache")
	}
	if d := c.Device(t, "data"); d.CachedBytes != 0 || d.DirtyBytes != 0 {
		t.Errorf("after a discard of everything %d bytes are cached, %d dirty", d.CachedBytes, d.DirtyBytes)
	}
	fileSystems[0].Create(t, dev)
	src, want := newTree(t, 100, 10)
	mounted(t, dev, func(dir string) {
		copyTree(t, src, dir)
		Sh(t, "dd if=/dev/urandom of="+dir+"/gone bs=1M count=40 conv=fsync status=none; rm "+dir+"/gone; sync -f "+dir)
		cached := c.Device(t, "data").CachedBytes
		Run(t, "fstrim", dir)
		if now := c.Device(t, "data").CachedBytes; cached-now < 30<<20 {
			t.Errorf("fstrim of a removed file of 40 MiB left %d of %d cached bytes", now, cached)
		}
		want.Compare(t, "after fstrim", ListTree(t, dir))
	})
	fileSystems[0].Verify(t, dev)
}

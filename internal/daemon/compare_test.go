package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	api "ubcache/attrs/client"
	"ubcache/internal/control"
)

// crashedBench has a cache that was killed. Of disk0 a run of bytes is clean in it; with dirty data the first block is dirty.
func crashedBench(t *testing.T, noChecksums, dirty bool, off int64, n int) *oldBench {
	t.Helper()
	b := &oldBench{directBench: newDirectBench(t, directOptions{noChecksums: noChecksums})}
	b.ssd = filepath.Join(b.dir, "ssd")
	_, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: map[string]string{"writeback-delay": "1h"}}, nil)
	must(t, err)
	d := b.open(api.Options{})
	must(t, b.writeAt(d, off, 1, n))
	b.flushed(d)
	b.drain()
	if dirty {
		must(t, b.writeAt(d, 0, 2, 4096))
		b.flushed(d)
	}
	closeDevice(t, d)
	b.crash()
	return b
}

// TestRawUseAfterCrash: a disk that was used raw after a crash is noticed by what is clean in the cache, wherever that is, also
// without data checksums, and also if it comes late. One that was not is warm.
func TestRawUseAfterCrash(t *testing.T) {
	for _, noChecksums := range []bool{true, false} {
		for _, off := range []int64{0, 1 << 20, 512 << 10, 8 << 20} { // the third is no place that Samples looks at
			for _, dirty := range []bool{false, true} {
				for _, late := range []bool{false, true} {
					if dirty && off == 0 || late && off < 8<<20 {
						continue
					}
					t.Run(fmt.Sprintf("no checksums %v, at %d, dirty %v, late %v", noChecksums, off, dirty, late), func(t *testing.T) {
						b := crashedBench(t, noChecksums, dirty, off, 4096)
						testRawUse(t, b, off, dirty, late)
					})
				}
			}
		}
	}
}

func testRawUse(t *testing.T, b *oldBench, off int64, dirty, late bool) {
	disk := filepath.Join(b.dir, "disk0")
	start := func() error {
		if !late {
			return b.start(Options{})
		}
		must(t, os.Rename(disk, disk+".away"))
		must(t, b.start(Options{}))
		must(t, os.Rename(disk+".away", disk))
		return b.reopenLate("disk0")
	}
	must(t, start())
	cached := b.Status().Devices[0].CachedBytes
	if cached == 0 {
		t.Error("cold, and nobody has used it")
	}
	b.crash()
	writeFile(t, disk, off, 9, 4096)
	err := start()
	if dirty {
		if !late {
			wantRefused(t, err, "disk0 was changed without the cache (1 of 1 blocks compared", "--drop disk0")
			err = b.start(Options{Keep: []string{"disk0"}})
			must(t, err)
		} else if err == nil {
			t.Error("not refused")
		}
		if n := b.Status().Devices[0].CachedBytes; n != cached {
			t.Errorf("%d bytes are kept of %d", n, cached)
		}
		return
	}
	must(t, err)
	if n := b.Status().Devices[0].CachedBytes; n != 0 {
		t.Errorf("%d bytes are cached", n)
	}
	d := b.open(api.Options{})
	b.wantAt(d, off, 9, 4096)
	closeDevice(t, d)
}

// TestIncomparableIsDropped: where a crash leaves nothing that could be compared, what is cached may be stale.
func TestIncomparableIsDropped(t *testing.T) {
	for _, keep := range []bool{false, true} {
		b := crashedBench(t, true, false, 8<<20, 512) // not one whole block
		writeFile(t, filepath.Join(b.dir, "disk0"), 8<<20, 9, 512)
		o := Options{}
		if keep {
			o.Keep = []string{"disk0"}
		}
		must(t, b.start(o))
		if n := b.Status().Devices[0].CachedBytes; (n != 0) != keep {
			t.Errorf("keep %v: %d bytes are cached", keep, n)
		}
		if !keep {
			d := b.open(api.Options{})
			b.wantAt(d, 8<<20, 9, 512)
			closeDevice(t, d)
		}
	}
}

// TestBadSampleSaysNothing: a clean block that the SSD returns wrongly, of a cache with data checksums, is no change of the disk.
func TestBadSampleSaysNothing(t *testing.T) {
	b := crashedBench(t, false, true, 512<<10, 8192)
	must(t, b.start(Options{}))
	at, ok := b.cache.Locate(1, 512<<10)
	if !ok {
		t.Fatal("not cached")
	}
	b.crash()
	writeFile(t, b.ssd, at.Off, 7, 4096)
	must(t, b.start(Options{}))
	d := b.open(api.Options{})
	b.wantAt(d, 0, 2, 4096)
	b.wantAt(d, 512<<10, 1, 8192)
	closeDevice(t, d)
}

//go:build vm

package vmtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const verifyBackingMiB = 192 // 48 for each job

// verifyRow is one run of fio. The rows together have every mode with both sector sizes, queue
// depths, checksums and trims; all combinations would take hours here.
type verifyRow struct {
	mode          string // "switching" goes through all modes under load
	sector        int    // of both devices
	depth         int
	trims, nosums bool
	short         bool // also on the short list
}

var verifyRows = []verifyRow{
	{mode: "writeback", sector: 512, depth: 32, short: true},
	{mode: "writeback", sector: 4096, depth: 1, trims: true},
	{mode: "writeback", sector: 512, depth: 32, trims: true, nosums: true},
	{mode: "writethrough", sector: 512, depth: 32, trims: true},
	{mode: "writethrough", sector: 4096, depth: 32, nosums: true},
	{mode: "writearound", sector: 512, depth: 32},
	{mode: "writearound", sector: 4096, depth: 1, trims: true, nosums: true},
	{mode: "writeonly", sector: 512, depth: 32, trims: true},
	{mode: "writeonly", sector: 4096, depth: 32, nosums: true},
	{mode: "none", sector: 512, depth: 32, trims: true},
	{mode: "switching", sector: 512, depth: 32, trims: true, short: true},
	{mode: "switching", sector: 4096, depth: 32, nosums: true},
}

// ssdMiB is so much less than what the jobs touch that buckets are reused. With the mode being
// switched, most of what is written may pass by the cache: how much is a matter of time.
func (r verifyRow) ssdMiB() int {
	if r.mode == "switching" {
		return 40
	}
	return 64
}

func (r verifyRow) String() string {
	name := fmt.Sprintf("%s-%d-depth%d", r.mode, r.sector, r.depth)
	if r.trims {
		name += "-trims"
	}
	if r.nosums {
		name += "-nosums"
	}
	return name
}

// TestVerify runs fio with checksums in every block it writes: four jobs, each in a range of its
// own, blocks of 512 bytes to 1 MiB at any sector, verified in the middle of the load and at the
// end. Then everything is written back, and the backing device has to hold what was read through
// the cache.
func TestVerify(t *testing.T) {
	for _, r := range verifyRows {
		t.Run(r.String(), func(t *testing.T) {
			if !r.short {
				OnlyFull(t)
			}
			Limit(t, 3*time.Minute)
			r.run(t)
		})
	}
}

func (r verifyRow) run(t *testing.T) {
	disk := map[int]string{512: "ssd", 4096: "ssd4k"}[r.sector]
	var format []string
	if r.nosums {
		format = append(format, "--no-checksums")
	}
	c := NewCache(t, Slice(t, disk, 0, r.ssdMiB()), format...)
	backing := Slice(t, disk, 1024, verifyBackingMiB)
	mode := r.mode
	if mode == "switching" {
		mode = "writeback"
	}
	// No sequential bypass: every block is to go through the cache.
	dev := c.Attach(t, backing, "data", "--mode="+mode, "--sequential-cutoff=0")
	r.zeroCopy(t, c)
	stop := r.switchModes(t, c)
	res := Fio(t, dev, r.options()...)
	stop()
	// fio verifies each block once, so around the cache only this comes to hits.
	Fio(t, dev, "rw=read", "bs=64k", "size=16m", "loops=2", "iodepth=4")
	st := c.Stats(t)
	d := st.Devices["data"]
	t.Logf("wrote %d MiB, trimmed %d, read %d; hits %d, misses %d, evicted %d blocks, longest %.0f ms",
		res.WriteBytes>>20, res.TrimBytes>>20, res.ReadBytes>>20, d.HitBlocks, d.MissBlocks,
		st.Cache.EvictedBlocks, res.LongestMs)
	r.judge(t, &st, res)
	seen := readAll(t, dev)
	Ubcache(t, "detach", "data")
	if raw := readAll(t, backing); !bytes.Equal(seen, raw) {
		t.Error("backing device is not what was read through the cache: ", firstDifference(seen, raw))
	}
}

// options are fio's. Small blocks are the most; the average is about 20 KiB.
func (r verifyRow) options() []string {
	split := "512/20:1k/8:1536/5:4k/30:4608/5:12k/10:64k/12:68096/4:256k/3:1m/3"
	blocks := []string{"bssplit=" + split, "blockalign=512"}
	if r.sector == 4096 {
		blocks = []string{"bssplit=4k/50:8k/10:12k/10:64k/15:68k/7:256k/4:1m/4", "blockalign=4k"}
	}
	rw, amount := "randwrite", "28m"
	if r.trims {
		rw = "randtrimwrite" // each block is discarded and then written
		amount = "16m"       // discards are slow; each waits until its removals are durable
	} else if r.mode == "switching" {
		amount = "56m" // time for many switches, and see ssdMiB
	}
	o := append(blocks,
		"numjobs=4", "size=48m", "offset_increment=48m", fmt.Sprint("iodepth=", r.depth),
		"rw="+rw, "norandommap=1", "serialize_overlap=1", "io_size="+amount,
		"verify=crc32c", "verify_fatal=1", "verify_backlog=400", "verify_backlog_batch=200",
		"randseed=7", "end_fsync=1", "fsync=300")
	return o
}

// zeroCopy makes sure that a cache without checksums is tested on the path that it is for.
func (r verifyRow) zeroCopy(t *testing.T, c *Cache) {
	t.Helper()
	want := "copy"
	if r.nosums && KernelAtLeast(t, "6.16") {
		want = "zero"
	}
	if got := c.Device(t, "data").CopyMode; !strings.Contains(strings.ToLower(got), want) {
		t.Errorf("requests pass in mode %q, expected %q", got, want)
	}
}

// switchModes sets another mode all the time until the returned function is called, which fails
// the test if there was no time for all of them.
func (r verifyRow) switchModes(t *testing.T, c *Cache) (stop func()) {
	if r.mode != "switching" {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	switches := 0
	wg.Go(func() {
		modes := []string{"writethrough", "writeonly", "none", "writeback", "writearound", "writeback"}
		for tick := time.NewTicker(150 * time.Millisecond); ; switches++ {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if _, err := Try(t, "ubcache", "set", "data", "mode="+modes[switches%len(modes)]); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		t.Logf("%d switches of the mode", switches)
		if switches < 6 {
			t.Errorf("only %d switches of the mode", switches)
		}
	}
}

// judge fails a run that has not done what its row is about.
func (r verifyRow) judge(t *testing.T, st *CacheStats, res FioResult) {
	t.Helper()
	d := st.Devices["data"]
	if d.SSDErrors+d.BackingErrors+d.HealedBlocks+d.BadBlocks > 0 {
		t.Errorf("errors on the way: %+v", d)
	}
	fills := r.mode != "none" && r.mode != "writeonly"
	if fills && d.HitBlocks == 0 {
		t.Error("no hits")
	}
	switch caches := []string{"writeback", "writethrough", "switching"}; {
	case r.trims: // what is discarded makes room by itself
		if d.Discards == 0 || res.TrimBytes < 20<<20 {
			t.Errorf("%d discards arrived", d.Discards)
		}
	case slices.Contains(caches, r.mode) && st.Cache.EvictedBlocks == 0:
		t.Error("no bucket was reused: the cache is not too small")
	case res.WriteBytes < 100<<20:
		t.Errorf("fio wrote only %d bytes", res.WriteBytes)
	}
	if r.mode == "writeback" && d.CachedWriteBlocks == 0 {
		t.Error("no writes went to the SSD")
	}
}

// readAll reads a whole device past the page cache.
func readAll(t testing.TB, dev string) []byte {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := SizeBytes(t, dev)
	all := alignedMemory(t, int(size))
	for off := int64(0); off < size; off += 1 << 20 {
		if _, err := io.ReadFull(io.NewSectionReader(f, off, 1<<20), all[off:min(off+1<<20, size)]); err != nil {
			t.Fatalf("read %s at %d: %v", dev, off, err)
		}
	}
	return all
}

// alignedMemory is zeroed memory that O_DIRECT accepts, until the end of the test.
func alignedMemory(t testing.TB, size int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

func firstDifference(a, b []byte) string {
	n, first := 0, -1
	for off := 0; off+512 <= min(len(a), len(b)); off += 512 {
		if !bytes.Equal(a[off:off+512], b[off:off+512]) {
			if n++; first < 0 {
				first = off
			}
		}
	}
	return fmt.Sprintf("%d sectors of %d, the first at byte %d", n, len(a)/512, first)
}

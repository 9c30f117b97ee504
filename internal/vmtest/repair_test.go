//go:build vm

package vmtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// byteRange is a run of bytes as scrub, bad and salvage print it.
type byteRange struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// TestRawUse mounts the backing device by itself while the cache is stopped, and changes it. The next start
// has to notice: without dirty data it forgets what it had cached, with it it refuses.
func TestRawUse(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			OnlyFull(t)
			if fs.name != "ext4" {
				OnlyLong(t)
			}
			Limit(t, 6*time.Minute)
			rawUse(t, fs)
		})
	}
}

func rawUse(t *testing.T, fs FS) {
	clean := Fault(t, "backing device: used without the cache, clean data, "+fs.name)
	dirty := Fault(t, "backing device: used without the cache, dirty data, "+fs.name)
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	backing := Slice(t, "slow", 0, 320)
	dev := c.Attach(t, backing, "data", "--mode=writeback", "--dirty-max=90", "--dirty-target=80",
		"--writeback-delay=24h", "--sequential-cutoff=0")
	fs.Create(t, dev)
	work := func(on, file string) {
		t.Helper()
		dir := t.TempDir()
		Run(t, "mount", on, dir)
		Sh(t, fmt.Sprintf("seq 1 200000 >%s/%s; sync; umount %s", dir, file, dir))
	}
	has := func(y *Tally, files ...string) {
		t.Helper()
		dir := t.TempDir()
		Run(t, "mount", "-o", "ro", dev, dir)
		for _, file := range files {
			name := filepath.Join(dir, file)
			if _, err := os.Stat(name); err != nil {
				y.Lost("%v", err)
			} else if _, err := Try(t, "sh", "-c", "seq 1 200000 | cmp - "+name); err != nil {
				y.Wrong("%s is not what was written: %v", file, err)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "dirty")); err == nil && y == dirty {
			y.Wrong("after --drop there is what was dropped")
		}
		Run(t, "umount", dir)
	}
	work(dev, "first")
	Ubcache(t, "flush", "data")

	// What only looks at it is not noticed, for nothing has changed.
	c.Stop(t)
	Run(t, "blkid", "-p", backing)
	Sh(t, "cat "+backing+" >/dev/null")
	c.Start(t)
	if c.Device(t, "data").CachedBytes == 0 {
		t.Fatal("the cache is cold though nobody has changed anything")
	}

	// Clean: forgotten.
	c.Stop(t)
	clean.Tried(1)
	work(backing, "raw")
	c.Start(t)
	if n := c.Device(t, "data").CachedBytes; n > 64<<10 { // the kernel has looked for partitions
		t.Errorf("%d bytes are cached of a device that was changed", n)
	}
	log := Sh(t, "cat "+runtimeDir+"/main.log")
	if strings.Count(log, "was changed without the cache") != 1 {
		t.Errorf("expected one line about it in\n%s", log)
	}
	has(clean, "first", "raw")

	// Dirty: refused, and nothing is lost either way.
	work(dev, "dirty")
	if c.Device(t, "data").DirtyBytes == 0 {
		t.Fatal("nothing is dirty")
	}
	c.Stop(t)
	dirty.Tried(1)
	work(backing, "again")
	Refused(t, 3, "changed without the cache", "start")
	image := filepath.Join(t.TempDir(), "image")
	Refused(t, 3, "write to", "salvage", "main", "--backing", "data", "--to", backing, "--write")
	Ubcache(t, "salvage", "main", "--backing", "data", "--to", image, "--write")
	Refused(t, 3, "changed without the cache", "start")
	Ubcache(t, "start", "--drop", "data")
	has(dirty, "first", "raw", "again")
	fs.Verify(t, dev)
}

// TestScrub corrupts cached data under a running cache with load on it. The scrub finds exactly that.
func TestScrub(t *testing.T) {
	OnlyFull(t)
	Limit(t, 5*time.Minute)
	const ssdMiB, backingOff, backingMiB, clean, dirty = 512, 1024, 192, 48, 24
	c := NewCache(t, Slice(t, "ssd", 0, ssdMiB))
	dev := c.Attach(t, Slice(t, "ssd", backingOff, backingMiB), "data", "--mode=writeback", "--dirty-max=90",
		"--dirty-target=80", "--writeback-delay=24h", "--sequential-cutoff=0")
	Fio(t, dev, "rw=write", "bs=256k", fmt.Sprintf("size=%dm", clean), "end_fsync=1")
	Ubcache(t, "flush", "data")
	Fio(t, dev, "rw=write", "bs=256k", fmt.Sprintf("offset=%dm", clean), fmt.Sprintf("size=%dm", dirty), "end_fsync=1")
	before := readAll(t, dev)[:(clean+dirty)<<20]
	c.Stop(t)
	var d struct {
		DataOff int64 `json:"data_offset_bytes"`
		Blocks  []struct {
			Slot, Block int64
			Dirty       bool
		} `json:"blocks"`
	}
	decode(t, Ubcache(t, "dump", "main", "--blocks", "--json"), &d)
	slots, isDirty := map[int64]int64{}, map[int64]bool{}
	for _, b := range d.Blocks {
		slots[b.Block], isDirty[b.Block] = b.Slot, b.Dirty
	}
	c.Start(t)

	// The load stays away from what is corrupted, and must not push it out.
	done := make(chan error, 1)
	go func() {
		_, err := TryFio(dev, 4*time.Minute, "rw=randrw", "bs=4k", "iodepth=8", "offset=128m", "size=48m",
			"verify=crc32c", "verify_fatal=1", "io_size=24m", "time_based=0", "loops=2")
		done <- err
	}()
	rnd := rand.New(rand.NewPCG(5, 8))
	raw := RawDisk(t, "ssd")
	spoil := func(off int64) {
		t.Helper()
		spoilSector(t, raw, off+rnd.Int64N(8)*512)
	}
	var lost, differs []byteRange
	healed := 0
	for _, n := range rnd.Perm((clean + dirty) << 8)[:60] {
		blk := int64(n)
		slot, ok := slots[blk]
		switch {
		case !ok:
			t.Fatalf("block %d is not cached", blk)
		case isDirty[blk] != (blk >= clean<<8):
			t.Fatalf("block %d is dirty: %v", blk, isDirty[blk])
		case isDirty[blk]:
			spoil(d.DataOff + slot<<12)
			lost = append(lost, byteRange{blk << 12, 4096})
		case n%3 == 0:
			sector := rnd.Int64N(8) * 512
			spoilSector(t, raw, backingOff<<20+blk<<12+sector)
			differs = append(differs, byteRange{blk<<12 + sector, 512})
		default:
			spoil(d.DataOff + slot<<12)
			healed++
		}
	}
	var reps []struct {
		Healed   int64       `json:"healed_blocks"`
		Checked  int64       `json:"checked_blocks"`
		Bad      []byteRange `json:"bad"`
		Differs  []byteRange `json:"differs"`
		Complete bool        `json:"complete"`
	}
	begin := time.Now()
	out := shFails(t, 1, "ubcache scrub data --rate 32M --json 2>/dev/null")
	decode(t, out, &reps)
	took := time.Since(begin)
	r := reps[0]
	t.Logf("scrub of %d blocks took %v: %d healed, %d lost, %d differ", r.Checked, took, r.Healed, len(lost),
		len(differs))
	if !r.Complete || r.Healed != int64(healed) || r.Checked < (clean+dirty)<<8 {
		t.Errorf("%d healed, expected %d: %+v", r.Healed, healed, r)
	}
	sameRanges(t, "lost", r.Bad, lost)
	sameRanges(t, "differ", r.Differs, differs)
	var bad []struct {
		Ranges []byteRange `json:"ranges"`
	}
	decode(t, Ubcache(t, "bad", "data", "--json"), &bad)
	sameRanges(t, "listed by bad", bad[0].Ranges, lost)
	if took < time.Duration(clean+dirty)*time.Second/32*8/10 {
		t.Errorf("%d MiB at 32 MiB/s took only %v", clean+dirty, took)
	}
	if err := <-done; err != nil {
		t.Error("the load: ", err)
	}
	if n := c.Stats(t).Cache.EvictedBlocks; n > 0 {
		t.Fatalf("%d blocks were evicted: the cache is too small for this test", n)
	}
	sectorsFail(t, dev, before, lost)
	// Made right: what is lost is written anew, what differs is forgotten.
	for _, x := range lost {
		Run(t, "dd", "if=/dev/zero", "of="+dev, "oflag=direct", "bs=4k", "count=1", "status=none",
			fmt.Sprint("seek=", x.Off>>12), "conv=notrunc")
	}
	Ubcache(t, "scrub", "data", "--fix")
	Ubcache(t, "scrub", "data")
}

// spoilSector changes a byte of a sector of a device that others may have.
func spoilSector(t testing.TB, dev string, off int64) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := alignedMemory(t, 4096)[:512]
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	p[100] ^= 0x5a
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// shFails runs a script that has to end with this status, and returns what it printed.
func shFails(t testing.TB, status int, script string) string {
	t.Helper()
	return Sh(t, fmt.Sprintf("set +e; %s; s=$?; set -e; [ $s = %d ]", script, status))
}

// sameRanges compares ranges, in any order and however they are joined.
func sameRanges(t testing.TB, what string, got, want []byteRange) {
	t.Helper()
	norm := func(list []byteRange) (out []byteRange) {
		list = slices.Clone(list)
		sort.Slice(list, func(i, j int) bool { return list[i].Off < list[j].Off })
		for _, r := range list {
			if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len == r.Off {
				out[n-1].Len += r.Len
			} else {
				out = append(out, r)
			}
		}
		return out
	}
	if g, w := norm(got), norm(want); !slices.Equal(g, w) {
		t.Errorf("%s: %v, expected %v", what, g, w)
	}
}

// sectorsFail reads a device block by block: what is lost must fail, all else be as it was.
func sectorsFail(t testing.TB, dev string, want []byte, lost []byteRange) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := alignedMemory(t, 4096)
	wrong := 0
	for off := int64(0); off < int64(len(want)); off += 4096 {
		_, err := f.ReadAt(p, off)
		gone := slices.ContainsFunc(lost, func(r byteRange) bool { return off >= r.Off && off < r.Off+r.Len })
		if gone != (err != nil) || err == nil && !bytes.Equal(p, want[off:off+4096]) {
			if wrong++; wrong < 5 {
				t.Errorf("block at %d: lost %v, read with %v", off, gone, err)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d blocks are not as they should be", wrong)
	}
}

// TestSalvage damages a cache that has a whole filesystem dirty so that it does not start any more, and
// mounts what salvage makes of it.
func TestSalvage(t *testing.T) {
	OnlyFull(t)
	for _, what := range []string{"superblocks", "journal"} {
		t.Run(what, func(t *testing.T) {
			Limit(t, 4*time.Minute)
			salvage(t, what)
		})
	}
}

func salvage(t *testing.T, what string) {
	y := Fault(t, "SSD: metadata lost ("+what+"), dirty data salvaged")
	ssd := Slice(t, "ssd", 0, 256)
	c := NewCache(t, ssd)
	dev := c.Attach(t, Slice(t, "slow", 0, 512), "data", "--mode=writeback", "--dirty-max=90", "--dirty-target=80",
		"--writeback-delay=24h", "--sequential-cutoff=0")
	Run(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", dev, "128M")
	dir := t.TempDir()
	Run(t, "mount", dev, dir)
	Sh(t, fmt.Sprintf("cd %s; for i in $(seq 200); do seq $i 5000 >file$i; done; sha256sum file* >/tmp/sums; sync", dir))
	Run(t, "umount", dir)
	c.Stop(t)
	// compare looks for the files in a mounted filesystem.
	compare := func(y *Tally, dir string) {
		t.Helper()
		if out, err := Try(t, "sh", "-c", "cd "+dir+" && sha256sum --quiet -c /tmp/sums 2>&1"); err != nil {
			if strings.Contains(out, "No such file") {
				y.Lost("%s", out)
			} else {
				y.Wrong("%s (%v)", out, err)
			}
		}
	}
	args := []string{"salvage", "main", "--write", "--backing"}
	image := filepath.Join(t.TempDir(), "image")
	t.Cleanup(func() { _ = os.Remove(image) })
	switch what {
	case "superblocks":
		one := Fault(t, "SSD: one superblock lost, dirty data")
		for seek := range 2 {
			one.Tried(1)
			Run(t, "dd", "if=/dev/zero", "of="+ssd, "bs=64k", fmt.Sprint("seek=", 1+seek), "count=1", "oflag=direct",
				"status=none")
			c.Start(t)
			if c.Device(t, "data").DirtyBytes == 0 {
				one.Lost("nothing is dirty any more")
			}
			dir := t.TempDir()
			Run(t, "mount", "-o", "ro", c.Device(t, "data").Path, dir)
			compare(one, dir)
			Run(t, "umount", dir)
			c.Stop(t)
		}
		y.Tried(1)
		Run(t, "dd", "if=/dev/zero", "of="+ssd, "bs=64k", "seek=1", "count=2", "oflag=direct", "status=none")
		Refused(t, 3, "salvage", "start")
		args = append(args, "backing-1", "--to", image)
		Ubcache(t, args...)
	case "journal":
		// Three commits behind the filesystem, and the second is lost.
		c.Start(t)
		for i := range 3 {
			Fio(t, dev, "rw=write", "bs=64k", fmt.Sprintf("offset=%dm", 200+i), "size=1m", "end_fsync=1")
		}
		// Without the daemon, and without its block device.
		c.Kill(t)
		nothingServed(t)
		y.Tried(1)
		spoilJournal(t, ssd)
		// Before the refusal it says that it replays the journal.
		if out := shFails(t, 3, "ubcache start 2>&1"); !strings.Contains(out, "pages of the journal are lost") {
			t.Error(out)
		}
		out := shFails(t, 1, "ubcache "+strings.Join(append(args, "data", "--to", image, "--uncertain"), " ")+" 2>&1")
		t.Log(out)
		if !strings.Contains(out, "proved, written") || !strings.Contains(out, "uncertain, written") {
			t.Errorf("what came after the lost page is not proved, or what came before it not uncertain:\n%s", out)
		}
	}
	Run(t, "truncate", "-s", "128M", image)
	Run(t, "e2fsck", "-fn", image)
	at := Mount(t, image, "loop,ro")
	compare(y, at)
	if what == "journal" {
		// The operator gives up what is lost; it is as good as new.
		Ubcache(t, "start", "--drop", "data")
		return
	}
	Ubcache(t, "format", "--force", ssd) // for the check at the end
}

// nothingServed removes the block device that a killed daemon has left.
func nothingServed(t testing.TB) {
	t.Helper()
	Wait(t, time.Minute, "the end of the daemon", func() bool {
		_, err := Try(t, "sh", "-c", "! pgrep -x ubcache")
		return err == nil
	})
	removeBlockDevices(t)
}

// spoilJournal damages a page in the middle of what a start reads.
func spoilJournal(t testing.TB, ssd string) {
	t.Helper()
	var d struct {
		JournalPages int64 `json:"journal_pages"`
		Epoch        int64 `json:"epoch"`
		Journal      []struct {
			Seq     int64
			Epoch   int64
			Records []any
		} `json:"journal"`
	}
	decode(t, Ubcache(t, "dump", "main", "--journal", "--json"), &d)
	var pages []int64
	for _, p := range d.Journal {
		if p.Epoch == d.Epoch && len(p.Records) > 0 {
			pages = append(pages, p.Seq)
		}
	}
	if len(pages) < 4 {
		t.Fatalf("there are only %d pages in the journal: %v", len(pages), pages)
	}
	spoilSector(t, ssd, 1<<20+pages[len(pages)/2]%d.JournalPages*4096)
}

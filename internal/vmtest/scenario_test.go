//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Sizes of the backup scenario in MiB: the cache is small so that ten times its size is read soon.
const (
	backupSSD  = 48
	backupDisk = 768
	backupHot  = 8
	// backupLoss is how much of the hits a backup may cost, collapse what it leaves at most without
	// the hint.
	backupLoss, backupCollapse = 0.02, 0.5
)

// TestBackup: a program reads a whole filesystem once, many times what the cache holds. Tagged from
// outside with the hint bypass it leaves alone what is cached; without the hint nothing of it remains.
func TestBackup(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, backupSSD))
	// Nothing is sequential, so that what protects the cache is the hint and nothing else.
	// The disk may be fast: hits are counted and not timed.
	dev := c.Attach(t, Slice(t, "ssd4k", 0, backupDisk), "data", writeback...)
	kernelSource(t, c)
	Run(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", dev)
	dir := Mount(t, dev, "noatime")
	size := c.Status(t).Cache.SizeBytes
	backupTree(t, dir, 10*size+size/4)
	hot := filepath.Join(dir, "hot")
	Run(t, "dd", "if=/dev/urandom", "of="+hot, "bs=1M", fmt.Sprintf("count=%d", backupHot), "status=none")
	Run(t, "sync", "-f", dir)
	Ubcache(t, "flush", "data")
	for range 3 {
		hotHits(t, c, hot)
	}
	before := hotHits(t, c, hot)
	tar := []string{"tar", "-C", dir, "--exclude=./hot", "-cf", "-", "."}
	tagged := readBytes(t, c, append([]string{"ubcache", "run", "--hint", "bypass", "--"}, tar...))
	with := hotHits(t, c, hot)
	plain := readBytes(t, c, tar)
	without := hotHits(t, c, hot)
	t.Logf("cache %d MiB; hits of the hot set: before %.2f %%, after a backup of %d MiB with "+
		"hint=bypass %.2f %%, after one of %d MiB without %.2f %%", size>>20, 100*before, tagged>>20,
		100*with, plain>>20, 100*without)
	if before < 0.95 {
		t.Errorf("%.2f %% hits of the hot set before any backup", 100*before)
	}
	if min(tagged, plain) < 10*size {
		t.Errorf("the backups read %d and %d bytes, the cache has %d", tagged, plain, size)
	}
	if with < before-backupLoss {
		t.Errorf("hits went from %.2f %% to %.2f %% by a backup with hint=bypass", 100*before, 100*with)
	}
	if without > backupCollapse {
		t.Errorf("%.2f %% hits after a backup without a hint: the scenario shows nothing", 100*without)
	}
}

// backupTree makes files of so many bytes.
func backupTree(t *testing.T, dir string, bytes int64) {
	t.Helper()
	const file = 4 << 20
	for i := range (bytes + file - 1) / file {
		sub := filepath.Join(dir, fmt.Sprintf("d%d", i%8))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		content := make([]byte, file)
		Fill(content, uint64(i))
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%d", i)), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// hotHits reads the hot set once, in random order and past the page cache, and returns the share of
// blocks that came from the SSD.
func hotHits(t *testing.T, c *Cache, file string) float64 {
	t.Helper()
	before := c.Stats(t).Devices["data"]
	Fio(t, file, "rw=randread", "bs=16k", "iodepth=8", fmt.Sprintf("size=%dm", backupHot))
	after := c.Stats(t).Devices["data"]
	hits, misses := after.HitBlocks-before.HitBlocks, after.MissBlocks-before.MissBlocks
	if hits+misses < backupHot<<20/4096 {
		t.Fatalf("only %d blocks of the hot set were read", hits+misses)
	}
	return float64(hits) / float64(hits+misses)
}

// readBytes runs a command with nothing in the page cache, and returns how much of the device it read.
func readBytes(t *testing.T, c *Cache, command []string) int64 {
	t.Helper()
	Sh(t, "echo 3 >/proc/sys/vm/drop_caches")
	before := c.Stats(t).Devices["data"]
	// Not to a file: tar reads nothing if its output is /dev/null.
	Sh(t, strings.Join(command, " ")+" | cat >/dev/null")
	after := c.Stats(t).Devices["data"]
	return 4096 * (after.HitBlocks + after.MissBlocks - before.HitBlocks - before.MissBlocks)
}

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kublk starts the kernel's test server as a loop over a RAM disk.
func (b *bench) kublk(ctx context.Context, t *target, id int, flags ...string) error {
	dev, err := b.full(ctx)
	if err != nil {
		return err
	}
	args := append([]string{
		"add", "-t", "loop", "-q", "2", "-d", "128", "-n", strconv.Itoa(id),
	}, flags...)
	if _, err := run(ctx, "kublk", append(args, dev)...); err != nil {
		return err
	}
	t.dev = fmt.Sprintf("/dev/ublkb%d", id)
	return wait(t.dev, func() bool { return exists(t.dev) })
}

func (b *bench) kernelLoop(ctx context.Context, t *target) error {
	dev, err := b.full(ctx)
	if err != nil {
		return err
	}
	t.dev, err = run(ctx, "losetup", "--find", "--show", "--direct-io=on", dev)
	return err
}

// bcache is set up as it comes, but for what would make it let the benchmark pass by.
func (b *bench) bcache(ctx context.Context, t *target) error {
	if _, err := run(ctx, "modprobe", "bcache"); err != nil {
		return err
	}
	ssd, err := b.ssd(ctx)
	if err != nil {
		return err
	}
	slow, err := b.slow(ctx, "slow-bcache")
	if err != nil {
		return err
	}
	if _, err := run(ctx, "make-bcache", "-C", ssd, "-B", slow, "--writeback"); err != nil {
		return err
	}
	for _, dev := range []string{ssd, slow} {
		if dev, err = filepath.EvalSymlinks(dev); err != nil {
			return err
		}
		if err := os.WriteFile("/sys/fs/bcache/register", []byte(dev), 0); err != nil {
			return fmt.Errorf("register %s: %w", dev, err)
		}
	}
	t.dev = "/dev/bcache0"
	const sys = "/sys/block/bcache0/bcache/"
	err = wait(t.dev, func() bool { return exists(t.dev) && exists(sys+"cache/cache_available_percent") })
	if err != nil {
		return err
	}
	set := func(name, value string) error { return os.WriteFile(sys+name, []byte(value), 0) }
	for _, name := range []string{
		"sequential_cutoff", "cache/congested_read_threshold_us", "cache/congested_write_threshold_us",
	} {
		if err := set(name, "0"); err != nil {
			return err
		}
	}
	t.hits = func() (hitCount, error) { return countReads(t.dev, slow) }
	// Filled by writing through, since dirty data would be on its way to the slow disk during the
	// measurements. It lets some pass when it has no bucket at hand; later reads get those.
	if err := set("cache_mode", "writethrough"); err != nil {
		return err
	}
	if err := writeAll(ctx, t.dev); err != nil {
		return err
	}
	for range 20 {
		if err = checkFull(ctx, t); err == nil {
			return set("cache_mode", "writeback")
		}
	}
	return err
}

// countReads tells hits from misses by what reaches the disk behind the cache.
func countReads(top, slow string) (n hitCount, err error) {
	all, err := reads(top)
	if err == nil {
		n.misses, err = reads(slow)
	}
	n.hits = all - n.misses
	return n, err
}

// reads is how many a block device has completed.
func reads(dev string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", dev, err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Rdev),
		unix.Minor(st.Rdev)))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
}

// dmCache makes a dm-cache that holds the span already: by itself it would take long to promote it.
func (b *bench) dmCache(ctx context.Context, t *target) error {
	if _, err := run(ctx, "modprobe", "-a", "dm_cache", "dm_cache_smq"); err != nil {
		return err
	}
	meta, err := b.ssd(ctx)
	if err != nil {
		return err
	}
	ssd, err := b.full(ctx) // the same data as on the slow disk as far as anybody looks
	if err != nil {
		return err
	}
	slow, err := b.slow(ctx, "slow-dmcache")
	if err != nil {
		return err
	}
	const blockSectors, blocks = 128, ssdMiB << 20 / (128 * 512)
	var x strings.Builder
	fmt.Fprintf(&x, `<superblock uuid="" block_size="%d" nr_cache_blocks="%d" policy="smq" hint_width="4">`,
		blockSectors, blocks)
	x.WriteString("<mappings>")
	for i := range span / (blockSectors * 512) {
		fmt.Fprintf(&x, `<mapping cache_block="%d" origin_block="%d" dirty="false"/>`, i, i)
	}
	x.WriteString("</mappings><hints></hints></superblock>")
	const file = "/tmp/dm-cache.xml"
	if err := os.WriteFile(file, []byte(x.String()), 0o600); err != nil {
		return err
	}
	if _, err := run(ctx, "cache_restore", "-i", file, "-o", meta); err != nil {
		return err
	}
	t.dev, err = mapper(ctx, "dmcache", fmt.Sprintf("0 %d cache %s %s %s %d 1 writeback smq 0",
		backingMiB<<11, meta, ssd, slow, blockSectors))
	t.hits = func() (hitCount, error) { return countReads(t.dev, slow) }
	return err
}

// dmWritecache caches what is written, so it is filled by writing.
func (b *bench) dmWritecache(ctx context.Context, t *target) error {
	if _, err := run(ctx, "modprobe", "dm_writecache"); err != nil {
		return err
	}
	ssd, err := b.ssd(ctx)
	if err != nil {
		return err
	}
	slow, err := b.slow(ctx, "slow-writecache")
	if err != nil {
		return err
	}
	t.dev, err = mapper(ctx, "writecache", fmt.Sprintf("0 %d writecache s %s %s 4096 0",
		backingMiB<<11, slow, ssd))
	if err != nil {
		return err
	}
	t.hits = func() (hitCount, error) { return countReads(t.dev, slow) }
	return writeAll(ctx, t.dev)
}

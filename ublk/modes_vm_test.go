//go:build vm

package ublk_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

var allModes = []ublk.CopyMode{ublk.Copy, ublk.UserCopy, ublk.AutoZeroCopy, ublk.RingCopy}

func eachMode(t *testing.T, f func(t *testing.T, mode ublk.CopyMode)) {
	for _, mode := range allModes {
		t.Run(mode.String(), func(t *testing.T) {
			need(t, modeFeatures(mode))
			f(t, mode)
		})
	}
}

func TestExampleRAMDisk(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ready := make(chan string, 1)
	go func() { ended <- ramDisk(ctx, 64<<20, func(path string) { ready <- path }) }()
	select {
	case path := <-ready:
		verify(t, path, 64<<20, 200)
	case err := <-ended:
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestVerify(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		d := serve(t, testOptions(mode, testDiskSize), newDisk(t, testDiskSize).factory)
		verify(t, d.Path(), testDiskSize, 1000)
	})
}

func TestFioVerify(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		d := serve(t, testOptions(mode, testDiskSize), newDisk(t, testDiskSize).factory)
		run(t, "fio", "--name=v", "--filename="+d.Path(), "--ioengine=io_uring", "--direct=1",
			"--rw=randwrite", "--bsrange=4k-128k", "--bs_unaligned=0", "--iodepth=32", "--size=32m",
			"--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
	})
}

// verify compares the device with a model: random reads and writes of all alignments.
func verify(t *testing.T, path string, size int64, ops int) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	model := make([]byte, size)
	buf, err := ublk.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range ops {
		n := int(1+rng.Int64N(1<<(1+rng.IntN(11)))) * 512
		off := rng.Int64N((size-int64(n))/512+1) * 512
		b := buf.Slice(0, n)
		if rng.IntN(2) == 0 {
			for j := range b {
				b[j] = byte(rng.Uint32())
			}
			if _, err := unix.Pwrite(fd, b, off); err != nil {
				t.Fatalf("seed %d op %d: write %d at %d: %v", seed, i, n, off, err)
			}
			copy(model[off:], b)
			continue
		}
		if got, err := unix.Pread(fd, b, off); err != nil || got != n {
			t.Fatalf("seed %d op %d: read %d at %d: %d, %v", seed, i, n, off, got, err)
		}
		if !bytes.Equal(b, model[off:off+int64(n)]) {
			t.Fatalf("seed %d op %d: read %d at %d: wrong data", seed, i, n, off)
		}
	}
}

func TestEveryOp(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		disk := newDisk(t, testDiskSize)
		d := serve(t, testOptions(mode, testDiskSize), disk.factory)
		fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		buf, err := ublk.NewArena(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		defer buf.Free()
		data := buf.Slice(0, 64<<10)
		for i := range data {
			data[i] = 0xa5
		}
		if _, err := unix.Pwrite(fd, data, 1<<20); err != nil {
			t.Fatal(err)
		}
		before := disk.fua.Load()
		// RWF_DSYNC on a block device with FUA is a write with FUA and no flush.
		if _, err := unix.Pwritev2(fd, [][]byte{data[:4096]}, 2<<20, unix.RWF_DSYNC); err != nil {
			t.Fatal(err)
		}
		if disk.fua.Load() == before {
			t.Error("RWF_DSYNC: no FUA arrived")
		}
		before = disk.flushes.Load()
		if err := unix.Fsync(fd); err != nil {
			t.Fatal(err)
		}
		if disk.flushes.Load() == before {
			t.Error("fsync: no flush arrived")
		}
		blockRange(t, fd, unix.BLKDISCARD, 1<<20, 32<<10)
		if disk.discards.Load() == 0 {
			t.Error("BLKDISCARD: no discard arrived")
		}
		blockRange(t, fd, unix.BLKZEROOUT, 2<<20, 4096)
		if disk.zeroes.Load() == 0 {
			t.Error("BLKZEROOUT: no write zeroes arrived")
		}
		for _, c := range []struct {
			off  int64
			want byte
		}{{1 << 20, 0}, {1<<20 + 32<<10, 0xa5}, {2 << 20, 0}} {
			got := buf.Slice(128<<10, 4096)
			if _, err := unix.Pread(fd, got, c.off); err != nil {
				t.Fatal(err)
			}
			if got[0] != c.want || got[4095] != c.want {
				t.Errorf("at %d: %#x, want %#x", c.off, got[0], c.want)
			}
		}
		// The whole device in one ioctl: requests up to the limit, in sectors that fit 32 bits.
		blockRange(t, fd, unix.BLKZEROOUT, 0, testDiskSize)
	})
}

func blockRange(t *testing.T, fd int, req uint, off, n uint64) {
	t.Helper()
	if err := blockIoctl(fd, req, off, n); err != nil {
		t.Fatalf("ioctl %#x %d+%d: %v", req, off, n, err)
	}
}

func TestFilesystem(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		d := serve(t, testOptions(mode, testDiskSize), newDisk(t, testDiskSize).factory)
		run(t, "mke2fs", "-q", "-t", "ext4", d.Path())
		dir := t.TempDir()
		run(t, "mount", d.Path(), dir)
		defer run(t, "umount", dir)
		for i := range 20 {
			name := fmt.Sprintf("%s/file%d", dir, i)
			data := bytes.Repeat([]byte{byte(i)}, 100_000+i)
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		run(t, "sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")
		for i := range 20 {
			got, err := os.ReadFile(fmt.Sprintf("%s/file%d", dir, i))
			if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, 100_000+i)) {
				t.Fatalf("file %d: wrong data, %v", i, err)
			}
		}
	})
}

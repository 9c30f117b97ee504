//go:build vm

package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/internal/vmtest"
)

// The writers. The first ones make one new file after the other and fsync file and folder; the
// last overwrites blocks of one file in turn and calls fdatasync. Each then notes its progress on
// a disk that has nothing to do with the cache.
const (
	makers      = 3
	writerCount = makers + 1
	overBlocks  = 16
	blockBytes  = 4096
)

// writer is one of them; acked is the number of its last durable write, from 1.
type writer struct {
	acked atomic.Int64
	fault atomic.Pointer[error]
}

func (w *writer) err() error {
	if e := w.fault.Load(); e != nil {
		return *e
	}
	return nil
}

// startWriters starts them; only the power cut ends them.
func startWriters(t *testing.T, dir string) []*writer {
	t.Helper()
	disk, err := os.OpenFile(vmtest.RawDisk(t, "ssd4k"), os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	over, err := os.OpenFile(filepath.Join(dir, "over"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := over.Write(make([]byte, overBlocks*blockBytes)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(over.Sync(), syncDir(dir)); err != nil {
		t.Fatal(err)
	}
	var all []*writer
	for i := range writerCount {
		write := func(n int64) error { return newFile(dir, i, n) }
		if i == makers {
			write = func(n int64) error { return overwrite(over, n) }
		}
		w := &writer{}
		all = append(all, w)
		go w.run(disk, i, write)
	}
	return all
}

func (w *writer) run(disk *os.File, i int, write func(int64) error) {
	note, err := unix.Mmap(-1, 0, blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	for n := int64(1); err == nil; n++ {
		if err = write(n); err != nil {
			break
		}
		binary.LittleEndian.PutUint64(note, uint64(n))
		if _, err = disk.WriteAt(note, int64(i)*blockBytes); err == nil {
			w.acked.Store(n)
		}
	}
	w.fault.Store(&err)
}

func fileName(dir string, i int, n int64) string {
	return filepath.Join(dir, fmt.Sprintf("w%d-%05d", i, n))
}

// content is the bytes of file n of a writer: up to 32 KiB.
func content(i int, n int64) []byte {
	seed := uint64(i)<<32 | uint64(n)
	p := make([]byte, 1+seed*2654435761%(32<<10))
	vmtest.Fill(p, seed)
	return p
}

func newFile(dir string, i int, n int64) error {
	f, err := os.Create(fileName(dir, i, n))
	if err != nil {
		return err
	}
	_, err = f.Write(content(i, n))
	return errors.Join(err, f.Sync(), f.Close(), syncDir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// version is what overwrite n puts into its block.
func version(n int64) []byte {
	p := make([]byte, blockBytes)
	if n > 0 {
		vmtest.Fill(p, uint64(n))
	}
	return p
}

func overwrite(f *os.File, n int64) error {
	if _, err := f.WriteAt(version(n), n%overBlocks*blockBytes); err != nil {
		return err
	}
	return unix.Fdatasync(int(f.Fd()))
}

func clearWitness(t *testing.T) {
	t.Helper()
	vmtest.Run(t, "dd", "if=/dev/zero", "of="+vmtest.RawDisk(t, "ssd4k"), "bs=4k",
		fmt.Sprint("count=", writerCount), "oflag=direct,dsync")
}

func readWitness(t *testing.T) (acked []int64) {
	t.Helper()
	f, err := os.Open(vmtest.RawDisk(t, "ssd4k"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, writerCount*blockBytes)
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	for i := range writerCount {
		acked = append(acked, int64(binary.LittleEndian.Uint64(p[i*blockBytes:])))
	}
	return acked
}

// checkFiles mounts the device and compares all that was acknowledged.
func checkFiles(t *testing.T, what, dev string, acked []int64) {
	t.Helper()
	dir := t.TempDir()
	vmtest.Run(t, "mount", dev, dir)
	defer vmtest.Run(t, "umount", dir)
	for i := range makers {
		for n := int64(1); n <= acked[i]; n++ {
			got, err := os.ReadFile(fileName(dir, i, n))
			if err != nil {
				t.Errorf("%s: %v", what, err)
			} else if !bytes.Equal(got, content(i, n)) {
				t.Errorf("%s: file %d of writer %d is not what was written", what, n, i)
			}
		}
	}
	over, err := os.ReadFile(filepath.Join(dir, "over"))
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	last := acked[makers]
	for b := range int64(overBlocks) {
		// The newest acknowledged version of the block; one more may have been under way.
		n := last - ((last-b)%overBlocks+overBlocks)%overBlocks
		got := over[b*blockBytes:][:blockBytes]
		if bytes.Equal(got, version(max(n, 0))) || n+overBlocks == last+1 && bytes.Equal(got, version(last+1)) {
			continue
		}
		t.Errorf("%s: block %d is not version %d (of %d)", what, b, n, last)
	}
}

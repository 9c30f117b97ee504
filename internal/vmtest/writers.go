//go:build vm

package vmtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// The writers of a filesystem that is to survive a power cut. The first ones make one new file after
// the other and fsync file and folder; the last overwrites blocks of one file in turn and calls
// fdatasync. Each then acknowledges, somewhere that has nothing to do with the filesystem.
const (
	makers     = 3
	overBlocks = 16
	blockBytes = 4096

	// WriterCount is how many writers there are.
	WriterCount = makers + 1
)

// Writers are running writers.
type Writers struct {
	wg    sync.WaitGroup
	over  atomic.Bool
	acked [WriterCount]atomic.Int64 // number of the last durable write, from 1
	fault atomic.Pointer[error]
}

// StartWriters starts them in a folder that has no files of theirs. Each durable write n of writer i
// is told to ack, by the writer's own goroutine, before the next one begins.
func StartWriters(t testing.TB, dir string, ack func(i int, n int64) error) *Writers {
	t.Helper()
	return ContinueWriters(t, dir, make([]int64, WriterCount), ack)
}

// ContinueWriters is [StartWriters] for writers that have come to the writes given.
func ContinueWriters(t testing.TB, dir string, from []int64, ack func(i int, n int64) error) *Writers {
	t.Helper()
	over, err := os.OpenFile(filepath.Join(dir, "over"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := over.Stat(); err != nil || info.Size() == 0 {
		_, err := over.Write(make([]byte, overBlocks*blockBytes))
		if err = errors.Join(err, over.Sync(), syncDir(dir)); err != nil {
			t.Fatal(err)
		}
	}
	w := &Writers{}
	for i := range WriterCount {
		write := func(n int64) error { return newFile(dir, i, n) }
		if i == makers {
			write = func(n int64) error { return overwrite(over, n) }
		}
		w.acked[i].Store(from[i])
		w.wg.Go(func() { w.run(i, write, ack) })
	}
	t.Cleanup(func() { _ = w.Stop(); _ = over.Close() })
	return w
}

func (w *Writers) run(i int, write func(int64) error, ack func(int, int64) error) {
	for n := w.acked[i].Load() + 1; !w.over.Load(); n++ {
		err := write(n)
		if err == nil {
			err = ack(i, n)
		}
		if err != nil {
			w.fault.Store(&err)
			return
		}
		w.acked[i].Store(n)
	}
}

// Err is the first error of a writer.
func (w *Writers) Err() error {
	if e := w.fault.Load(); e != nil {
		return *e
	}
	return nil
}

// Acked is how far each writer has come.
func (w *Writers) Acked() (acked []int64) {
	for i := range w.acked {
		acked = append(acked, w.acked[i].Load())
	}
	return acked
}

// Least is how far the slowest has come.
func (w *Writers) Least() int64 {
	least := w.acked[0].Load()
	for i := range w.acked {
		least = min(least, w.acked[i].Load())
	}
	return least
}

// Stop ends the writers.
func (w *Writers) Stop() error {
	w.over.Store(true)
	w.wg.Wait()
	return w.Err()
}

func writerFile(dir string, i int, n int64) string {
	return filepath.Join(dir, fmt.Sprintf("w%d-%05d", i, n))
}

// content is the bytes of file n of a writer: up to 32 KiB.
func content(i int, n int64) []byte {
	seed := uint64(i)<<32 | uint64(n)
	p := make([]byte, 1+seed*2654435761%(32<<10))
	Fill(p, seed)
	return p
}

func newFile(dir string, i int, n int64) error {
	// A file that a power cut has left behind unacknowledged is written anew.
	f, err := os.Create(writerFile(dir, i, n))
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

// overVersion is what overwrite n puts into its block.
func overVersion(n int64) []byte {
	p := make([]byte, blockBytes)
	if n > 0 {
		Fill(p, uint64(n))
	}
	return p
}

func overwrite(f *os.File, n int64) error {
	if _, err := f.WriteAt(overVersion(n), n%overBlocks*blockBytes); err != nil {
		return err
	}
	return unix.Fdatasync(int(f.Fd()))
}

// CheckWriters compares what writers had acknowledged with what is in the folder.
func CheckWriters(y *Tally, what, dir string, acked []int64) {
	y.t.Helper()
	for i := range makers {
		for n := int64(1); n <= acked[i]; n++ {
			got, err := os.ReadFile(writerFile(dir, i, n))
			switch {
			case errors.Is(err, os.ErrNotExist):
				y.Lost("%s: file %d of writer %d", what, n, i)
			case err != nil:
				y.Failed("%s: %v", what, err)
			case !bytes.Equal(got, content(i, n)):
				y.Wrong("%s: file %d of writer %d is not what was written", what, n, i)
			}
		}
	}
	last := acked[makers]
	if last == 0 {
		return
	}
	over, err := os.ReadFile(filepath.Join(dir, "over"))
	if err != nil || len(over) != overBlocks*blockBytes {
		y.Lost("%s: %d bytes of the file that is overwritten: %v", what, len(over), err)
		return
	}
	for b := range int64(overBlocks) {
		checkOver(y, what, over[b*blockBytes:][:blockBytes], b, last)
	}
}

// checkOver looks for the newest acknowledged version of a block; one more may have been under way.
func checkOver(y *Tally, what string, got []byte, b, last int64) {
	y.t.Helper()
	n := max(last-((last-b)%overBlocks+overBlocks)%overBlocks, 0)
	if bytes.Equal(got, overVersion(n)) || (last+1)%overBlocks == b && bytes.Equal(got, overVersion(last+1)) {
		return
	}
	for old := n - overBlocks; old > -overBlocks; old -= overBlocks {
		if bytes.Equal(got, overVersion(max(old, 0))) {
			y.Lost("%s: block %d is version %d, not %d", what, b, old, n)
			return
		}
	}
	y.Wrong("%s: block %d is not version %d (of %d) nor any other", what, b, n, last)
}

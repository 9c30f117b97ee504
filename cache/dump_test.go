package cache

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"testing"
)

// lines counts lines, and looks from time to time at what is in use on the heap.
type lines struct {
	n, looked   int
	least, most uint64
}

func (l *lines) Write(p []byte) (int, error) {
	if l.n += bytes.Count(p, []byte("\n")); l.n >= l.looked+1000 {
		l.looked = l.n
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if l.most = max(l.most, m.HeapAlloc); l.least == 0 {
			l.least = m.HeapAlloc
		}
	}
	return len(p), nil
}

// A dump of all blocks keeps none of them: not in the lists that it makes, nor while it prints.
func TestDumpKeepsNoBlocks(t *testing.T) {
	const blocks = 12 << 10
	dev := make(memStorage, 80<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 64<<20)
	for at := int64(0); at < blocks; at += 64 {
		h.write(at*BlockSize, fill(byte(at), 64))
	}
	h.flush()
	h.c.Abandon()
	d, err := Dump(t.Context(), dev, DumpOptions{Blocks: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	n := 0
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = d.EachBucket(t.Context(), func(list []DumpedBlock) error {
		n += len(list)
		return nil
	})
	runtime.ReadMemStats(&after)
	if err != nil || n != blocks {
		t.Errorf("%d of %d blocks: %v", n, blocks, err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > blocks*4 {
		t.Errorf("%d bytes allocated for %d blocks", got, blocks)
	}
	var l lines
	if err := d.Print(t.Context(), &l); err != nil || l.n < blocks {
		t.Errorf("%d lines: %v", l.n, err)
	}
	if l.most > l.least+blocks*8 {
		t.Errorf("%d bytes more in use when %d blocks are printed", l.most-l.least, blocks)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	err = d.EachBucket(ctx, func([]DumpedBlock) error {
		n++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 1 {
		t.Errorf("interrupted: %v after %d buckets", err, n)
	}
	full := errors.New("no space left")
	if err := d.Print(t.Context(), failingWriter{full}); !errors.Is(err, full) {
		t.Errorf("printed to what is full: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

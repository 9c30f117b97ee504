package cache

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// memStorage is a device in memory.
type memStorage []byte

func (m memStorage) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m memStorage) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memStorage) Sync() error                              { return nil }
func (m memStorage) Size() int64                              { return int64(len(m)) }

func TestGeometryFitsTheDevice(t *testing.T) {
	for _, size := range []int64{5 << 20, 64 << 20, 1 << 30, 64 << 30, 1 << 40, 16 << 40} {
		for _, bucket := range []int64{64 << 10, 1 << 20, 64 << 20} {
			g, err := planGeometry(size, bucket)
			if err != nil {
				if size/bucket > 2*minBuckets {
					t.Errorf("%d bytes in buckets of %d: %v", size, bucket, err)
				}
				continue
			}
			end := g.DataOff + int64(g.Buckets)*g.BucketBytes
			if end > size || g.DataOff%bucket != 0 {
				t.Errorf("%d bytes in buckets of %d: data from %d to %d", size, bucket, g.DataOff, end)
			}
			if size-end > 4*bucket+size/50 && g.slots() < int64(maxSlots)-g.slotsPerBucket() {
				t.Errorf("%d bytes in buckets of %d: %d unused at the end", size, bucket, size-end)
			}
			first, n := g.pageSlots(g.pageOf(Slot(g.slots() - 1)))
			if int64(first)+int64(n) != g.slots() {
				t.Errorf("last summary page has slots %d+%d of %d", first, n, g.slots())
			}
		}
	}
}

func TestSuperblockSurvivesTheLossOfEitherCopy(t *testing.T) {
	dev := make(memStorage, 8<<20)
	sb, err := Format(dev, FormatOptions{BucketBytes: 64 << 10, Label: "two copies"})
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{superOffA, superOffB} {
		d := bytes.Clone(dev)
		d[off+100] ^= 1
		got, err := ReadSuper(memStorage(d))
		if err != nil || got.UUID != sb.UUID || got.Label != "two copies" {
			t.Errorf("with the copy at %d damaged: %+v, %v", off, got, err)
		}
	}
	dev[superOffA+100] ^= 1
	dev[superOffB+100] ^= 1
	if _, err := ReadSuper(dev); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both copies damaged: %v", err)
	}
}

func TestReadSuperRefuses(t *testing.T) {
	if _, err := ReadSuper(make(memStorage, 8<<20)); !errors.Is(err, ErrNotCache) {
		t.Errorf("an empty device: %v", err)
	}
	dev := make(memStorage, 8<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSuper(dev[:4<<20]); !errors.Is(err, ErrTooSmall) {
		t.Errorf("a device that shrank: %v", err)
	}
	newer := bytes.Clone(dev)
	newer[superOffA+supVersion] = formatVersion + 1
	newer[superOffB+supVersion] = formatVersion + 1
	if _, err := ReadSuper(memStorage(newer)); !errors.Is(err, ErrNewer) {
		t.Errorf("a newer format: %v", err)
	}
	damaged := bytes.Clone(dev)
	damaged[superOffA+supVersion+1] ^= 0x10
	if _, err := ReadSuper(memStorage(damaged)); err != nil {
		t.Errorf("one copy has a damaged version: %v", err)
	}
	// A copy at the other one's place is not believed.
	moved := bytes.Clone(dev)
	copy(moved[superOffA:superOffA+superBytes], dev[superOffB:])
	clear(moved[superOffB : superOffB+superBytes])
	if _, err := ReadSuper(memStorage(moved)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a copy at the wrong place: %v", err)
	}
}

// TestGoldenImage opens caches that earlier versions wrote and compares all that is in them. The
// images stay for good: a change that cannot read one is a new format version.
func TestGoldenImage(t *testing.T) {
	for _, tt := range []struct {
		name string // in testdata
		make func(*testing.T) memStorage
	}{
		{"v1", nil},
		{"v1-repair", repairImage},
		{"v2", nil},
		{"v2-images", orderedImage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			image := filepath.Join("testdata", tt.name+".image")
			golden := filepath.Join("testdata", tt.name+".dump")
			if _, err := os.Stat(image); *update && err != nil { // one that is there stays
				writeSparse(t, image, tt.make(t))
			}
			dev := readSparse(t, image)
			var got strings.Builder
			d, err := Dump(t.Context(), dev, DumpOptions{Journal: true, Blocks: true, Summaries: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Print(t.Context(), &got); err != nil {
				t.Fatal(err)
			}
			d.Close()
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("the image reads as\n%s\nwant\n%s", got.String(), want)
			}
			rep, err := Check(t.Context(), dev, CheckOptions{Data: true})
			if err != nil || len(rep.Problems) > 0 || rep.DirtyBlocks == 0 || rep.ReadBlocks == 0 {
				t.Errorf("check: %+v, %v", rep, err)
			}
		})
	}
}

// repairImage has what came with the repair tools: counts, a fingerprint, a header's epoch, notes of dirty
// data in the journal, a seal.
func repairImage(t *testing.T) memStorage {
	dev := make(memStorage, 6<<20)
	_, err := Format(dev, FormatOptions{
		BucketBytes: 64 << 10, Label: "golden", UUID: UUID{0x60, 0x1d}, Now: time.Unix(1, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 2<<20)
	for i := range 20 {
		h.write(int64(i)*3*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
	h.flush()
	if err := h.c.SetHead(h.b.ID(), 1); err != nil {
		t.Fatal(err)
	}
	if err := h.c.SetPrint(h.b.ID(), Fingerprint{Kind: 1, Sum: 0x1234, Time: time.Unix(2, 0)}); err != nil {
		t.Fatal(err)
	}
	h.c.StartSettle()
	h.until("settling", func() bool { return len(h.ops) == 0 && h.l.Settled() })
	if err := h.c.Close(); err != nil {
		t.Fatal(err)
	}
	h.open()
	if h.b, err = h.c.Backing(1); err != nil {
		t.Fatal(err)
	}
	h.write(9*4096, bytes.Repeat([]byte{0x77}, 8192))
	h.flush()
	h.quiet()
	h.c.Abandon()
	return dev
}

// An image file has the pages that are not zero: page number (8 bytes), page.
func writeSparse(t *testing.T, path string, dev memStorage) {
	var out bytes.Buffer
	for i := 0; i < len(dev); i += pageSize {
		p := dev[i : i+pageSize]
		if bytes.Equal(p, make([]byte, pageSize)) {
			continue
		}
		var n [8]byte
		n[0], n[1] = byte(i/pageSize), byte(i/pageSize>>8)
		out.Write(n[:])
		out.Write(p)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, compress(t, out.Bytes()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readSparse(t *testing.T, path string) memStorage {
	z, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dev := make(memStorage, 6<<20)
	for in := decompress(t, z); len(in) > 0; in = in[8+pageSize:] {
		copy(dev[(int(in[0])|int(in[1])<<8)*pageSize:], in[8:8+pageSize])
	}
	return dev
}

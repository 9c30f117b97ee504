package header

import (
	"encoding/hex"
	"errors"
	"io"
	"os"
	"testing"

	"ubcache/cache"
)

// disk is a device in memory.
type disk struct{ b []byte }

func (d *disk) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d.b[off:]), nil }
func (d *disk) WriteAt(p []byte, off int64) (int, error) { return copy(d.b[off:], p), nil }
func (d *disk) Sync() error                              { return nil }
func (d *disk) Size() int64                              { return int64(len(d.b)) }

func sample() *Header {
	h := &Header{DataOff: DataOff, Size: 3 << 20, DeviceSize: 4 << 20}
	for i := range h.Cache {
		h.Cache[i], h.Backing[i] = byte(i), byte(0xf0|i)
	}
	return h
}

func TestWriteRead(t *testing.T) {
	d := &disk{make([]byte, 4<<20)}
	if _, err := Read(d); !errors.Is(err, ErrNone) {
		t.Errorf("an empty device: %v", err)
	}
	h := sample()
	for seq := uint64(1); seq <= 3; seq++ {
		if err := Write(d, h); err != nil {
			t.Fatal(err)
		}
		got, err := Read(d)
		if err != nil || *got != *h || got.Seq != seq {
			t.Fatalf("read %+v (%v), want %+v", got, err, h)
		}
	}
}

// TestTorn damages one copy at every stage of a write: the other counts.
func TestTorn(t *testing.T) {
	d := &disk{make([]byte, 4<<20)}
	h := sample()
	if err := Write(d, h); err != nil {
		t.Fatal(err)
	}
	old := append([]byte(nil), d.b...)
	h.Size--
	if err := Write(d, h); err != nil {
		t.Fatal(err)
	}
	torn := &disk{append([]byte(nil), old...)}
	copy(torn.b[locations[0]:], d.b[locations[0]:locations[0]+64])
	if got, err := Read(torn); err != nil || got.Seq != 1 {
		t.Errorf("torn first copy: %+v, %v", got, err)
	}
	half := &disk{append([]byte(nil), old...)}
	copy(half.b[locations[0]:], d.b[locations[0]:locations[0]+blockBytes])
	if got, err := Read(half); err != nil || got.Seq != 2 {
		t.Errorf("only the first copy written: %+v, %v", got, err)
	}
	both := &disk{append([]byte(nil), old...)}
	for _, off := range locations {
		both.b[off+100] ^= 1
	}
	if _, err := Read(both); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both damaged: %v", err)
	}
	moved := &disk{make([]byte, 4<<20)}
	copy(moved.b[locations[1]:], old[locations[0]:locations[0]+blockBytes])
	if _, err := Read(moved); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a copy at the other's place: %v", err)
	}
}

func TestNewer(t *testing.T) {
	d := &disk{make([]byte, 4<<20)}
	if err := Write(d, sample()); err != nil {
		t.Fatal(err)
	}
	d.b[locations[0]+8] = version + 1
	if _, err := Read(d); !errors.Is(err, ErrNewer) {
		t.Errorf("a newer version: %v", err)
	}
}

// TestGolden keeps the format: what this version writes, all later ones must read.
func TestGolden(t *testing.T) {
	h := sample()
	h.Seq = 7
	got := hex.Dump(h.encode(locations[0])[:128])
	const file = "testdata/header.txt"
	if os.Getenv("REWRITE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the format has changed:\n%s", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sample().encode(locations[0]))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := decode(p, locations[0])
		if err != nil {
			return
		}
		again, err := decode(h.encode(locations[0]), locations[0])
		if err != nil || *again != *h {
			t.Errorf("%+v is encoded as %+v (%v)", h, again, err)
		}
	})
}

var (
	_ cache.Storage = &disk{}
	_ io.ReaderAt   = &disk{}
)

// TestMissed: a header with a marker is one that programs which do not know it refuse.
func TestMissed(t *testing.T) {
	d := &disk{make([]byte, 4<<20)}
	h := sample()
	h.Missed, h.Dirty, h.Epoch = true, 3, 9
	if err := Write(d, h); err != nil {
		t.Fatal(err)
	}
	if v := d.b[locations[0]+8]; v != 2 {
		t.Errorf("version %d", v)
	}
	got, err := Read(d)
	if err != nil || *got != *h {
		t.Fatalf("read %+v, %v; wrote %+v", got, err, h)
	}
	for _, dirty := range []int64{-1, 0} {
		h.Dirty = dirty
		if err := Write(d, h); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(d); err != nil || *got != *h {
			t.Errorf("read %+v, %v; wrote %+v", got, err, h)
		}
	}
	h.Missed, h.Dirty, h.Epoch = false, 0, 0
	if err := Write(d, h); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(d); err != nil || *got != *h || d.b[locations[1]+8] != 1 {
		t.Errorf("without the marker: %+v, %v", got, err)
	}
}

package daemon

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/header"
)

// diskImage is an image file of 256 MiB with this at its start.
func diskImage(t *testing.T, start []byte) *blockdev.Device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, start, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 256<<20); err != nil {
		t.Fatal(err)
	}
	i, err := blockdev.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := i.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// mbr has a partition at 100 MiB and one at 200 MiB.
func mbr() []byte {
	p := make([]byte, 512)
	p[510], p[511] = 0x55, 0xaa
	for i, first := range []uint32{100 << 11, 200 << 11} {
		p[446+16*i+4] = 0x83
		binary.LittleEndian.PutUint32(p[446+16*i+8:], first)
	}
	return p
}

// gpt has the same.
func gpt() []byte {
	p := make([]byte, 34*512)
	le := binary.LittleEndian
	copy(p[512:], "EFI PART")
	le.PutUint64(p[512+72:], 2)
	le.PutUint32(p[512+80:], 128)
	le.PutUint32(p[512+84:], 128)
	for i, first := range []uint64{100 << 11, 200 << 11} {
		le.PutUint64(p[1024+128*i+32:], first)
	}
	return p
}

// TestFingerprint changes a byte somewhere, and back.
func TestFingerprint(t *testing.T) {
	const size = 256 << 20
	for _, tt := range []struct {
		name  string
		start []byte
		off   int64
		same  bool
	}{
		{name: "first sector", off: 0},
		{name: "ext4 superblock", off: 1024 + 48},
		{name: "btrfs superblock", off: 64<<10 + 72},
		{name: "superblock of the first partition", off: 1<<20 + 1024},
		{name: "end of the head", off: printHead - 1},
		{name: "behind the head", off: printHead + 4096, same: true},
		{name: "a spot", off: size / printSpots * 5},
		{name: "beside a spot", off: size/printSpots*5 + 4096, same: true},
		{name: "MBR partition", start: mbr(), off: 100<<20 + 1024},
		{name: "second MBR partition", start: mbr(), off: 200<<20 + 65536},
		{name: "GPT partition", start: gpt(), off: 100<<20 + 1024},
		{name: "second GPT partition", start: gpt(), off: 200<<20 + 65536},
		{name: "no partition", off: 100<<20 + 65536, same: true},
		{name: "second GPT", off: size - 512},
		{name: "RAID superblock at the end", off: size - 64<<10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := diskImage(t, tt.start)
			sum := func() uint64 {
				t.Helper()
				f, err := fingerprint(d)
				if err != nil {
					t.Fatal(err)
				}
				return f.Sum
			}
			flip := func() {
				t.Helper()
				p := make([]byte, 4096)
				if _, err := d.ReadAt(p, tt.off&^4095); err != nil {
					t.Fatal(err)
				}
				p[tt.off&4095] ^= 1
				if _, err := d.WriteAt(p, tt.off&^4095); err != nil {
					t.Fatal(err)
				}
			}
			before := sum()
			flip()
			if got := sum() == before; got != tt.same {
				t.Errorf("the fingerprint is the same: %v, expected %v", got, tt.same)
			}
			flip()
			if sum() != before {
				t.Error("put back, and yet another fingerprint")
			}
		})
	}
}

// TestFingerprintLeavesTheHeaderOut: a start that writes the header and then dies must not look like a
// change of the device.
func TestFingerprintLeavesTheHeaderOut(t *testing.T) {
	d := diskImage(t, nil)
	h := &header.Header{Cache: cache.NewUUID(), Backing: cache.NewUUID(), DataOff: header.DataOff}
	if err := header.Write(d, h); err != nil {
		t.Fatal(err)
	}
	before, err := fingerprint(d)
	if err != nil {
		t.Fatal(err)
	}
	h.Start = 7
	if err := header.Write(d, h); err != nil {
		t.Fatal(err)
	}
	if got, err := header.Read(d); err != nil || got.Start != 7 {
		t.Fatalf("%+v, %v", got, err)
	}
	after, err := fingerprint(d)
	if err != nil || after.Sum != before.Sum {
		t.Errorf("the header changes the fingerprint (%v)", err)
	}
}

// FuzzPartitions: a partition table is the device's to invent.
func FuzzPartitions(f *testing.F) {
	f.Add(mbr(), false)
	f.Add(gpt(), true)
	f.Fuzz(func(t *testing.T, start []byte, big bool) {
		head := make([]byte, 1<<20)
		copy(head, start)
		sector := int64(512)
		if big {
			sector = 4096
		}
		for _, off := range partitions(head, sector) {
			if off < 0 {
				t.Fatalf("a partition at %d", off)
			}
		}
	})
}

package daemon

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "ubcache/attrs/client"
	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/control"
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

// TestNothingToCompare: a start after a crash says so if there is dirty data of a device, and nothing by which use without
// the cache would be noticed.
func TestNothingToCompare(t *testing.T) {
	for _, tt := range []struct {
		name                              string
		noChecksums, header, clean, drain bool
		end                               func(b *directBench)
		warned                            bool
	}{
		{name: "killed, all is dirty", end: (*directBench).crash, warned: true},
		{name: "killed, all is dirty, no checksums", noChecksums: true, end: (*directBench).crash, warned: true},
		{name: "killed, no checksums", noChecksums: true, clean: true, end: (*directBench).crash},
		{name: "killed, something is clean", clean: true, end: (*directBench).crash},
		{name: "killed, nothing is dirty", drain: true, end: (*directBench).crash},
		{name: "killed, nothing is dirty, no checksums", noChecksums: true, drain: true, end: (*directBench).crash},
		{name: "killed, with a header", header: true, end: (*directBench).crash},
		{name: "stopped", end: func(b *directBench) { must(b.t, b.Stop(context.Background(), true)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newDirectBench(t, directOptions{noChecksums: tt.noChecksums})
			_, err := b.attach(context.Background(), control.AttachArgs{
				Name: "disk2", Device: makeImage(t, filepath.Join(b.dir, "disk2"), directDiskBytes), UblkID: -1, Header: tt.header,
				Settings: map[string]string{"mode": "writeback", "writeback-delay": "1h"},
			}, nil)
			must(t, err)
			writeBack := func() {
				_, err := b.flush(context.Background(), control.NameArgs{Name: "disk2"}, func(control.Progress) {})
				must(t, err)
			}
			d := b.open(api.Options{Device: "disk2"})
			if tt.clean {
				must(t, b.writeAt(d, 1<<20, 1, 4096))
				writeBack()
			}
			must(t, b.writeAt(d, 0, 1, 8192))
			b.flushed(d)
			closeDevice(t, d)
			if tt.drain {
				writeBack()
			}
			tt.end(b)
			var notes []string
			b.opts.Note = func(s string) { notes = append(notes, s) }
			b.again()
			all := strings.Join(notes, "\n")
			if got := strings.Contains(all, "disk2: nothing shows whether it was used"); got != tt.warned ||
				got && !strings.Contains(all, "8.0 KiB of newer data") || strings.Contains(all, "disk0") {
				t.Errorf("it says: %s", all)
			}
			if n := b.Status().Devices[2].CachedBytes; n < 8192 {
				t.Errorf("%d bytes are cached", n)
			}
			d = b.open(api.Options{Device: "disk2"})
			b.wantAt(d, 0, 1, 8192)
			closeDevice(t, d)
		})
	}
}

// extHead is the first 4 KiB of an ext2 filesystem with that UUID.
func extHead(id byte) []byte {
	p := make([]byte, 4096)
	p[1080], p[1081] = 0x53, 0xef
	for i := range 16 {
		p[1024+104+i] = id
	}
	return p
}

// putHead writes the first 4 KiB of an image.
func putHead(t *testing.T, path string, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(p, 0)
	must(t, err)
	must(t, f.Close())
}

// TestNewFilesystem: a disk that has got another filesystem while the cache was stopped was used without it, and is the same
// disk. Of another size it is another one.
func TestNewFilesystem(t *testing.T) {
	for _, o := range []Options{{}, {Drop: []string{"disk0"}}, {Keep: []string{"disk0"}}} {
		b := newOldBench(t, "writethrough")
		disk := filepath.Join(b.dir, "disk0")
		b.stop()
		putHead(t, disk, extHead(1))
		b.again()
		d := b.open(api.Options{})
		b.wantAt(d, 1<<20, 0, 8192)
		closeDevice(t, d)
		b.stop() // the filesystem is on record
		if r, err := b.recordOf(1); err != nil || r.Identity.FSUUID == "" {
			t.Fatalf("%+v, %v", r, err)
		}
		putHead(t, disk, extHead(2)) // mkfs, or tune2fs -U
		must(t, os.Truncate(disk, directDiskBytes/2))
		wantRefused(t, b.start(o), "is not the backing device disk0", "bytes instead of")
		must(t, os.Truncate(disk, directDiskBytes))
		must(t, b.start(o))
		if n := b.Status().Devices[0].CachedBytes; (n > 0) != (o.Keep != nil) {
			t.Errorf("start %+v: %d bytes are cached", o, n)
		}
		b.stop()
		b.again() // it has that filesystem now
	}
}

// TestNewFilesystemIsSeen: also where no fingerprint can be compared.
func TestNewFilesystemIsSeen(t *testing.T) {
	b := newOldBench(t, "writethrough")
	d := diskImage(t, extHead(2))
	r, err := b.recordOf(1)
	must(t, err)
	r.Identity.FSType, r.Identity.FSUUID = "ext2", "01010101-0101-0101-0101-010101010101"
	for kind, want := range map[uint32]string{0: "", printKind + 1: "it holds an ext2 filesystem"} { // 0: used since that was recorded
		r.Print.Kind = kind
		if why := b.usedRaw(b.cache, r, "disk0", d, false, 0); want == "" && why != "" || !strings.HasPrefix(why, want) {
			t.Errorf("a fingerprint of kind %d: used raw %q, expected %q", kind, why, want)
		}
	}
}

// TestNewFilesystemWithDirtyData: neither has everything, and the operator decides.
func TestNewFilesystemWithDirtyData(t *testing.T) {
	for _, keep := range []bool{false, true} {
		b := newOldBench(t, "")
		b.write(1)
		b.stop()
		disk := filepath.Join(b.dir, "disk0")
		putHead(t, disk, extHead(2))
		wantRefused(t, b.start(Options{}), "was changed without the cache", "--drop disk0", "--keep disk0")
		if keep {
			must(t, b.start(Options{Keep: []string{"disk0"}}))
			b.want(1)
			continue
		}
		must(t, b.start(Options{Drop: []string{"disk0"}}))
		d := b.open(api.Options{})
		b.wantAt(d, 4096, 0, 4096)
		closeDevice(t, d)
	}
}

// TestRefusedStartChangesNoHeader: a start that is refused for one device does not write its number to the header of another, which
// may be missing at the next starts.
func TestRefusedStartChangesNoHeader(t *testing.T) {
	b := newOldBench(t, "writeback")
	first, last := filepath.Join(b.dir, "a"), filepath.Join(b.dir, "z")
	for _, disk := range []string{first, last} {
		name := filepath.Base(disk)
		must(t, b.attachData(name, makeImage(t, disk, directDiskBytes), disk == first, false))
		d := b.open(api.Options{Device: name})
		must(t, b.writeAt(d, 0, 7, 8192))
		b.flushed(d)
		closeDevice(t, d)
	}
	b.stop()
	copyImage(t, last, last+".good")
	writeFile(t, last, 0, 9, 4096)
	before := head(t, first)
	wantRefused(t, b.start(Options{}), "z was changed without the cache")
	if head(t, first) != before {
		t.Error("the refused start has changed the header of a")
	}
	copyImage(t, last+".good", last)
	must(t, os.Rename(first, first+".away"))
	for range 2 {
		b.again()
		b.stop()
	}
	must(t, os.Rename(first+".away", first))
	b.again()
	d := b.open(api.Options{Device: "a"})
	b.wantAt(d, 0, 7, 8192)
	closeDevice(t, d)
}

package daemon

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "ubcache/attrs/client"
	"ubcache/internal/control"
)

// smallDisk mounts a filesystem in memory that has so much room.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

// TestSSDFileOnAFullFilesystem: an SSD that is a sparse file cannot have all its blocks. Writes that it does
// not take go to the backing device; nothing fails, and nothing is lost.
func TestSSDFileOnAFullFilesystem(t *testing.T) {
	b := newDirectBench(t, directOptions{ssdDir: smallDisk(t, "96M")})
	d := b.open(api.Options{Bytes: 8 << 20})
	defer closeDevice(t, d)
	const piece, pieces = 256 << 10, 220 // 55 MiB
	for i := range pieces {
		if _, _, err := d.WriteAt(pattern(uint64(i), piece), int64(i)*piece, nil); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		if i%32 == 0 {
			_, err := d.Flush(nil)
			must(t, err)
		}
	}
	e := b.open(api.Options{Device: "disk1", Bytes: 8 << 20})
	defer closeDevice(t, e)
	for i := range pieces {
		if _, _, err := e.WriteAt(pattern(uint64(1000+i), piece), int64(i)*piece, nil); err != nil {
			t.Fatalf("write %d of disk1: %v", i, err)
		}
	}
	_, err := e.Flush(nil)
	must(t, err)
	s := b.Stats()
	if n := s.Devices["disk0"].SSDErrors + s.Devices["disk1"].SSDErrors; n == 0 {
		t.Fatal("the SSD's file had room for all")
	}
	check := func() {
		t.Helper()
		got := make([]byte, piece)
		for i := range pieces {
			for k, dev := range []*api.Device{d, e} {
				_, _, err := dev.ReadAt(got, int64(i)*piece, nil)
				must(t, err)
				if !bytes.Equal(got, pattern(uint64(1000*k+i), piece)) {
					t.Fatalf("piece %d of disk%d is something else", i, k)
				}
			}
		}
	}
	check()
	b.restart()
	check()
	for _, name := range []string{"disk0", "disk1"} {
		_, err := b.flush(context.Background(), control.NameArgs{Name: name}, func(control.Progress) {})
		must(t, err)
	}
	check()
}

// TestBackingFileOnAFullFilesystem: what a backing device that is a file cannot take is its writer's error, or
// stays dirty; it is not taken for gone.
func TestBackingFileOnAFullFilesystem(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	dir := smallDisk(t, "8M")
	_, err := b.attach(context.Background(), control.AttachArgs{
		Name: "thin", Device: makeImage(t, filepath.Join(dir, "disk"), 64<<20), UblkID: -1,
		Settings: map[string]string{"mode": "writeback", "sequential-cutoff": "0"},
	}, nil)
	must(t, err)
	t.Cleanup(func() { must(t, b.Stop(context.Background(), true)) }) // before the unmount
	d := b.open(api.Options{Device: "thin", Bytes: 8 << 20})
	defer closeDevice(t, d)
	s, err := b.find("thin")
	must(t, err)
	const piece, pieces = 256 << 10, 64
	for i := range pieces {
		_, _, err := d.WriteAt(pattern(uint64(i), piece), int64(i)*piece, nil)
		must(t, err)
	}
	must(t, b.cache.SetDrain(s.b.ID(), true))
	for end := time.Now().Add(20 * time.Second); b.Stats().Devices["thin"].BackingErrors == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("writeback meets no error")
		}
	}
	must(t, b.cache.SetDrain(s.b.ID(), false))
	must(t, b.cache.SetMode(s.b.ID(), 2)) // writearound
	_, _, err = d.WriteAt(pattern(1, piece), 48<<20, nil)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write that finds no space: %v", err)
	}
	got := make([]byte, piece)
	for i := range pieces {
		_, _, err := d.ReadAt(got, int64(i)*piece, nil)
		must(t, err)
		if !bytes.Equal(got, pattern(uint64(i), piece)) {
			t.Fatalf("piece %d is something else", i)
		}
	}
	if p := s.b.Presence(); p != 0 || s.b.Remaining() == 0 {
		t.Errorf("the device is %s, %d blocks are dirty", p, s.b.Remaining())
	}
	_, err = b.detach(context.Background(), control.DetachArgs{Name: "thin", NoWait: true}, nil)
	must(t, err)
}

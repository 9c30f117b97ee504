package daemon

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// deviceImage is the file of a device, opened beside the daemon and, as by it, past the page cache.
type deviceImage struct {
	name string
	f    *os.File
	mem  *uring.Arena
}

func openDeviceImage(t *testing.T, path string) *deviceImage {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil { // the daemon cannot either
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	must(t, err)
	mem, err := uring.NewArena(1 << 20)
	must(t, err)
	t.Cleanup(func() { _, _ = f.Close(), mem.Free() })
	return &deviceImage{filepath.Base(path), f, mem}
}

func (f *deviceImage) read(t *testing.T, off int64, p []byte) {
	t.Helper()
	_, err := f.f.ReadAt(f.mem.Slice(0, len(p)), off)
	must(t, err)
	copy(p, f.mem.Bytes())
}

func (f *deviceImage) write(t *testing.T, off int64, p []byte) {
	t.Helper()
	copy(f.mem.Bytes(), p)
	_, err := f.f.WriteAt(f.mem.Slice(0, len(p)), off)
	must(t, err)
}

// walk shows all blocks that are not holes.
func (f *deviceImage) walk(t *testing.T, show func(off int64, p []byte)) {
	t.Helper()
	fd := int(f.f.Fd())
	for at := int64(0); ; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return
		}
		must(t, err)
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		must(t, err)
		for from &^= blockBytes - 1; from < to; {
			n, err := f.f.ReadAt(f.mem.Bytes(), from)
			if n < blockBytes {
				t.Fatalf("read %s at %d: %d bytes, %v", f.name, from, n, err)
			}
			for i := 0; i+blockBytes <= n && from < to; i += blockBytes {
				show(from, f.mem.Slice(i, blockBytes))
				from += blockBytes
			}
		}
		at = to
	}
}

// find returns where on the device the contents of blocks are, by generation.
func (f *deviceImage) find(t *testing.T) map[uint64][]int64 {
	t.Helper()
	at := map[uint64][]int64{}
	f.walk(t, func(off int64, p []byte) {
		if binary.LittleEndian.Uint64(p) == contentMagic {
			gen := binary.LittleEndian.Uint64(p[8:])
			at[gen] = append(at[gen], off)
		}
	})
	return at
}

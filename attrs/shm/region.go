package shm

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options are those of a region.
type Options struct {
	// Bytes of data, rounded up to whole pages; 0 means 16 MiB, 4 GiB is the limit. The slots take
	// half as much again, of memory that is used only where data is.
	Bytes int64
	// Entries of the ring: a power of two, at most 4096; 0 makes a region without one.
	Entries int
}

const defaultBytes = 16 << 20

// Region is a client's side of a region: memory for the data of its requests, and slots.
//
// Requests that are under way together must not share a page; whoever gives out the memory sees to
// that. Otherwise the methods may be called by any goroutine.
type Region struct {
	memory
	fd  int
	seq atomic.Uint32
}

// Create makes a region.
func Create(o Options) (*Region, error) {
	if o.Bytes == 0 {
		o.Bytes = defaultBytes
	}
	if o.Bytes < 0 || o.Bytes > MaxPages*PageBytes {
		return nil, fmt.Errorf("%w: %d bytes of data", ErrLayout, o.Bytes)
	}
	l := layout{pages: int(roundUp(o.Bytes) / PageBytes), entries: o.Entries}
	if err := l.check(); err != nil {
		return nil, err
	}
	l = layoutOf(l.pages, l.entries)
	fd, err := sealedFile(l.size)
	if err != nil {
		return nil, fmt.Errorf("make shared memory: %w", err)
	}
	mem, err := mapMemory(fd, l.size)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	r := &Region{memory: memory{layout: l, mem: mem}, fd: fd}
	l.encode(mem)
	return r, nil
}

// needSeals are the seals without which a server refuses memory. Without F_SEAL_SEAL the client
// could still seal it against writing, and the server's stores would fail.
const needSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

func sealedFile(size int64) (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// Before Linux 6.3 there is no MFD_NOEXEC_SEAL, after it the kernel complains without it.
	fd, err := unix.MemfdCreate("ubcache", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("ubcache", flags)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	err = unix.Ftruncate(fd, size)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, needSeals)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// FD is the memfd, to be passed to servers. It belongs to the region.
func (r *Region) FD() int { return r.fd }

// Data is the memory for data, page-aligned, good until Close.
func (r *Region) Data() []byte { return r.mem[r.data:r.size:r.size] }

// Entries is the size of the ring, 0 without one.
func (r *Region) Entries() int { return r.entries }

// Offset is where in the data area a buffer lies; false if it does not.
func (r *Region) Offset(b []byte) (int64, bool) {
	if len(b) == 0 || r.mem == nil {
		return 0, false
	}
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	base := uintptr(unsafe.Pointer(unsafe.SliceData(r.mem))) + uintptr(r.data)
	if at < base || at-base >= uintptr(r.pages)*PageBytes {
		return 0, false
	}
	off := int64(at - base)
	return off, r.holds(off, int64(len(b)))
}

// Close unmaps the region. Nothing may be under way on it, and no buffer of it is good any more.
func (r *Region) Close() error {
	if r.mem == nil {
		return nil
	}
	err := errors.Join(unix.Munmap(r.mem), unix.Close(r.fd))
	r.mem, r.fd = nil, -1
	return err
}

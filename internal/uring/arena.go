package uring

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Arena is page-aligned memory outside the Go heap, which the kernel may read and write while Go
// code runs. It is zero at first. Free it only when no submission that names it is in flight.
type Arena struct{ b []byte }

// NoMemory makes NewArena fail; tests only.
var NoMemory atomic.Bool

// NewArena maps size bytes, rounded up to whole pages.
func NewArena(size int) (*Arena, error) {
	page := os.Getpagesize()
	if size <= 0 || size > 1<<46 {
		return nil, fmt.Errorf("map arena: invalid size %d", size)
	}
	size = (size + page - 1) &^ (page - 1)
	if NoMemory.Load() {
		return nil, fmt.Errorf("map arena of %d bytes: %w", size, unix.ENOMEM)
	}
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map arena of %d bytes: %w", size, err)
	}
	// A child made by fork must not share the pages: the parent's copy would move away from
	// under pinned I/O at the first write.
	_ = unix.Madvise(b, unix.MADV_DONTFORK)
	return &Arena{b: b}, nil
}

// FileArena is an arena that is also a file, so that a submission can copy between it and memory
// that is not mapped here, such as a registered buffer of the kernel's.
type FileArena struct {
	Arena
	fd int
}

// NewFileArena is NewArena with a file in memory behind it. Reads and writes of the file are done
// by whoever submits them, not by a worker thread.
func NewFileArena(size int) (*FileArena, error) {
	page := os.Getpagesize()
	if size <= 0 || size > 1<<46 {
		return nil, fmt.Errorf("make file arena: invalid size %d", size)
	}
	size = (size + page - 1) &^ (page - 1)
	a := &FileArena{fd: -1}
	memfd, err := unix.MemfdCreate("uring-arena", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file arena: %w", err)
	}
	defer func() { _ = unix.Close(memfd) }()
	if err := unix.Ftruncate(memfd, int64(size)); err != nil {
		return nil, fmt.Errorf("make file arena of %d bytes: %w", size, err)
	}
	// io_uring sends reads of a file that cannot do without waiting to a worker thread, and tmpfs does
	// not say that it can. O_NONBLOCK lets reads be tried at once, O_DIRECT writes; tmpfs, which
	// only copies, ignores both. O_DIRECT can only be had by opening the file by its name.
	name := fmt.Sprintf("/proc/self/fd/%d", memfd)
	a.fd, err = unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("open file arena: %w", err)
	}
	a.b, err = unix.Mmap(a.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map file arena of %d bytes: %w", size, err), a.Free())
	}
	return a, nil
}

// FD is the file; byte 0 of it is the arena's first. It is closed by Free.
func (a *FileArena) FD() int { return a.fd }

// Free unmaps the arena and closes the file. Calling it twice is harmless.
func (a *FileArena) Free() error {
	if a == nil {
		return nil
	}
	err := a.Arena.Free()
	if a.fd >= 0 {
		err = errors.Join(err, unix.Close(a.fd))
		a.fd = -1
	}
	return err
}

// Bytes is the whole arena.
func (a *Arena) Bytes() []byte { return a.b }

// Size is the length in bytes.
func (a *Arena) Size() int { return len(a.b) }

// Slice is n bytes from off, with no capacity beyond them.
func (a *Arena) Slice(off, n int) []byte { return a.b[off : off+n : off+n] }

// Addr is the address of the first byte, stable until Free.
func (a *Arena) Addr() uintptr { return Addr(a.b) }

// HugePages asks for transparent huge pages; it is advice and cannot fail.
func (a *Arena) HugePages() { _ = unix.Madvise(a.b, unix.MADV_HUGEPAGE) }

// Free unmaps the arena. Calling it twice is harmless.
func (a *Arena) Free() error {
	if a == nil || a.b == nil {
		return nil
	}
	b := a.b
	a.b = nil
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("unmap arena: %w", err)
	}
	return nil
}

// Addr is the address of b's first byte as the kernel sees it. b must lie outside the Go heap if
// the address is used after b could have been collected or, on a stack, moved.
func Addr(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

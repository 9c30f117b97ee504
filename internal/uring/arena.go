package uring

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Arena is page-aligned memory outside the Go heap, which the kernel may read and write while Go
// code runs. It is zero at first. Free it only when no submission that names it is in flight.
type Arena struct{ b []byte }

// NewArena maps size bytes, rounded up to whole pages.
func NewArena(size int) (*Arena, error) {
	page := os.Getpagesize()
	if size <= 0 || size > 1<<46 {
		return nil, fmt.Errorf("map arena: invalid size %d", size)
	}
	size = (size + page - 1) &^ (page - 1)
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

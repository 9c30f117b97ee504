package cache

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noMemory makes offHeap fail; tests only.
var noMemory atomic.Bool

// offHeapHeld is how many bytes offHeap has given out and has not got back; tests look at it.
var offHeapHeld atomic.Int64

// offHeap returns zeroed, page-aligned memory that the garbage collector does not see. Pages
// become resident when they are touched.
func offHeap(size int64) ([]byte, error) {
	size = max(roundUp(size, pageSize), pageSize)
	if noMemory.Load() {
		return nil, fmt.Errorf("allocate %d bytes: %w", size, unix.ENOMEM)
	}
	p, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	offHeapHeld.Add(size)
	return p, nil
}

// hugePages asks for large pages, which spares most of the address translations of random accesses.
// It is advice.
func hugePages(p []byte) { _ = unix.Madvise(p, unix.MADV_HUGEPAGE) }

func freeOffHeap(p []byte) {
	if p != nil {
		if unix.Munmap(p) == nil {
			offHeapHeld.Add(-int64(len(p)))
		}
	}
}

// wordsOf and halvesOf view off-heap memory as numbers of the machine.
func wordsOf(p []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(p))), len(p)/8)
}

func halvesOf(p []byte) []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(p))), len(p)/4)
}

// alignedBytes returns heap memory fit for O_DIRECT, for the control path.
func alignedBytes(size int) []byte {
	p := make([]byte, size+pageSize)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) & (pageSize - 1)
	return p[skip : skip+size : skip+size]
}

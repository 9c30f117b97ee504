package shm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory is a mapped region. Numbers in it are little-endian, as those of the machines that this is
// built for; on others a region is refused, as words that both sides change cannot be converted.
type memory struct {
	layout
	mem []byte
}

var errEndian = errors.New("shared memory needs a little-endian machine")

func bigEndian() bool { return binary.NativeEndian.Uint16([]byte{0, 1}) == 1 }

// mapMemory maps size bytes of a file.
func mapMemory(fd int, size int64) ([]byte, error) {
	if bigEndian() {
		return nil, errEndian
	}
	b, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map shared memory: %w", err)
	}
	return b, nil
}

// word is a word of the memory that both sides change; off is a multiple of its size.
func (m *memory) word(off int64) *uint32 { return (*uint32)(unsafe.Pointer(&m.mem[off : off+4][0])) }

func (m *memory) load(off int64) uint32 { return atomic.LoadUint32(m.word(off)) }

func (m *memory) store(off int64, v uint32) { atomic.StoreUint32(m.word(off), v) }

// claimOf is the claim word of an answer slot: free for that request, or taken by a device.
func claimOf(seq, device uint32) uint64 { return uint64(seq)<<32 | uint64(device) }

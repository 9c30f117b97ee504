// Package pi makes and checks the integrity metadata of a cached device: 32 bytes for each logical
// block, 16 opaque ones and then a protection information tuple of 16, as NVMe's 64-bit guard format
// and the kernel's block layer have it (LBMD_PI_CSUM_CRC64_NVME, block/t10-pi.c):
//
//	 0  opaque (16): the attributes of a write, the results of a read (attrs, compact form), or zeroes
//	16  guard, big-endian (8): CRC64-NVMe of the block and the opaque bytes
//	24  application tag, big-endian (2): 0xffff says that nothing is to be verified
//	26  reference tag, big-endian (6): the number of the logical block
package pi

import (
	"encoding/binary"
	"hash/crc64"
)

const (
	// Bytes is the metadata of one block, of which the tuple begins at TupleOff.
	Bytes    = 32
	TupleOff = 16

	// Flags and Checksum are what the kernel is told of the format: LBMD_PI_CAP_INTEGRITY and
	// LBMD_PI_CAP_REFTAG, and LBMD_PI_CSUM_CRC64_NVME, of linux/fs.h.
	Flags    = 1 | 2
	Checksum = 4
	// RefTagBytes is the size of the reference tag.
	RefTagBytes = 6

	appOff, refOff = 24, 26
	escape         = 0xffff
)

var table = crc64.MakeTable(0x9a6c9329ac4bc9b5)

// Guard is the CRC64-NVMe of a block and its opaque bytes.
func Guard(block, opaque []byte) uint64 {
	return crc64.Update(crc64.Update(0, table, block), table, opaque)
}

// Fill makes the metadata of whole blocks: the same opaque bytes, at most 16, for each, and tuples.
// lba is the number of the first block and len(meta) is Bytes for each.
func Fill(meta, data, opaque []byte, blockBytes int, lba uint64) {
	for len(data) >= blockBytes {
		m := meta[:Bytes]
		clear(m)
		copy(m[:TupleOff], opaque)
		binary.BigEndian.PutUint64(m[TupleOff:], Guard(data[:blockBytes], m[:TupleOff]))
		putRef(m[refOff:], lba)
		data, meta = data[blockBytes:], meta[Bytes:]
		lba++
	}
}

func putRef(b []byte, lba uint64) {
	binary.BigEndian.PutUint16(b, uint16(lba>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(lba))
}

// Check verifies whole blocks against their metadata and returns the index of the first that does
// not match.
func Check(meta, data []byte, blockBytes int, lba uint64) (bad int, ok bool) {
	for i := 0; len(data) >= blockBytes; i++ {
		m := meta[:Bytes]
		ref := uint64(binary.BigEndian.Uint16(m[refOff:]))<<32 |
			uint64(binary.BigEndian.Uint32(m[refOff+2:]))
		if binary.BigEndian.Uint16(m[appOff:]) != escape && (ref != lba&(1<<48-1) ||
			binary.BigEndian.Uint64(m[TupleOff:]) != Guard(data[:blockBytes], m[:TupleOff])) {
			return i, false
		}
		data, meta = data[blockBytes:], meta[Bytes:]
		lba++
	}
	return 0, true
}

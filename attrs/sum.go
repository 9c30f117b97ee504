package attrs

import (
	"hash/crc32"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// Sum is the checksum of a run of bytes, for instance one block of BlockSize. For an algorithm that
// is not known it is 0. It does not allocate, and any number of goroutines may call it.
func (a Algorithm) Sum(p []byte) uint64 {
	switch a {
	case XXH64:
		return xxhash.Sum64(p)
	case CRC32C:
		return uint64(crc32.Checksum(p, castagnoli))
	case CRC64NVMe:
		return crc64NVMe(p)
	}
	return 0
}

// AppendSums appends the checksums of data as [Checksum.Sums] has them, one for each BlockSize bytes.
// The last one is of what is left if that is less.
func (a Algorithm) AppendSums(dst, data []byte) []byte {
	for len(data) > 0 {
		n := min(BlockSize, len(data))
		dst = a.AppendSum(dst, a.Sum(data[:n]))
		data = data[n:]
	}
	return dst
}

// Matches says whether the block's data has the expected checksum of block i, which is less than
// Blocks.
func (c Checksum) Matches(i int, block []byte) bool {
	return c.Algorithm.Sum(block) == c.Sum(i)
}

// Verify compares data, whose first block is block first of those that c has checksums for, and
// returns the number of the first block that differs; ok if there is none. The data must not
// reach beyond the checksums.
func (c Checksum) Verify(first int, data []byte) (block int, ok bool) {
	for block = first; len(data) > 0; block++ {
		n := min(BlockSize, len(data))
		if !c.Matches(block, data[:n]) {
			return block, false
		}
		data = data[n:]
	}
	return 0, true
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// nvmePolynomial is that of the NVM Command Set Specification's 64b CRC, bits reversed. Its CRC
// begins with all ones and is inverted at the end. hash/crc64 takes any polynomial but is slow
// with those that it does not know, by a table for each byte.
const nvmePolynomial = 0x9a6c9329ac4bc9b5

// nvmeSlices is how many bytes the loop takes at a time, each with a table of its own.
const nvmeSlices = 16

type nvmeTables [nvmeSlices][256]uint64

// nvmeTable has, in row k, the remainder of a byte that k more bytes follow.
var nvmeTable = sync.OnceValue(func() *nvmeTables {
	t := &nvmeTables{}
	for i := range t[0] {
		crc := uint64(i)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ nvmePolynomial
			} else {
				crc >>= 1
			}
		}
		t[0][i] = crc
	}
	for k := 1; k < nvmeSlices; k++ {
		for i := range t[k] {
			crc := t[k-1][i]
			t[k][i] = t[0][byte(crc)] ^ crc>>8
		}
	}
	return t
})

func crc64NVMe(p []byte) uint64 {
	t := nvmeTable()
	crc := ^uint64(0)
	for ; len(p) >= nvmeSlices; p = p[nvmeSlices:] {
		a, b := crc^le.Uint64(p), le.Uint64(p[8:])
		crc = t[15][byte(a)] ^ t[14][byte(a>>8)] ^ t[13][byte(a>>16)] ^ t[12][byte(a>>24)] ^
			t[11][byte(a>>32)] ^ t[10][byte(a>>40)] ^ t[9][byte(a>>48)] ^ t[8][a>>56] ^
			t[7][byte(b)] ^ t[6][byte(b>>8)] ^ t[5][byte(b>>16)] ^ t[4][byte(b>>24)] ^
			t[3][byte(b>>32)] ^ t[2][byte(b>>40)] ^ t[1][byte(b>>48)] ^ t[0][b>>56]
	}
	for _, c := range p {
		crc = t[0][byte(crc)^c] ^ crc>>8
	}
	return ^crc
}

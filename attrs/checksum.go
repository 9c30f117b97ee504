package attrs

import "encoding/binary"

const (
	// BlockSize is how many bytes of data each checksum covers.
	BlockSize = 4096
	// MaxBlocks is how many checksums a set or a result can have: those of 1 MiB.
	MaxBlocks = 256
)

// Algorithm is how the checksums are computed; 0 is none.
type Algorithm uint8

// The algorithms. XXH64 has the seed 0. CRC64NVMe is the one of NVMe's 64-bit guard (Rocksoft).
const (
	XXH64 Algorithm = iota + 1
	CRC32C
	CRC64NVMe
)

func (a Algorithm) String() string { return valueName(IDChecksum, uint64(a)) }

// Width is the size of one checksum in bytes; 0 for an algorithm that is not known.
func (a Algorithm) Width() int {
	switch a {
	case XXH64, CRC64NVMe:
		return 8
	case CRC32C:
		return 4
	}
	return 0
}

// AppendSum appends a checksum as [Checksum.Sums] has it. Of a CRC32C the low 32 bits count.
func (a Algorithm) AppendSum(dst []byte, sum uint64) []byte {
	if a.Width() == 4 {
		return binary.LittleEndian.AppendUint32(dst, uint32(sum))
	}
	return binary.LittleEndian.AppendUint64(dst, sum)
}

// sum is checksum number i of those in raw.
func (a Algorithm) sum(raw []byte, i int) uint64 {
	if a.Width() == 4 {
		return uint64(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return binary.LittleEndian.Uint64(raw[8*i:])
}

// fits says whether raw is a whole number of checksums, of no more blocks than allowed.
func (a Algorithm) fits(raw []byte) bool {
	w := a.Width()
	return w != 0 && len(raw)%w == 0 && len(raw)/w <= MaxBlocks
}

// Checksum is the attribute: verify the data against Sums, return the checksums of the data, or
// both.
//
// Of a write the data is verified before anything is stored; of a read, before it is given out.
// What is returned are the checksums of the data of the request, whichever way it goes.
type Checksum struct {
	Algorithm Algorithm
	// Return asks for the checksums as a result.
	Return bool
	// Sums are the expected checksums, one for each BlockSize bytes of the data, little-endian,
	// of the algorithm's width and without gaps; empty means nothing to verify. The set refers
	// to it.
	Sums []byte
}

// Blocks is how many checksums there are to verify.
func (c Checksum) Blocks() int {
	if w := c.Algorithm.Width(); w != 0 {
		return len(c.Sums) / w
	}
	return 0
}

// Sum is the expected checksum of block i, which is less than Blocks.
func (c Checksum) Sum(i int) uint64 { return c.Algorithm.sum(c.Sums, i) }

// Flags in the second byte of the attribute's value.
const (
	checksumVerify = 1
	checksumReturn = 2
	checksumFlags  = checksumVerify | checksumReturn
)

// scalar is the start of the value as it is on the wire: algorithm, flags, zeroes.
func (c Checksum) scalar() uint64 {
	v := uint64(c.Algorithm)
	if len(c.Sums) != 0 {
		v |= checksumVerify << 8
	}
	if c.Return {
		v |= checksumReturn << 8
	}
	return v
}

// checkChecksum says what is wrong with a value of the attribute, in its two parts.
func checkChecksum(v uint64, sums []byte) Reason {
	a, flags := Algorithm(v), v>>8&0xff
	switch {
	case v>>16 != 0 || flags&^checksumFlags != 0:
		return ReasonReserved
	case a.Width() == 0 || flags == 0:
		return ReasonValue
	case flags&checksumVerify == 0 && len(sums) != 0:
		return ReasonSize
	case flags&checksumVerify != 0 && (len(sums) == 0 || !a.fits(sums)):
		return ReasonSize
	}
	return ReasonNone
}

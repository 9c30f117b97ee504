package attrs

import (
	"bytes"
	"hash/crc64"
	"math/rand/v2"
	"testing"
)

// TestSumVectors has the check values of the algorithms' specifications: xxHash's, RFC 3720
// (appendix B.4) for CRC32C, and the NVM Command Set Specification (64b CRC test cases) for
// CRC-64/NVME.
func TestSumVectors(t *testing.T) {
	up, down := make([]byte, BlockSize), make([]byte, BlockSize)
	for i := range up {
		up[i], down[i] = byte(i), byte(255-i)
	}
	zeroes, ones := make([]byte, BlockSize), bytes.Repeat([]byte{0xff}, BlockSize)
	for _, c := range []struct {
		a    Algorithm
		data []byte
		want uint64
	}{
		{XXH64, nil, 0xef46db3751d8e999},
		{XXH64, []byte("abc"), 0x44bc2cf5ad770999},
		{CRC32C, []byte("123456789"), 0xe3069283},
		{CRC32C, zeroes[:32], 0x8a9136aa},
		{CRC32C, ones[:32], 0x62a8ab43},
		{CRC32C, up[:32], 0x46dd794e},
		{CRC64NVMe, []byte("123456789"), 0xae8b14860a799888},
		{CRC64NVMe, zeroes, 0x6482d367eb22b64e},
		{CRC64NVMe, ones, 0xc0ddba7302eca3ac},
		{CRC64NVMe, up, 0x3e729f5f6750449c},
		{CRC64NVMe, down, 0x9a2df64b8e9e517e},
		{Algorithm(9), up, 0},
	} {
		if got := c.a.Sum(c.data); got != c.want {
			t.Errorf("%v of %d bytes: %#x, want %#x", c.a, len(c.data), got, c.want)
		}
	}
}

// TestCRC64Lengths compares with the library's way, at all lengths around the loop's step.
func TestCRC64Lengths(t *testing.T) {
	table := crc64.MakeTable(nvmePolynomial)
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 5*nvmeSlices)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for from := range nvmeSlices {
		for to := from; to <= len(p); to++ {
			if got, want := CRC64NVMe.Sum(p[from:to]), crc64.Checksum(p[from:to], table); got != want {
				t.Fatalf("bytes %d to %d: %#x, want %#x", from, to, got, want)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	data := make([]byte, 4*BlockSize)
	for i := range data {
		data[i] = byte(i * 7 / 3)
	}
	for _, a := range []Algorithm{XXH64, CRC32C, CRC64NVMe} {
		c := Checksum{Algorithm: a, Sums: a.AppendSums(nil, data)}
		if c.Blocks() != 4 {
			t.Fatalf("%v: %d checksums", a, c.Blocks())
		}
		for i := range 4 {
			if want := a.Sum(data[i*BlockSize:][:BlockSize]); c.Sum(i) != want {
				t.Errorf("%v of block %d: %#x, want %#x", a, i, c.Sum(i), want)
			}
		}
		if b, ok := c.Verify(0, data); !ok {
			t.Errorf("%v: block %d differs", a, b)
		}
		if b, ok := c.Verify(1, data[BlockSize:]); !ok {
			t.Errorf("%v, from block 1: block %d differs", a, b)
		}
		for _, at := range []int{0, BlockSize - 1, 2*BlockSize + 9, 4*BlockSize - 1} {
			bad := bytes.Clone(data)
			bad[at] ^= 0x10
			if b, ok := c.Verify(0, bad); ok || b != at/BlockSize {
				t.Errorf("%v: byte %d changed: block %d, %t", a, at, b, ok)
			}
		}
		if b, ok := c.Verify(1, data); ok || b != 1 {
			t.Errorf("%v: blocks moved by one: %d, %t", a, b, ok)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	data := make([]byte, BlockSize)
	for _, a := range []Algorithm{XXH64, CRC32C, CRC64NVMe} {
		b.Run(a.String(), func(b *testing.B) {
			b.SetBytes(BlockSize)
			b.ReportAllocs()
			for b.Loop() {
				sink += a.Sum(data)
			}
		})
	}
}

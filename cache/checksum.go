package cache

import "github.com/cespare/xxhash/v2"

// metaSum is the checksum of a metadata block: xxhash64 with the block's own place as the seed,
// so that a block written to the wrong place does not pass.
func metaSum(body []byte, off int64) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(uint64(off))
	_, _ = d.Write(body)
	return d.Sum64()
}

// dataSum is the checksum of the BlockSize bytes of a slot. The block's identity is mixed in, so
// that another block's data does not pass.
func dataSum(data []byte, key uint64) uint32 {
	h := xxhash.Sum64(data) + key*0x9e3779b97f4a7c15
	return uint32(h ^ h>>32)
}

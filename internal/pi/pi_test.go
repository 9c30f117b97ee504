package pi

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

// The check value of CRC-64/NVME, and the guard of a block of zeroes as NVMe's specification has it
// (64b guard, 4 KiB of zeroes, of ones, counting up).
func TestGuard(t *testing.T) {
	if g := Guard([]byte("12345"), []byte("6789")); g != 0xae8b14860a799888 {
		t.Errorf("guard of 123456789: %#x", g)
	}
	ones := bytes.Repeat([]byte{0xff}, 4096)
	for _, c := range []struct {
		data []byte
		want uint64
	}{{make([]byte, 4096), 0x6482d367eb22b64e}, {ones, 0xc0ddba7302eca3ac}} {
		if g := Guard(c.data, nil); g != c.want {
			t.Errorf("guard %#x, want %#x", g, c.want)
		}
	}
}

func TestFillCheck(t *testing.T) {
	const blocks = 3
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{512, 4096} {
		data := make([]byte, blocks*size)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		const lba = 1<<40 + 7
		meta := bytes.Repeat([]byte{0xee}, blocks*Bytes+1)
		Fill(meta, data, []byte{1, 2, 3}, size, lba)
		if meta[blocks*Bytes] != 0xee {
			t.Fatal("writes beyond its metadata")
		}
		want := "01020300000000000000000000000000"
		if got := hex.EncodeToString(meta[Bytes : Bytes+TupleOff]); got != want {
			t.Errorf("opaque bytes %s, want %s", got, want)
		}
		if got := hex.EncodeToString(meta[Bytes+appOff : 2*Bytes]); got != "0000010000000008" {
			t.Errorf("tags %s", got)
		}
		if bad, ok := Check(meta, data, size, lba); !ok {
			t.Errorf("block %d does not match its own metadata", bad)
		}
		for i := range meta[:blocks*Bytes] {
			if at := i % Bytes; at == appOff || at == appOff+1 {
				continue // any application tag but one is allowed
			}
			meta[i] ^= 0x10
			if bad, ok := Check(meta, data, size, lba); ok || bad != i/Bytes {
				t.Fatalf("byte %d of the metadata changed: %d %v", i, bad, ok)
			}
			meta[i] ^= 0x10
		}
		data[2*size+5] ^= 1
		if bad, ok := Check(meta, data, size, lba); ok || bad != 2 {
			t.Errorf("data changed: %d %v", bad, ok)
		}
		meta[2*Bytes+appOff], meta[2*Bytes+appOff+1] = 0xff, 0xff
		if _, ok := Check(meta, data, size, lba); !ok {
			t.Error("a block is verified although its tag says no")
		}
		if bad, ok := Check(meta, data, size, lba+1); ok || bad != 0 {
			t.Error("a block that belongs elsewhere is taken")
		}
	}
}

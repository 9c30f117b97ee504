//go:build vm

package vmtest

import (
	"bytes"
	"errors"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// asyncCheck is for issuers that use the client library.
var asyncCheck = attrCheck{"asynchronous", "trace=1", checkAsync}

// checkAsync: requests side by side, under way together, each with its own attributes and answers. Of reads
// every other one is cached; of writes with checksums the one that does not match fails alone.
func checkAsync(b *attrBench) {
	const n, size = 16, 4096
	b.reluctant()
	off := b.fresh()
	ops := make([]client.Op, n)
	for i := range ops {
		buf, err := b.client.Alloc(size)
		if err != nil {
			b.Fatal(err)
		}
		defer b.client.Free(buf)
		text := "hint=bypass"
		if i%2 == 0 {
			text = "hint=cache"
		}
		ops[i] = client.Op{Buf: buf, Off: off + int64(i)*size, Attrs: attrSet(b, text)}
	}
	all := func(want func(i int) error, ids ...attrs.ID) {
		b.Helper()
		for i := range ops {
			if err := b.client.Submit(&ops[i]); err != nil {
				b.Fatal(err)
			}
		}
		for i := range ops {
			err := ops[i].Wait()
			id := ids[i%len(ids)]
			if !errors.Is(err, want(i)) || err == nil && ops[i].Results.For(id).Status != attrs.Handled {
				b.Errorf("request %d: %v, error %v, want %v", i, ops[i].Results.For(id), err, want(i))
			}
		}
	}
	block := func(i int) attrs.Origin {
		_, r, err := b.client.ReadAt(ops[0].Buf, ops[i].Off, attrSet(b, "hint=bypass"))
		if err != nil {
			b.Error(err)
		}
		return r.Origin
	}
	all(func(int) error { return nil }, attrs.IDHint)
	for i := range ops {
		want := attrs.OriginBacking
		if i%2 == 0 {
			want = attrs.OriginSSD
		}
		if got := block(i); got != want {
			b.Errorf("request %d: the data is on %v, want %v", i, got, want)
		}
	}
	const wrong = 5
	for i := range ops {
		Fill(ops[i].Buf, uint64(off)+uint64(i))
		set := new(attrs.Set)
		set.SetChecksum(attrs.Checksum{
			Algorithm: attrs.CRC32C, Sums: attrs.CRC32C.AppendSums(nil, ops[i].Buf),
		})
		ops[i].Kind, ops[i].Attrs = client.Write, set
	}
	ops[wrong].Buf[77] ^= 1
	fails := func(i int) error {
		if i == wrong {
			return attrs.ErrnoMismatch
		}
		return nil
	}
	all(fails, attrs.IDChecksum)
	// What was written is there, and what was refused is not: its checksum says so.
	for i := range ops {
		ops[i].Kind = client.Read
	}
	all(fails, attrs.IDChecksum)
	// Each gets the checksums of its own data, also beside answers that are the same for all.
	for i := range ops {
		ops[i].Attrs = attrSet(b, "hint=cache")
		if i%4 != 0 {
			ops[i].Attrs = attrSet(b, "checksum=crc32c")
		}
	}
	for range 16 {
		all(func(int) error { return nil }, attrs.IDHint, attrs.IDChecksum, attrs.IDChecksum, attrs.IDChecksum)
		for i := range ops {
			want := attrs.CRC32C.AppendSums(nil, ops[i].Buf)
			if _, got := ops[i].Results.Checksums(); i%4 != 0 && !bytes.Equal(got, want) {
				b.Errorf("request %d: checksum %x, want %x", i, got, want)
			}
		}
	}
}

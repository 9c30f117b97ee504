//go:build vm

package vmtest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/internal/pi"
)

// integrityColumn is that of a program that sends integrity metadata of its own with io_uring: attributes
// go along with its writes, in the opaque bytes beside the tuples, and answers come back with its reads.
func integrityColumn(t *testing.T, table *attrTable, checks []attrCheck) {
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	backing := Slice(t, "slow", 0, 320)
	if !KernelAtLeast(t, "7.0") {
		Refused(t, 3, "needs Linux 7.0", "attach", backing, "--name=data", "--integrity")
		table.all("needs Linux 7.0")
		return
	}
	dev := c.Attach(t, backing, "data", "--mode=writeback", "--sequential-cutoff=0", "--writeback-delay=1h",
		"--integrity")
	b := newProgramBench(t, c)
	list := slices.Clone(checks)
	for i := range list {
		if list[i].name == "checksum" {
			// The tuple is one.
			list[i] = attrCheck{"checksum", "timing", checkTuples}
		}
	}
	b.columnOf(t, table, list, func(t *testing.T, b *attrBench) { b.attrIssuer = newPIRing(t, dev).issuer() })
	b.checkPlaces(t)
}

// issuer sends attributes with writes. What cannot be encoded cannot be said.
func (p *piRing) issuer() attrIssuer {
	turn := uint64(0)
	return attrIssuer{
		source: "integrity", answers: true, writes: true, pi: p,
		can: func(s *attrs.Set) bool {
			var b [attrs.CompactBytes]byte
			return !errors.Is(s.EncodeCompact(b[:]), attrs.ErrCompact)
		},
		do: func(t testing.TB, write bool, off int64, s *attrs.Set) (r attrs.Results, err error) {
			t.Helper()
			if write {
				var opaque []byte
				if s != nil {
					opaque = make([]byte, attrs.CompactBytes)
					if err := s.EncodeCompact(opaque); err != nil {
						t.Fatal(err)
					}
				}
				turn++
				Fill(p.data(attrBytes), turn)
				pi.Fill(p.meta(attrBytes), p.data(attrBytes), opaque, p.block, uint64(off)/uint64(p.block))
			} else if s != nil {
				t.Fatal("a read has no attributes on this channel")
			}
			if res := p.do(t, write, attrBytes, off); res < 0 {
				return r, unix.Errno(-res)
			} else if res != attrBytes {
				t.Errorf("%d bytes moved, want %d", res, attrBytes)
			}
			if !write {
				err = r.DecodeCompact(p.meta(attrBytes))
			}
			return r, err
		},
	}
}

// checkTuples: a write whose data or place does not match its tuples is refused and has no effect, and a
// read brings tuples that match.
func checkTuples(b *attrBench) {
	p, off := b.pi, b.fresh()
	lba := uint64(off) / uint64(p.block)
	if _, err := b.write(off, ""); err != nil {
		b.Fatal(err)
	}
	want := bytes.Clone(p.data(attrBytes))
	for name, spoil := range map[string]func(){
		"data":      func() { p.data(attrBytes)[5000] ^= 1 },
		"guard":     func() { p.meta(attrBytes)[pi.TupleOff] ^= 1 },
		"reference": func() { p.meta(attrBytes)[pi.Bytes-1] ^= 1 },
	} {
		Fill(p.data(attrBytes), 1)
		pi.Fill(p.meta(attrBytes), p.data(attrBytes), nil, p.block, lba)
		spoil()
		if res := p.do(b, true, attrBytes, off); res != -int32(attrs.ErrnoMismatch) {
			b.Errorf("%s that does not match: %d, want %d", name, res, -int32(attrs.ErrnoMismatch))
		}
		clear(p.data(attrBytes))
		if _, err := b.read(off, ""); err != nil || !bytes.Equal(p.data(attrBytes), want) {
			b.Errorf("%s: a refused write had an effect (%v)", name, err)
		}
		if bad, ok := pi.Check(p.meta(attrBytes), p.data(attrBytes), p.block, lba); !ok {
			b.Errorf("the metadata of block %d does not match its data", bad)
		}
	}
}

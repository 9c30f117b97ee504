package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"ubcache/attrs"
	"ubcache/cache"
	"ubcache/internal/pi"
	"ubcache/ublk"
)

// kernelMemory stands for the pages of a request, and its metadata, in the kernel.
type kernelMemory struct {
	data, meta []byte
	copied     func() // called after the metadata was copied out, if set
}

func (k *kernelMemory) CopyOut(_ *ublk.Request, off int64, dst []byte) error {
	copy(dst, k.data[off:])
	return nil
}

func (k *kernelMemory) CopyIn(_ *ublk.Request, off int64, src []byte) error {
	copy(k.data[off:], src)
	return nil
}

func (k *kernelMemory) CopyMetaOut(_ *ublk.Request, off int64, dst []byte) error {
	copy(dst, k.meta[off:])
	if k.copied != nil {
		k.copied()
	}
	return nil
}

func (k *kernelMemory) CopyMetaIn(_ *ublk.Request, off int64, src []byte) error {
	copy(k.meta[off:], src)
	return nil
}

// corruptMetadata changes the data of block i, or one of the fields that guard it.
func (c *corruptor) corruptMetadata(data, meta []byte, i, block int) {
	m := meta[i*pi.Bytes:][:pi.Bytes]
	bit := byte(1) << c.rng.IntN(8)
	switch c.rng.IntN(5) {
	case 0:
		data[i*block+c.rng.IntN(block)] ^= bit
	case 1: // opaque
		m[c.rng.IntN(pi.TupleOff)] ^= bit
	case 2: // guard
		m[pi.TupleOff+c.rng.IntN(8)] ^= bit
	case 3: // reference tag
		m[pi.TupleOff+10+c.rng.IntN(pi.RefTagBytes)] ^= bit
	case 4: // data and tuple of a block that belongs elsewhere
		c.corrupt(data[i*block:][:block], 0)
		lba := c.rng.Uint64N(1<<40) + 1<<41
		pi.Fill(m, data[i*block:][:block], m[:pi.TupleOff], block, lba)
	}
}

// metadata changes what goes along with integrity metadata: from the kernel to the cache, which finds
// it, and from the cache to the kernel, which finds it by what the cache has made. What the daemon
// accepts is given to the engine by the direct channel, as there is no ublk here.
func (c *corruptor) metadata(count int) {
	w, r := c.table.row("integrity metadata, write"), c.table.row("integrity metadata, read")
	k := c.disks[0]
	const most = 8
	base := c.take(k, 64)
	c.write(k, base, 64)
	var said []error
	g := &integrity{
		meta: make([]byte, most*8*pi.Bytes), fail: func(err error) { said = append(said, err) },
	}
	for i := range count {
		g.block = []int{512, blockBytes}[i%2]
		n := 1 + c.rng.IntN(most)
		first := base + c.rng.IntN(64-n)
		req := &ublk.Request{
			Op: ublk.OpWrite, Flags: ublk.HasIntegrity,
			Sector: uint64(first) * 8, Sectors: uint32(n) * 8,
		}
		lba := uint64(req.Offset()) / uint64(g.block)
		blocks := n * blockBytes / g.block
		gens, good := c.fresh(n)
		m := &kernelMemory{data: bytes.Clone(good), meta: make([]byte, blocks*pi.Bytes)}
		g.q = m
		opaque := make([]byte, pi.TupleOff)
		fill(opaque, uint64(i))
		pi.Fill(m.meta, m.data, opaque, g.block, lba)
		bad := c.rng.IntN(blocks)
		w.injected++
		if late := i%8 == 0; late {
			m.copied = func() { c.corruptMetadata(m.data, m.meta, bad, g.block) }
			if c.receive(w, g, req, good, gens, first) {
				w.harmless++
			}
		} else {
			c.corruptMetadata(m.data, m.meta, bad, g.block)
			said = nil
			got := make([]byte, len(good))
			_, errno := g.receive(req, got)
			text := fmt.Sprintf("block %d ", lba+uint64(bad))
			if errors.Is(errno, attrs.ErrnoMismatch) && len(said) == 1 &&
				strings.Contains(said[0].Error(), text) {
				w.reported++
			} else {
				c.t.Errorf("%s: %sis bad: %v, %v", w.where, text, errno, said)
			}
		}
		c.deliver(r, g, m, first, n)
	}
	c.wantBlocks(w, k, base, 64, true)
}

// receive has a write verified and done.
func (c *corruptor) receive(w *corruptionRow, g *integrity, req *ublk.Request, good []byte, gens []uint64,
	first int,
) bool {
	c.t.Helper()
	got := make([]byte, len(good))
	if _, errno := g.receive(req, got); errno != 0 {
		c.t.Errorf("%s: %v", w.where, errno)
		return false
	}
	k := c.disks[0]
	_, _, err := k.d.WriteAt(got, int64(first)*blockBytes, nil)
	must(c.t, err)
	copy(k.has[first:], gens)
	return c.wantBlocks(w, k, first, len(gens), true)
}

// deliver reads blocks, has metadata made for them and changes something before it is looked at.
func (c *corruptor) deliver(r *corruptionRow, g *integrity, m *kernelMemory, first, n int) {
	c.t.Helper()
	req := &ublk.Request{
		Op: ublk.OpRead, Flags: ublk.HasIntegrity, Sector: uint64(first) * 8, Sectors: uint32(n) * 8,
	}
	lba := uint64(req.Offset()) / uint64(g.block)
	q := &cache.Request{Op: cache.ReqRead, Data: make([]byte, n*blockBytes)}
	_, _, err := c.disks[0].d.ReadAt(q.Data, req.Offset(), nil)
	must(c.t, err)
	r.injected++
	must(c.t, g.deliver(req, q))
	if bad, ok := pi.Check(m.meta, m.data, g.block, lba); !ok ||
		!bytes.Equal(m.data, c.contents(c.disks[0], first, n)) {
		c.t.Errorf("%s: block %d is bad before anything was changed", r.where, bad)
		return
	}
	bad := c.rng.IntN(len(m.data) / g.block)
	c.corruptMetadata(m.data, m.meta, bad, g.block)
	switch got, ok := pi.Check(m.meta, m.data, g.block, lba); {
	case ok:
		r.good++
	case got == bad:
		r.reported++
	}
}

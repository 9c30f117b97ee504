package daemon

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/cache"
	"ubcache/internal/pi"
	"ubcache/ublk"
)

// integrity is what a queue needs for a device with integrity metadata (package pi). The kernel
// gives the metadata in mode UserCopy only, so data passes through memory of the queue; there it is
// verified, and what the engine gets has been.
//
// The metadata of a write is verified and not kept: on the SSD the cache's own checksums take over,
// and most backing devices have no room for it. That of a read is made from data that was verified.
type integrity struct {
	q     metadataPort
	block int
	max   int         // bytes of a request at most
	mem   *ublk.Arena // max bytes a tag
	meta  []byte      // of the request at hand
	metas *ublk.Arena
	fail  func(error)
}

// metadataPort is what moves the data and metadata of a request: a queue, or a test.
type metadataPort interface {
	CopyOut(r *ublk.Request, off int64, dst []byte) error
	CopyIn(r *ublk.Request, off int64, src []byte) error
	CopyMetaOut(r *ublk.Request, off int64, dst []byte) error
	CopyMetaIn(r *ublk.Request, off int64, src []byte) error
}

// integrityOf makes what a queue of such a device needs; nil if its device has no metadata.
func integrityOf(q *ublk.Queue, fail func(error)) (*integrity, error) {
	o := q.Device().Options()
	p := o.Params.Integrity
	if p == nil {
		return nil, nil
	}
	if p.MetadataBytes != pi.Bytes || p.PIOffset != pi.TupleOff || p.Checksum != pi.Checksum {
		return nil, fmt.Errorf("device %s has integrity metadata of another format",
			q.Device().Path())
	}
	g := &integrity{
		q: q, block: int(o.Params.LogicalBlockBytes), max: o.MaxIOBytes, fail: fail,
	}
	var err error
	if g.mem, err = ublk.NewArena(q.Depth() * g.max); err != nil {
		return nil, err
	}
	if g.metas, err = ublk.NewArena(g.max / g.block * pi.Bytes); err != nil {
		g.close()
		return nil, err
	}
	g.meta = g.metas.Bytes()
	return g, nil
}

func (g *integrity) close() {
	if g != nil {
		_ = g.mem.Free()
		_ = g.metas.Free()
	}
}

// data is the queue's memory for a request.
func (g *integrity) data(r *ublk.Request) []byte {
	return g.mem.Slice(int(r.Tag)*g.max, int(r.Bytes()))
}

// receive gets the data of a write and verifies it, before it has any effect. It returns the opaque
// bytes of the first block, which are good until the next call.
func (g *integrity) receive(r *ublk.Request, data []byte) (opaque []byte, errno syscall.Errno) {
	if err := g.q.CopyOut(r, 0, data); err != nil {
		g.fail(err)
		return nil, unix.EIO
	}
	if r.Flags&ublk.HasIntegrity == 0 {
		return nil, 0
	}
	meta := g.meta[:len(data)/g.block*pi.Bytes]
	if err := g.q.CopyMetaOut(r, 0, meta); err != nil {
		g.fail(err)
		return nil, unix.EIO
	}
	lba := uint64(r.Offset()) / uint64(g.block)
	if bad, ok := pi.Check(meta, data, g.block, lba); !ok {
		g.fail(fmt.Errorf("write to block %d refused: its data does not match its checksum",
			lba+uint64(bad)))
		return nil, attrs.ErrnoMismatch
	}
	return meta[:pi.TupleOff], 0
}

// deliver gives out the data of a read with metadata for it, and the results beside that.
func (g *integrity) deliver(r *ublk.Request, c *cache.Request) error {
	if err := g.q.CopyIn(r, 0, c.Data); err != nil {
		return err
	}
	if r.Flags&ublk.HasIntegrity == 0 {
		return nil
	}
	var opaque [pi.TupleOff]byte
	if c.Results != nil {
		_ = c.Results.EncodeCompact(opaque[:])
	}
	meta := g.meta[:len(c.Data)/g.block*pi.Bytes]
	pi.Fill(meta, c.Data, opaque[:], g.block, uint64(r.Offset())/uint64(g.block))
	return g.q.CopyMetaIn(r, 0, meta)
}

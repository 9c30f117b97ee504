// Package header is the block that `ubcache attach --header` writes at the start of a backing
// device. It keeps the device from being mounted raw by accident, as what the cached device holds
// begins behind it, and it names the cache that may have newer data.
//
// There are two copies, of 4096 bytes each, at 4096 and at 512 KiB. All numbers are little-endian:
//
//	offset  size  field
//	     0     8  magic "UBCBACK" 01
//	     8     4  version, 1
//	    12     4  reserved, 0
//	    16     8  sequence: the newer copy counts
//	    24     8  own location, bytes from the start of the device
//	    32     8  checksum: xxhash64 of the block with this field 0, seeded with the location
//	    40    16  UUID of the cache; zero when detached
//	    64    16  UUID of the backing device in that cache
//	    80     8  data offset: where the cached device begins, in bytes
//	    88     8  size of the cached device in bytes
//	    96     8  size of the backing device in bytes
//	   104     8  0, or 2 and the number of blocks that had no copy but the SSD's when the cache lost it and
//	              the backing device was changed without it, or 1 if that is not known; such a block has
//	              version 2, as programs that know only version 1 must not use it
//	   112     8  epoch of the cache at that time
//	   120     8  epoch of the cache at its last start with this device; 0: not known
package header

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"

	"ubcache/cache"
)

const (
	magic      = "UBCBACK\x01"
	version    = 2 // the newest that is read; 1 is written where nothing says 2
	blockBytes = 4096

	// DataOff is where the cached device begins on a backing device with a header.
	DataOff = 1 << 20
)

// locations of the copies; the magic of the first is what probes look for.
var locations = [2]int64{4096, 512 << 10}

// Header is the content of the block.
type Header struct {
	Seq        uint64
	Cache      cache.UUID
	Backing    cache.UUID
	DataOff    int64
	Size       int64 // of the cached device
	DeviceSize int64
	Start      uint64 // epoch of the cache at its last start with this device; 0: not known
	// Missed says that the cache's SSD has missed changes of this device, when its epoch was Epoch, and
	// had Dirty blocks of it that are nowhere else; -1: not known.
	Missed bool
	Dirty  int64
	Epoch  uint64
}

// Errors that a caller can act on.
var (
	ErrNone    = errors.New("no backing header")
	ErrNewer   = errors.New("backing header was written by a newer ubcache")
	ErrCorrupt = errors.New("backing header is damaged")
)

func (h *Header) encode(off int64) []byte {
	p := make([]byte, blockBytes)
	le := binary.LittleEndian
	copy(p, magic)
	le.PutUint32(p[8:], 1)
	if h.Missed {
		le.PutUint32(p[8:], 2)
		le.PutUint64(p[104:], uint64(h.Dirty+2))
		le.PutUint64(p[112:], h.Epoch)
	}
	le.PutUint64(p[16:], h.Seq)
	le.PutUint64(p[24:], uint64(off))
	copy(p[40:], h.Cache[:])
	copy(p[64:], h.Backing[:])
	le.PutUint64(p[80:], uint64(h.DataOff))
	le.PutUint64(p[88:], uint64(h.Size))
	le.PutUint64(p[96:], uint64(h.DeviceSize))
	le.PutUint64(p[120:], h.Start)
	le.PutUint64(p[32:], sum(p, off))
	return p
}

// decode reads the copy found at off.
func decode(p []byte, off int64) (*Header, error) {
	le := binary.LittleEndian
	if len(p) < blockBytes || string(p[:8]) != magic {
		return nil, ErrNone
	}
	if v := le.Uint32(p[8:]); v > version {
		return nil, fmt.Errorf("%w: version %d, this one knows %d", ErrNewer, v, version)
	}
	q := append([]byte(nil), p[:blockBytes]...)
	clear(q[32:40])
	if sum(q, off) != le.Uint64(p[32:]) || le.Uint64(p[24:]) != uint64(off) {
		return nil, fmt.Errorf("%w: the copy at %d fails its checksum", ErrCorrupt, off)
	}
	h := &Header{
		Seq: le.Uint64(p[16:]), DataOff: int64(le.Uint64(p[80:])), Size: int64(le.Uint64(p[88:])),
		DeviceSize: int64(le.Uint64(p[96:])), Start: le.Uint64(p[120:]),
	}
	if n := le.Uint64(p[104:]); n != 0 {
		h.Missed, h.Dirty, h.Epoch = true, int64(n)-2, le.Uint64(p[112:])
	}
	copy(h.Cache[:], p[40:])
	copy(h.Backing[:], p[64:])
	return h, nil
}

// sum is the checksum of a block whose checksum field is zero.
func sum(p []byte, off int64) uint64 {
	d := xxhash.NewWithSeed(uint64(off))
	_, _ = d.Write(p)
	return d.Sum64()
}

// Read returns the newer valid copy, or ErrNone.
func Read(r io.ReaderAt) (*Header, error) {
	var best *Header
	var firstErr error
	p := make([]byte, blockBytes)
	for _, off := range locations {
		_, err := r.ReadAt(p, off)
		var h *Header
		if err == nil {
			h, err = decode(p, off)
		}
		if errors.Is(err, ErrNewer) {
			return nil, err
		}
		if err != nil && (firstErr == nil || errors.Is(firstErr, ErrNone)) {
			firstErr = err
		}
		if h != nil && (best == nil || h.Seq > best.Seq) {
			best = h
		}
	}
	if best == nil {
		return nil, firstErr
	}
	return best, nil
}

// Blank zeroes, in what was read from the start of a device, the places of the header.
func Blank(head []byte) {
	for _, off := range locations {
		if off < int64(len(head)) {
			clear(head[off:min(off+blockBytes, int64(len(head)))])
		}
	}
}

// Copy is one of the copies as it is on the device.
type Copy struct {
	Off    int64
	Header *Header
	Err    error
}

// ReadCopies reads both copies.
func ReadCopies(r io.ReaderAt) (list []Copy) {
	p := make([]byte, blockBytes)
	for _, off := range locations {
		k := Copy{Off: off}
		if _, k.Err = r.ReadAt(p, off); k.Err == nil {
			k.Header, k.Err = decode(p, off)
		}
		list = append(list, k)
	}
	return list
}

// Write makes h durable in both copies, one after the other.
func Write(d cache.Storage, h *Header) error {
	h.Seq++
	for _, off := range locations {
		if _, err := d.WriteAt(h.encode(off), off); err != nil {
			return fmt.Errorf("write backing header: %w", err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("flush backing header: %w", err)
		}
	}
	return nil
}

// Clear makes the reserved area zeroes, so that nothing old is recognised there.
func Clear(d cache.Storage) error {
	if _, err := d.WriteAt(make([]byte, DataOff), 0); err != nil {
		return fmt.Errorf("clear start of device: %w", err)
	}
	return nil
}

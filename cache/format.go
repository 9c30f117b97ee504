package cache

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"
)

// FormatOptions are for Format. The zero value is usable.
type FormatOptions struct {
	Label       string
	BucketBytes int64 // 0: 1 MiB
	NoChecksums bool
	UUID        UUID      // zero: a random one
	Now         time.Time // zero: the present
}

// Format makes a device a cache. What was on it is gone; whether that may be is the caller's to
// find out.
func Format(dev Storage, o FormatOptions) (*Superblock, error) {
	if o.BucketBytes == 0 {
		o.BucketBytes = defaultBucketBytes
	}
	if len(o.Label) > supLabelLen {
		return nil, fmt.Errorf("label is longer than %d bytes", supLabelLen)
	}
	if o.UUID == (UUID{}) {
		o.UUID = newUUID()
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	g, err := planGeometry(dev.Size(), o.BucketBytes)
	if err != nil {
		return nil, err
	}
	// Whatever a signature said of the device is no longer true. Journal and summary pages of an
	// earlier cache carry its UUID and need not be wiped.
	zero := alignedBytes(journalOff)
	if _, err := dev.WriteAt(zero, 0); err != nil {
		return nil, fmt.Errorf("wipe start of device: %w", err)
	}
	if err := dev.Sync(); err != nil {
		return nil, fmt.Errorf("flush device: %w", err)
	}
	sb := &Superblock{
		UUID: o.UUID, Label: o.Label, Clean: true, Checksums: !o.NoChecksums,
		Created: o.Now.UTC(), NextID: 1, Geometry: g,
	}
	if err := writeSuper(dev, sb); err != nil {
		return nil, err
	}
	return sb, nil
}

// Wipe makes a cache device an ordinary one again.
func Wipe(dev Storage) error {
	zero := alignedBytes(superBytes)
	for _, off := range []int64{superOffA, superOffB} {
		if _, err := dev.WriteAt(zero, off); err != nil {
			return fmt.Errorf("wipe superblock: %w", err)
		}
	}
	return dev.Sync()
}

func newUUID() UUID {
	var u UUID
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}

// cacheID is what journal and summary pages carry of the UUID.
func cacheID(u UUID) uint64 { return binary.LittleEndian.Uint64(u[:]) }

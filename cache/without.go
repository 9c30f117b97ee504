package cache

import (
	"errors"
	"fmt"
	"slices"
)

// OpenWithout starts a cache whose SSD is not there, with a copy of its superblock: the backing devices are served
// at their own speed, as after a loss (lost.go). It knows nothing of what the SSD has, so each first change of
// a device is one that the SSD misses. The caller makes sure that the SSD has no dirty data of the devices that
// are used, or that it is given up. When the SSD is back, the cache has to be opened with it. Options.Pending is
// left as it is: what it has is for then.
func OpenWithout(sb *Superblock, o Options) (*Cache, error) {
	own := *sb
	own.Backings = slices.Clone(sb.Backings)
	o.Pending = nil
	if err := own.Geometry.check(own.Geometry.DeviceBytes); err != nil {
		return nil, err
	}
	c, err := newCache(noSSD{own.Geometry.DeviceBytes}, &own, o)
	if err != nil {
		return nil, err
	}
	c.blind = true
	j := &c.journal
	j.mu.next = 1
	j.durableLSN.Store(1)
	j.mu.ring.reset(own.UUID, own.Epoch, j.mu.ring.cap, j.mu.next, c.untold())
	h := &c.ssdHealth
	h.mu.why, h.mu.unsafe = "it was not there at the start", map[key]struct{}{}
	h.losses.Add(1)
	h.state.Store(uint32(HealthLost))
	h.settled.Store(true)
	return c, nil
}

// noSSD is the Storage of an SSD that is not there.
type noSSD struct{ size int64 }

func (s noSSD) Size() int64                      { return s.size }
func (noSSD) ReadAt([]byte, int64) (int, error)  { return 0, ErrSSDLost }
func (noSSD) WriteAt([]byte, int64) (int, error) { return 0, ErrSSDLost }
func (noSSD) Sync() error                        { return ErrSSDLost }

// Marshal encodes a superblock for another place than an SSD, for OpenWithout.
func (sb *Superblock) Marshal() []byte { return sb.encode(superOffA) }

// UnmarshalSuper reads what Marshal has made. A damaged one is ErrCorrupt.
func UnmarshalSuper(p []byte) (*Superblock, error) {
	sb, err := decodeSuper(p, superOffA)
	if errors.Is(err, ErrNotCache) {
		err = fmt.Errorf("%w: not a superblock", ErrCorrupt)
	}
	return sb, err
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ubcache/attrs/shm"
	"ubcache/ublk"
)

// errNotShared: a block device cannot take requests with shared memory. Clients use the ring then.
var errNotShared = errors.New("the block device takes no shared memory")

// shareTime bounds the registration of a client's memory, for which the driver waits until all I/O
// of the device is done.
const shareTime = 30 * time.Second

// registration is a client's memory at one block device.
type registration struct {
	s     *served
	d     *ublk.Device
	index int
}

// share registers a client's memory with a block device: requests with their data in it then arrive
// with the client's attributes, also through filesystems and device-mapper above.
func (in *Instance) share(ctx context.Context, s *served, v *shm.View) (*registration, error) {
	in.mu.Lock()
	d := s.ublk
	in.mu.Unlock()
	if d == nil || !d.Features().Has(ublk.FeatureSharedMemory) {
		return nil, errNotShared
	}
	mem, err := v.Data(0, v.DataBytes())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	index, err := d.RegisterShared(ctx, mem, false)
	if err != nil {
		return nil, fmt.Errorf("register memory with %s: %w", d.Path(), err)
	}
	s.shared.set(index, v)
	return &registration{s, d, index}, nil
}

// unshare takes a client's memory back from a block device; no request has it when it returns. With a
// device that is gone its registrations are too.
func (in *Instance) unshare(ctx context.Context, r *registration) error {
	in.mu.Lock()
	there := r.s.ublk == r.d
	in.mu.Unlock()
	if !there {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	err := r.d.UnregisterShared(ctx, r.index)
	if err != nil && !errors.Is(err, ublk.ErrNotFound) {
		return fmt.Errorf("take memory back from %s: %w", r.d.Path(), err)
	}
	r.s.shared.set(r.index, nil)
	return nil
}

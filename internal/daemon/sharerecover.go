package daemon

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
)

const (
	// tendEvery is how often it is looked whether clients that have not come back still live.
	tendEvery = 2 * time.Second
	// maxUnknown is how many indices there may be of which nothing is on record.
	maxUnknown = 64
)

// recover finds the memory that an earlier daemon has registered with the device. It happens before the
// device serves: the requests that the earlier daemon had not answered come with those indices. Until
// then nothing can be registered or unregistered either. s.mu is held.
func (s *sharing) recover() {
	r, err := s.load()
	if err != nil {
		s.log.Error("clients have to open the device anew to share memory with it", "error", err)
	}
	if r == nil {
		s.suspect(nil, maxUnknown)
		s.mu.merges = s.lostMerges()
		return
	}
	s.mu.merges = r.Merges
	s.mu.stale = r.Stale
	unknown := 0
	for i := range r.Buffers {
		b := &r.Buffers[i]
		if b.Index == noIndex {
			unknown = len(r.Buffers) + len(r.Stale)
			continue
		}
		v, err := b.take()
		if err != nil {
			s.log.Info("memory of a client is not there any more", "index", b.Index,
				"pid", b.Owner.PID, "why", err)
			s.mu.stale = append(s.mu.stale, b.Index)
			continue
		}
		s.mu.list = append(s.mu.list, &registration{
			s: s, index: b.Index, owner: b.Owner, memory: b.Memory, view: v, found: true,
		})
		s.table.set(b.Index, v)
	}
	if unknown > 0 {
		s.suspect(r, unknown)
	}
}

// suspect counts indices up to limit as registered of which nothing is on record. The driver gives out
// the lowest that is free, so one that was given out while n others were taken is n at most.
func (s *sharing) suspect(r *sharedRecord, limit int) {
	known := map[int]bool{}
	if r != nil {
		for i := range r.Buffers {
			known[r.Buffers[i].Index] = true
		}
		for _, i := range r.Stale {
			known[i] = true
		}
	}
	for i := range limit + 1 {
		if !known[i] {
			s.mu.stale = append(s.mu.stale, i)
		}
	}
}

// take maps a client's memory again.
func (b *sharedBuffer) take() (*shm.View, error) {
	fd, err := b.Owner.memory(b.Memory)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	v, err := shm.Open(fd, b.DataBytes) // it was within the limits when it was registered
	if err != nil {
		return nil, err
	}
	if v.DataBytes() != b.DataBytes || v.Entries() != b.Entries {
		_ = v.Close()
		return nil, errors.New("its client has changed the layout")
	}
	return v, nil
}

// settle unregisters what nobody has any more. It is called once the device serves.
func (s *sharing) settle(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.dev == nil {
		return
	}
	was := len(s.mu.stale)
	var left []int
	for i, index := range s.mu.stale {
		if err := s.unregister(ctx, index); err != nil {
			// It waits for I/O that hangs, and so would the others. It is tried again later.
			s.log.Error("memory stays registered", "index", index, "error", err)
			left = slices.Clone(s.mu.stale[i:])
			break
		}
	}
	s.mu.stale = left
	if len(s.mu.list) == 0 {
		s.allowMerges()
	}
	if was != len(left) {
		if err := s.save(); err != nil {
			s.log.Warn("record of registered memory", "error", err)
		}
	}
}

// tend unregisters the memory of clients that have not come back and have given it up, or ended.
func (s *sharing) tend(ctx context.Context) {
	s.mu.Lock()
	var waiting []*registration
	var owners []process
	for _, r := range s.mu.list {
		if !r.held && s.mu.dev != nil {
			waiting, owners = append(waiting, r), append(owners, r.owner)
		}
	}
	stale := len(s.mu.stale) > 0
	s.mu.Unlock()
	if stale {
		s.settle(ctx)
	}
	for i, r := range waiting {
		fd, err := owners[i].memory(r.memory)
		if err == nil {
			_ = unix.Close(fd)
			continue
		}
		if err := s.giveUp(ctx, r); err != nil && !errors.Is(err, errHandedOver) {
			s.log.Error("memory of a client is kept", "pid", owners[i].PID, "error", err)
		}
	}
}

// giveUp is drop unless a client has come back in the meantime.
func (s *sharing) giveUp(ctx context.Context, r *registration) error {
	s.mu.Lock()
	if r.held {
		s.mu.Unlock()
		return nil
	}
	r.held = true // so that nobody comes back to it
	s.mu.Unlock()
	err := s.drop(ctx, r)
	if err != nil {
		s.mu.Lock()
		r.held = false
		s.mu.Unlock()
	}
	return err
}

// settleShares is settle for all devices.
func (in *Instance) settleShares(ctx context.Context) {
	for _, s := range in.list() {
		s.shared.settle(ctx)
	}
}

// tendShares looks after clients' memory until the instance ends.
func (in *Instance) tendShares() {
	t := time.NewTicker(tendEvery)
	defer t.Stop()
	for {
		select {
		case <-in.life.Done():
			return
		case <-t.C:
		}
		for _, s := range in.list() {
			s.shared.tend(in.life)
		}
	}
}

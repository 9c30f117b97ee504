package daemon

import (
	"context"
	"errors"
	"time"

	"ubcache/internal/blockdev"
)

// watchEvery is how often missing backing devices are looked for.
const watchEvery = 5 * time.Second

// watch serves backing devices that were missing at the start as soon as they are there, and finds
// the cgroups of tenants that have come or gone. It ends with the instance.
func (in *Instance) watch() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-in.life.Done():
			return
		case <-t.C:
		}
		if err := in.change(); err != nil {
			return
		}
		for _, s := range in.list() {
			if s.dev == nil && in.conf.Backings[s.name] != nil {
				in.adopt(s)
			}
		}
		in.tenants.refresh()
		in.changing.Unlock()
	}
}

// adopt serves a backing device that has appeared. in.changing is held.
func (in *Instance) adopt(s *served) {
	sb := in.cache.Super()
	r, err := in.recordOf(s.b.ID())
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(in.life, attachWait)
	defer cancel()
	dev, err := in.openBacking(ctx, in.conf.Backings[s.name], r, &sb, nil)
	if err != nil {
		in.mu.Lock()
		s.problem = err.Error()
		in.mu.Unlock()
		return
	}
	before := s.problem
	if err := in.join(s, dev); err != nil && s.problem != before {
		in.log.Error("backing device has appeared but cannot be served", "name", s.name, "error", err)
	}
}

// join gives the engine a device that was missing, and serves it.
func (in *Instance) join(s *served, dev *blockdev.Device) error {
	if err := in.admitLate(in.life, s, dev); err != nil {
		in.mu.Lock()
		s.problem = err.Error()
		in.mu.Unlock()
		return errors.Join(err, dev.Close())
	}
	setAbilities(s.b, dev)
	in.mu.Lock()
	s.dev, s.problem = dev, ""
	in.mu.Unlock()
	in.startGuard(s)
	if err := in.setFile(s.b.ID(), dev); err != nil {
		in.stopGuard(s)
		in.mu.Lock()
		s.dev, s.problem = nil, err.Error()
		in.mu.Unlock()
		return errors.Join(err, dev.Close())
	}
	in.log.Info("backing device has appeared", "name", s.name, "device", dev.Info.Path)
	if in.opts.NoUblk {
		return nil
	}
	if err := in.serve(context.Background(), s); err != nil {
		return err
	}
	s.shared.settle(in.life)
	return nil
}

package daemon

import (
	"context"
	"errors"
	"fmt"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

// The superblock and the configuration are not written at once. An attach or a detach that a crash cuts in two leaves a
// device that only one of them has: the superblock one that is not served, the configuration one that the cache does not
// know. A detach of that name removes what there is.

// onlyRecorded reports whether the configuration does not have a backing device of the superblock.
func (in *Instance) onlyRecorded(s *served) bool {
	r, err := in.recordOf(s.b.ID())
	if err != nil {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.nameOf(r) == ""
}

// isRecorded reports whether the superblock has a backing device.
func (in *Instance) isRecorded(uuid string) bool {
	sb := in.cache.Super()
	for i := range sb.Backings {
		if sb.Backings[i].UUID.String() == uuid {
			return true
		}
	}
	return false
}

// checkCut refuses to attach under the name of a device that only one of superblock and configuration has.
func (in *Instance) checkCut(what, name string, conf *config.File) error {
	hint := "ubcache detach " + name + " removes it"
	if c := conf.Caches[in.opts.Name]; c != nil && c.Backings[name] != nil {
		if in.isRecorded(c.Backings[name].UUID) {
			return nil
		}
		return report.Refuse(what, fmt.Sprintf("%s is in the configuration, but not in the cache: a detach of it was cut short",
			name), hint)
	}
	for _, s := range in.list() {
		if s.name == name && in.onlyRecorded(s) {
			return report.Refuse(what, fmt.Sprintf("%s is in the cache, but not in the configuration: an attach or a detach of "+
				"it was cut short", name), hint)
		}
	}
	return nil
}

// detachConfigured removes a backing device from the configuration that the cache does not have; false if there is none.
func (in *Instance) detachConfigured(a control.DetachArgs) (d control.Device, ok bool, err error) {
	if err := in.change(); err != nil {
		return d, false, err
	}
	defer in.changing.Unlock()
	var b *config.Backing
	err = config.Edit(in.opts.ConfigPath, func(f *config.File) error {
		c := f.Caches[in.opts.Name]
		if c == nil || c.Backings[a.Name] == nil || in.isRecorded(c.Backings[a.Name].UUID) {
			return errNotConfigured
		}
		if loss, lost := in.cache.Loss(); lost { // what is known of it is a copy, perhaps an older one
			return fmt.Errorf("%w: %s", cache.ErrSSDLost, loss.Why)
		}
		b = c.Backings[a.Name]
		delete(c.Backings, a.Name)
		in.mu.Lock()
		in.conf = c
		in.mu.Unlock()
		return nil
	})
	if errors.Is(err, errNotConfigured) {
		return d, false, nil
	}
	if err != nil {
		return d, false, report.Wrap("detach "+a.Name, err, "")
	}
	in.log.Warn("the cache did not have the backing device: removed from the configuration", "name", a.Name, "uuid", b.UUID)
	if err := in.releaseCut(b); err != nil {
		in.log.Warn("its header may go on naming this cache", "name", a.Name, "error", err)
	}
	d.Name, d.State, d.Service, d.BackingDevice = a.Name, "detached", "offline", b.Device
	return d, true, nil
}

var errNotConfigured = errors.New("no such backing device")

// releaseCut does what is left to do on a device whose detach was cut short, if it is there and nobody has it.
func (in *Instance) releaseCut(b *config.Backing) error {
	i, err := blockdev.Inspect(b.Device)
	if err != nil || i.Content.Type != blockdev.TypeHeader || i.Content.UUID != b.UUID {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), attachWait)
	defer cancel()
	dev, err := i.Open(ctx)
	if err != nil {
		return err
	}
	defer dev.Close()
	if h, err := header.Read(dev); err != nil || h.Cache.String() != in.conf.UUID {
		return err
	}
	return releaseHeader(dev)
}

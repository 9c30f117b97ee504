package daemon

import (
	"context"
	"errors"
	"fmt"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

// A daemon that takes its SSD back executes itself anew. If that start is refused, for whichever device, nobody serves
// the others any more: what it would be refused for is looked at before, as far as that can be known without the index.

// refusesBack says why a start with the SSD, whose superblock is sb, would be refused: because of dirty data of devices that
// have changed without it, which are named, or for another reason.
func (in *Instance) refusesBack(sb *cache.Superblock) (dirty []string, err error) {
	file, err := config.Load(in.opts.ConfigPath)
	if err != nil {
		return nil, err
	}
	conf := file.Caches[in.opts.Name]
	if conf == nil {
		return nil, errors.New("the cache is not in " + in.opts.ConfigPath + " any more")
	}
	for i := range sb.Backings {
		r := &sb.Backings[i]
		name, b := r.Name, (*config.Backing)(nil)
		for n, c := range conf.Backings {
			if c.UUID == r.UUID.String() {
				name, b = n, c
			}
		}
		lacking, e := in.refusesBackOf(name, b, r, sb)
		if e != nil && err == nil {
			err = fmt.Errorf("%s: %w", name, e)
		}
		if lacking {
			dirty = append(dirty, name)
		}
	}
	return dirty, err
}

// refusesBackOf is refusesBack of one device; b is nil if the configuration does not have it.
func (in *Instance) refusesBackOf(name string, b *config.Backing, r *cache.BackingRecord, sb *cache.Superblock) (
	dirty bool, err error,
) {
	var dev *blockdev.Device
	if b != nil {
		if dev, err = in.lookAtBacking(name, b, r, sb); err != nil {
			return false, err
		}
	}
	if dev != nil {
		defer dev.Close()
	}
	m, err := in.markerOf(name, r, sb, dev)
	switch clean := sb.Clean && r.Dirty == 1; {
	case err != nil:
		return false, err
	case m != nil:
		return m.DirtyBlocks > 0 || m.DirtyBlocks < 0 && !clean, nil
	case dev == nil || !sb.Clean || clean:
		return false, nil
	}
	h, err := header.Read(dev)
	other := err == nil && r.DataOff != 0 && r.Head != 0 && h.Start != r.Head && h.Start != in.nextEpoch(sb)
	if taken, same := SamePrint(dev, sb, r); other || taken && !same {
		return false, errors.New(dev.Info.Path + " was changed without the cache, which has newer data for it")
	}
	return false, nil
}

// lookAtBacking opens a backing device for reading, and finds the faults that openBacking would; nil if it is missing, which
// keeps nothing from starting.
func (in *Instance) lookAtBacking(name string, b *config.Backing, r *cache.BackingRecord, sb *cache.Superblock) (
	*blockdev.Device, error,
) {
	path, ours := b.Device, false
	if s, err := in.find(name); err == nil && s.b != nil && s.b.ID() == r.ID {
		in.mu.Lock()
		dev := s.dev
		in.mu.Unlock()
		switch {
		case dev != nil && s.b.Presence() != cache.Present:
			return nil, nil
		case dev != nil:
			path, ours = dev.Info.Path, true
		}
	}
	i, err := blockdev.Inspect(path)
	if err == nil {
		err = checkIdentity(i, r)
	}
	if err != nil {
		if other := findBacking(r, nil); other != nil {
			i, err = other, nil
		}
	}
	var d *blockdev.Device
	switch {
	case err != nil:
	case i.LogicalBytes > int(r.LBS):
		err = fmt.Errorf("%s has sectors of %d bytes, it had %d when it was attached", i.Path, i.LogicalBytes, r.LBS)
	case i.ReadOnly:
		err = errors.New(i.Path + " is read-only")
	case ours:
		d, err = i.OpenForReading()
	default:
		expired, cancel := context.WithCancel(context.Background())
		cancel()
		d, err = i.OpenRead(expired) // nobody else may have it
	}
	if err == nil {
		if err = checkHeader(d, r, sb.UUID); err != nil {
			_ = d.Close()
		}
	}
	if err != nil && isMissing(err) && report.CodeOf(err) != report.Refused {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

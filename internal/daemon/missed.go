package daemon

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/header"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// markMissed makes it durable, outside the SSD, that the SSD misses changes of a backing device. The
// engine asks for it, and its writers wait; that is once for each device and loss, so it has a goroutine.
func (in *Instance) markMissed(m cache.Missed, done func(error)) {
	go func() {
		err := in.writeMarkers(m)
		if err != nil {
			in.log.Error("the SSD is lost, and it cannot be recorded that it misses changes: changes of "+
				"the device fail", "name", m.Name, "error", err)
		} else {
			in.log.Warn("the device goes on without the SSD, which misses its changes from here on",
				"name", m.Name, "dirty blocks on the SSD", m.Dirty)
		}
		done(err)
	}()
}

func (in *Instance) writeMarkers(m cache.Missed) error {
	if blockdev.OnUblk(in.stateDir) {
		return fmt.Errorf("%s is itself on a ublk device: set state-dir to a folder that is not",
			in.stateDir)
	}
	in.mu.Lock()
	s := in.mu.served[m.ID]
	in.mu.Unlock()
	var dev *blockdev.Device
	if s != nil {
		dev = s.dev
	}
	return in.writeMarker(m, dev)
}

// writeMarker writes the marker, also to the header of dev, if that is not nil. One of an earlier loss that tells of
// dirty data stays: it is on the SSD still.
func (in *Instance) writeMarker(m cache.Missed, dev *blockdev.Device) error {
	old, err := missed.Read(in.stateDir, m.Cache.String(), m.Backing.String())
	switch {
	case err != nil:
		return err
	case old != nil && old.DirtyBlocks != 0:
		m.Dirty = old.DirtyBlocks
	default:
		if err := missed.Write(in.stateDir, missed.Of(m, time.Now())); err != nil {
			return err
		}
	}
	if dev == nil {
		return nil
	}
	return editHeader(dev, func(h *header.Header) {
		h.Missed, h.Dirty, h.Epoch = true, m.Dirty, m.Epoch
	})
}

// editHeader changes the header of a backing device, if it has one.
func editHeader(d *blockdev.Device, edit func(*header.Header)) error {
	h, err := header.Read(d)
	if errors.Is(err, header.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	edit(h)
	return header.Write(d, h)
}

// markerOf is the marker of a backing device, or what its header says, if dev is not nil; nil if the SSD has missed nothing of it.
func (in *Instance) markerOf(name string, r *cache.BackingRecord, sb *cache.Superblock, dev *blockdev.Device) (
	*missed.Marker, error,
) {
	m, err := missed.Read(in.stateDir, sb.UUID.String(), r.UUID.String())
	if err != nil {
		return nil, report.Wrap("", err, "if you know that the SSD has missed nothing, remove the file")
	}
	if dev == nil || r.DataOff == 0 {
		return m, nil
	}
	h, err := header.Read(dev)
	if err != nil {
		return nil, err
	}
	if h.Missed && m == nil {
		m = &missed.Marker{Name: name, DirtyBlocks: h.Dirty, Epoch: h.Epoch}
	}
	return m, nil
}

// checkMissed decides about a backing device that may have been changed while the cache was without
// its SSD. What the SSD has of it is dropped, unless that includes dirty data: it is kept then, and the
// operator decides. dev is nil if the device is missing.
func (in *Instance) checkMissed(name string, r *cache.BackingRecord, sb *cache.Superblock,
	dev *blockdev.Device,
) error {
	m, err := in.markerOf(name, r, sb, dev)
	if err != nil || m == nil {
		return err
	}
	if m.DirtyBlocks < 0 && !slices.Contains(in.opts.Drop, name) {
		in.doubted = append(in.doubted, r.UUID) // the SSD tells, see confirmUnused
		return nil
	}
	if m.DirtyBlocks > 0 && !slices.Contains(in.opts.Drop, name) {
		when := "meanwhile"
		if !m.Time.IsZero() {
			when = "since " + m.Time.Local().Format(time.DateTime)
		}
		return report.Refuse("start cache "+in.opts.Name, fmt.Sprintf("%s was changed without the SSD %s, "+
			"which has %s of it that was never written back", name, when,
			config.Size(m.DirtyBlocks*cache.BlockSize).Human()), "it is kept: ubcache salvage writes it to an image, "+
			"ubcache start --drop "+name+" gives it up")
	}
	in.log.Warn("the SSD has missed changes of this device: its copies are dropped", "name", name,
		"dirty blocks given up", m.DirtyBlocks)
	in.drop = append(in.drop, r.UUID)
	return nil
}

// forgetMissed takes the markers away of what has been dropped, before anything else can become dirty.
func (in *Instance) forgetMissed() error {
	for _, id := range in.drop {
		for _, s := range in.list() {
			if s.dev == nil || s.b == nil || s.b.UUID() != id {
				continue
			}
			err := editHeader(s.dev, func(h *header.Header) { h.Missed, h.Dirty, h.Epoch = false, 0, 0 })
			if err != nil {
				return report.Wrap("start cache "+in.opts.Name, err, "")
			}
		}
		if err := missed.Remove(in.stateDir, in.conf.UUID, id.String()); err != nil {
			return report.Wrap("start cache "+in.opts.Name, err, "")
		}
	}
	return nil
}

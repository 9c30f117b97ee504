package daemon

import (
	"context"
	"fmt"
	"slices"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

// admitLate decides, as a start does (confirmUnused), about a backing device that was missing then: it may have
// been used without the cache in the meantime, or while the cache was without its SSD. in.changing is held, and
// nobody can use the device yet.
func (in *Instance) admitLate(ctx context.Context, s *served, dev *blockdev.Device) error {
	if in.ssd == nil {
		return in.lateWithout(s, dev)
	}
	id := s.b.ID()
	r, err := in.recordOf(id)
	if err != nil {
		return err
	}
	sb := in.cache.Super()
	if r.DataOff != 0 {
		h, err := header.Read(dev)
		if err != nil {
			return err
		}
		// What the SSD had of it is gone if a marker on this host had said so at the start.
		if h.Missed && !slices.Contains(in.drop, r.UUID) {
			return report.Refuse("", dev.Info.Path+" was changed while its cache was without the SSD",
				"stop and start the cache, which decides what becomes of what the SSD has")
		}
	}
	why := in.usedRaw(in.cache, r, s.name, dev, r.Print.Kind != 0, sb.Epoch)
	dirty := in.cache.DirtyBlocks(id)
	switch {
	case why == "":
	case dirty == 0:
		in.log.Warn(dropText(why), "name", s.name, "found", why)
		if err := in.cache.DropClean(ctx, id); err != nil {
			return err
		}
	default:
		return report.Refuse("", fmt.Sprintf("%s was changed without the cache (%s), which has %s of newer data for it",
			dev.Info.Path, why, config.Size(dirty*cache.BlockSize).Human()),
			fmt.Sprintf("stop the cache; ubcache salvage saves that elsewhere; then start --drop %s forgets it, or "+
				"start --keep %s puts it over the changes", s.name, s.name))
	}
	return in.noteLate(r, dev, sb.Epoch)
}

// noteLate records that the cache has the device from here on. The superblock must not name a start that the
// header does not have: while that is written, it names none.
func (in *Instance) noteLate(r *cache.BackingRecord, dev *blockdev.Device, epoch uint64) error {
	defer in.keepSuperNow()
	if err := in.cache.NoteUse(r.ID, 0); err != nil || r.DataOff == 0 {
		return err
	}
	err := editHeader(dev, func(h *header.Header) {
		h.Start, h.Missed, h.Dirty, h.Epoch = epoch, false, 0, 0
	})
	if err != nil {
		return err
	}
	return in.cache.NoteUse(r.ID, epoch)
}

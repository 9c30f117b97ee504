package daemon

import (
	"cmp"
	"fmt"
	"slices"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/header"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// A disk that a cache has on record must not be attached once more while it is missing there: the SSD may have newer
// data of it, and two devices would go over each other's.

// checkRecorded refuses a disk that is on record as a backing device of this cache, or of another one that is
// configured, as far as that can be seen.
func (in *Instance) checkRecorded(what string, dev *blockdev.Device) error {
	file, err := config.Load(in.opts.ConfigPath)
	if err != nil {
		return err
	}
	h, err := header.Read(dev)
	if err != nil {
		h = &header.Header{}
	}
	sb := in.cache.Super()
	for _, s := range in.list() {
		for i := range sb.Backings {
			if r := &sb.Backings[i]; r.ID == s.b.ID() {
				if err := in.checkOwn(what, s, dev, h, r); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range file.CacheNames() {
		if name != in.opts.Name {
			if err := in.checkOther(what, name, file.Caches[name], dev); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkOwn is checkRecorded for one backing device of this cache.
func (in *Instance) checkOwn(what string, s *served, dev *blockdev.Device, h *header.Header, r *cache.BackingRecord) error {
	there := s.dev != nil && s.b.Presence() == cache.Present
	by, path := "", ""
	if conf := in.conf.Backings[s.name]; conf != nil {
		path = conf.Device
	}
	switch {
	case h.Backing == r.UUID && there:
		return report.Refuse(what, "by its header it is a copy of "+s.name+", which is attached",
			"--force makes another backing device of it")
	case h.Backing == r.UUID:
		by = "header"
	case !there: // else it is open, and this is another one
		by = cmp.Or(recognise(dev, r, path), in.recogniseData(dev, r))
	}
	if by == "" {
		return nil
	}
	return report.Refuse(what, fmt.Sprintf("by its %s it is %s, which this cache has already", by, s.name),
		fmt.Sprintf("ubcache reopen %s %s brings it back, or detach %[1]s first; --force makes another backing device of it",
			s.name, dev.Info.Path))
}

// checkOther is checkRecorded for the backing devices of another cache, of which little is known.
func (in *Instance) checkOther(what, name string, c *config.Cache, dev *blockdev.Device) error {
	records := map[string]*cache.BackingRecord{}
	if kept, err := missed.ReadSuper(in.stateDir, c.UUID); err == nil && kept != nil {
		for i := range kept.Backings {
			records[kept.Backings[i].UUID.String()] = &kept.Backings[i]
		}
	}
	for _, backing := range c.BackingNames() {
		b := c.Backings[backing]
		if by := recognise(dev, records[b.UUID], b.Device); by != "" {
			return report.Refuse(what, fmt.Sprintf("by its %s it is %s of cache %s, which may have newer data", by, backing,
				name), "detach it there first, or --force takes it all the same")
		}
	}
	return nil
}

// recognise says by what a disk is the one on record, looked at from outside; empty if it is not. r is nil if only the
// configured path is known, and path is empty if that is not.
func recognise(dev *blockdev.Device, r *cache.BackingRecord, path string) string {
	if r != nil {
		switch i, want := dev.Info, &r.Identity; {
		case want.Serial != "" && want.Serial == i.Serial: // it may have grown
			return "serial number"
		case checkIdentity(i, r) != nil:
			return ""
		}
	}
	if path == "" {
		return ""
	}
	if i, err := blockdev.Stat(path); err == nil && dev.Is(i) {
		return "path"
	}
	return ""
}

// recogniseData is recognise, by what a disk without a header holds, for one that is missing and of which the SSD has
// dirty data.
func (in *Instance) recogniseData(dev *blockdev.Device, r *cache.BackingRecord) string {
	if r.DataOff != 0 || checkIdentity(dev.Info, r) != nil || in.cache.DirtyBlocks(r.ID) == 0 {
		return ""
	}
	if r.Print.Kind == printKind {
		if p, err := fingerprint(dev); err == nil && p.Sum == r.Print.Sum {
			return "data"
		}
	}
	var list []cache.Sample
	for _, s := range in.samples(in.cache, r, ManySamples) {
		if slices.ContainsFunc(s.Data, func(b byte) bool { return b != 0 }) { // every new disk has zeroes
			list = append(list, s)
		}
	}
	same, differ, err := CompareSamples(dev, list, 0)
	if err == nil && same > 0 && differ == 0 {
		return "data"
	}
	return ""
}

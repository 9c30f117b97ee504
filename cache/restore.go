package cache

import (
	"errors"
	"fmt"
	"slices"
)

// Restore writes the superblock of a cache anew of which both copies are lost, from one that was kept elsewhere
// (Marshal) at its last stop in order, if nothing was dirty then. The device must have pages of that cache, and none
// that is newer: one that was used since, elsewhere, may have dirty data. It changes nothing if it fails.
func Restore(dev Storage, kept *Superblock) error {
	for _, k := range readSupers(dev) {
		if !errors.Is(k.err, ErrNotCache) && !errors.Is(k.err, ErrCorrupt) {
			return errors.Join(errors.New("its superblock is not lost"), k.err)
		}
	}
	if !kept.Clean {
		return errors.New("the cache was not stopped in order")
	}
	for i := range kept.Backings {
		if r := &kept.Backings[i]; r.Dirty != 1 {
			return fmt.Errorf("%s had dirty data, or may have had some", r.Name)
		}
	}
	if err := kept.Geometry.check(dev.Size()); err != nil {
		return err
	}
	own := *kept
	own.Backings = slices.Clone(kept.Backings)
	c, err := newCache(dev, &own, Options{})
	if err != nil {
		return err
	}
	defer c.release()
	r := &recovery{c: c, readOnly: true, lenient: true}
	if err := r.run(); err != nil {
		return err
	}
	newest := LSN(0)
	for _, l := range r.pageLSN {
		newest = max(newest, l)
	}
	switch {
	case newest == 0 && len(r.pages) == 0 && r.top.seq == 0:
		return fmt.Errorf("%w: nothing on it is of this cache", ErrNotCache)
	case max(newest, r.next, r.dmg.end) > kept.LSN || r.top.epoch > kept.Epoch || c.dirty.Load() > 0:
		return errors.New("it was used since the copy of its superblock was made")
	}
	own = *kept
	return writeSuper(dev, &own)
}

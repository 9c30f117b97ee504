package daemon

import (
	"context"
	"errors"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// An SSD that has lost both copies of its superblock is used again if nothing was dirty at the last stop, which was one in
// order: the state folder has the superblock of that (cache.Restore). If the cache has gone on without the SSD before, with
// nothing dirty on it, the start goes on without it once more. Otherwise it is for the operator, who has ubcache salvage.
//
// After a crash the copy in the state folder, which is of the last start, attach, detach or change of a setting, proves nothing, even
// if it has nothing dirty and no device in a mode that makes dirty data. A mode can have been another one in between; and
// what was written through, and the backing device then failed to flush, or lost with its volatile cache, is nowhere but on the SSD as well, in
// any mode. That is noted in the journal, of which the newest pages may be lost with the superblocks that tell where it ends.

// openRestored opens the device in the SSD's place if that has only lost its superblocks; why is what is wrong with it.
func (in *Instance) openRestored(ctx context.Context, why error) error {
	i, err := blockdev.Inspect(in.conf.Device)
	if err != nil || i.Content.Type != "" || i.Users() != "" || !missed.HasSuper(in.stateDir, in.conf.UUID) {
		return why
	}
	if in.ssd, err = in.openPatiently(ctx, i); err != nil {
		return why
	}
	in.ssdInfo = i
	sb, err := in.restoreSuper()
	if sb == nil {
		if ok, err := in.goWithoutSupers(ctx, why); ok || err != nil {
			return err
		}
	}
	if errors.Is(err, cache.ErrNotCache) {
		return report.Refuse("open cache on "+i.Path, "there is nothing instead of cache "+in.conf.UUID,
			"check the device, or correct the configuration; nothing was dirty, so ubcache format --force --name "+
				in.opts.Name+" "+i.Path+", then attach, makes the cache anew")
	}
	if sb == nil {
		return why
	}
	if in.ssdInfo, err = blockdev.Inspect(i.Path); err != nil {
		return err
	}
	return in.openWith(ctx, sb)
}

// goWithoutSupers starts without an SSD that has lost its superblocks, if nothing on it is to be used.
func (in *Instance) goWithoutSupers(ctx context.Context, why error) (bool, error) {
	if !in.missedAll() {
		return false, nil
	}
	_ = in.ssd.Close()
	in.ssd = nil
	return in.goWithout(ctx, why)
}

// missedAll reports whether the SSD has missed changes of every device, and had nothing dirty of any: so whatever it
// has is not to be used.
func (in *Instance) missedAll() bool {
	for _, name := range in.conf.BackingNames() {
		m, err := missed.Read(in.stateDir, in.conf.UUID, in.conf.Backings[name].UUID)
		if err != nil || m == nil || m.DirtyBlocks != 0 {
			return false
		}
	}
	return len(in.conf.Backings) > 0
}

// restoreSuper writes the superblock of the SSD anew, and returns it; nil if that may not be.
func (in *Instance) restoreSuper() (*cache.Superblock, error) {
	kept, err := missed.ReadSuper(in.stateDir, in.conf.UUID)
	if err == nil && kept == nil {
		return nil, nil
	}
	if err == nil {
		err = cache.Restore(in.ssd, kept)
	}
	if err != nil {
		in.log.Error("the superblock is not restored from its copy in state-dir", "why", err)
		return nil, err
	}
	sb, err := cache.ReadSuper(in.ssd)
	if err != nil {
		return nil, err
	}
	const text = "both copies of the superblock were lost: restored from the one in state-dir"
	in.log.Warn(text)
	in.opts.Note(text)
	return sb, nil
}

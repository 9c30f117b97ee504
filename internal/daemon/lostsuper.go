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
// order: the state folder has the superblock of that (cache.Restore). With dirty data it is for the operator, who
// has ubcache salvage.

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

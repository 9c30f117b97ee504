package recipe

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
)

// ImageOptions shape an ext4 image.
type ImageOptions struct {
	Label     string
	FreeBytes int64 // room beside the content
	Journal   bool
}

// MakeImage writes a sparse ext4 image holding the content of a folder, without mounting anything.
func MakeImage(ctx context.Context, image, tree string, o ImageOptions) error {
	var bytes, files int64
	err := filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		files++
		info, err := d.Info()
		if err == nil && info.Mode().IsRegular() {
			bytes += (info.Size() + 4095) &^ 4095
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("measure %s: %w", tree, err)
	}
	// Bitmaps, group descriptors, directories and extent blocks: a generous share of the content.
	size := bytes + bytes/10 + files*1024 + 8<<20 + o.FreeBytes
	features := "^has_journal"
	if o.Journal {
		features = "has_journal"
		size += 16 << 20
	}
	return run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", o.Label, "-m", "0", "-b", "4096",
		"-O", features, "-N", fmt.Sprint(files+files/4+1024),
		"-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard",
		"-d", tree, image, fmt.Sprintf("%dk", size>>10))
}

package missed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ubcache/cache"
)

// A copy of the superblock of each cache is in DIR/super/CACHE. It says which backing devices the cache has, and,
// if it is of a stop in order, how much dirty data of each the SSD has: what a start without the SSD has to know.
// A start replaces it, or removes it, before anything can become dirty, so that an old one never says less than there is.

func superPath(dir, cacheID string) string { return filepath.Join(dir, "super", cacheID) }

// WriteSuper makes the copy of a superblock durable.
func WriteSuper(dir string, sb *cache.Superblock) error {
	return writeDurably(dir, superPath(dir, sb.UUID.String()), sb.Marshal())
}

// ReadSuper returns the copy of the superblock of a cache, nil if there is none.
func ReadSuper(dir, cacheID string) (*cache.Superblock, error) {
	path := superPath(dir, cacheID)
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read copy of the superblock: %w", err)
	}
	sb, err := cache.UnmarshalSuper(p)
	if err == nil && sb.UUID.String() != cacheID {
		err = errors.New("it is of another cache")
	}
	if err != nil {
		return nil, fmt.Errorf("read copy of the superblock %s: %w", path, err)
	}
	return sb, nil
}

// RemoveSuper takes the copy of the superblock away, durably.
func RemoveSuper(dir, cacheID string) error {
	if err := removeDurably(superPath(dir, cacheID)); err != nil {
		return fmt.Errorf("remove copy of the superblock: %w", err)
	}
	return nil
}

// HasSuper reports whether there may be a copy of the superblock.
func HasSuper(dir, cacheID string) bool {
	_, err := os.Lstat(superPath(dir, cacheID))
	return !errors.Is(err, fs.ErrNotExist)
}

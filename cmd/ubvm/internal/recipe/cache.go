// Package recipe builds what a VM boots from: kernels, the root image and the kernel's own ublk
// server. Each result is kept in the cache under a key made of everything that went into it, so a
// changed recipe or a new package version makes a new result and an unchanged one costs nothing.
package recipe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/cmd/ubvm/internal/progress"
)

// CacheEnv overrides the cache folder.
const CacheEnv = "UBCACHE_VM_CACHE"

// keepUnused is for how long a result that no run has asked for stays in the cache.
const keepUnused = 14 * 24 * time.Hour

// CacheDir returns the cache folder, made if it is missing.
func CacheDir() (string, error) {
	dir := os.Getenv(CacheEnv)
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find cache folder: %w: set %s", err, CacheEnv)
		}
		dir = filepath.Join(base, "ubcache-vm")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache folder: %w: set %s", err, CacheEnv)
	}
	return dir, nil
}

// Lock takes the cache's lock, so that two runs do not build the same thing at once. The kernel
// drops it when the holder dies, however it dies.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open cache lock: %w", err)
	}
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock cache: %w", err)
		}
		if !told {
			progress.Note("waiting for another ubvm that is building in %s", dir)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// A result is one keyed folder of the cache.
type result struct {
	kind  string   // kernel, rootfs, kublk
	label string   // what a person recognizes it by
	key   []string // everything that the content depends on
}

func (r result) path(cache string) string {
	h := sha256.New()
	for _, k := range r.key {
		fmt.Fprintf(h, "%d:%s\n", len(k), k)
	}
	sum := hex.EncodeToString(h.Sum(nil))[:12]
	return filepath.Join(cache, r.kind, r.label+"-"+sum)
}

// ensure returns the result's folder and calls build to fill it if it is not there yet. The cache
// lock must be held. A build that dies half-way leaves only a .tmp folder, which the next removes.
func (r result) ensure(cache string, build func(dir string) error) (string, error) {
	path := r.path(cache)
	now := time.Now()
	if _, err := os.Stat(path); err == nil {
		return path, os.Chtimes(path, now, now)
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("clear interrupted build: %w", err)
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return "", err
	}
	done := progress.Start("building " + r.kind + " " + r.label)
	if err := build(tmp); err != nil {
		os.RemoveAll(tmp)
		return "", fmt.Errorf("build %s %s: %w", r.kind, r.label, err)
	}
	done()
	if err := os.Rename(tmp, path); err != nil {
		return "", err
	}
	r.prune(cache, path)
	return path, nil
}

// prune removes results of the same kind that nothing has used for a long time.
func (r result) prune(cache, keep string) {
	old, _ := filepath.Glob(filepath.Join(cache, r.kind, "*"))
	for _, path := range old {
		info, err := os.Stat(path)
		if path != keep && err == nil && time.Since(info.ModTime()) > keepUnused {
			os.RemoveAll(path)
		}
	}
}

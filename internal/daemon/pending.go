package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ubcache/cache"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// pendingRing is the file on tmpfs that outlives a killed daemon, with the journal records that
// were not on the SSD yet. It must not be removed before the cache has been stopped in order.
type pendingRing struct {
	path string
	mem  []byte
}

func pendingPath(dir string, id cache.UUID) string {
	return filepath.Join(dir, id.String()+".pending")
}

// openPending maps the ring of a cache and makes it if there is none.
func openPending(dir string, id cache.UUID, anyDir bool) (*pendingRing, error) {
	if !anyDir && !control.OnTmpfs(dir) {
		return nil, report.Refuse("use runtime folder "+dir, "it is not on tmpfs, so each write "+
			"would go to a disk", "set runtime-dir in the configuration to a folder on tmpfs")
	}
	p := &pendingRing{path: pendingPath(dir, id)}
	fd, err := unix.Open(p.path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open pending ring %s: %w", p.path, err)
	}
	defer unix.Close(fd)
	// All pages are allocated now: a full tmpfs would kill the daemon later.
	if err := unix.Fallocate(fd, 0, 0, cache.PendingBytes); err != nil {
		return nil, fmt.Errorf("allocate pending ring %s: %w", p.path, err)
	}
	p.mem, err = unix.Mmap(fd, 0, cache.PendingBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map pending ring %s: %w", p.path, err)
	}
	// Swapped out it could be needed for the very I/O that swaps it in.
	_ = unix.Mlock(p.mem)
	return p, nil
}

// close unmaps the ring; remove takes it away for good, after a stop in order.
func (p *pendingRing) close(remove bool) {
	if p == nil || p.mem == nil {
		return
	}
	_ = unix.Munmap(p.mem)
	p.mem = nil
	if remove {
		_ = os.Remove(p.path)
	}
}

// ReadPending is a copy of what a killed daemon has left in the pending ring of a cache; nil if
// there is none.
func ReadPending(dir string, id cache.UUID) ([]byte, error) {
	b, err := os.ReadFile(pendingPath(dir, id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil || len(b) < cache.PendingBytes {
		return nil, err
	}
	return b, nil
}

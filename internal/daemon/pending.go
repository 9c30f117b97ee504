package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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

// takeName makes sure that one daemon runs a cache. The lock goes away with the process.
func (in *Instance) takeName() error {
	path := filepath.Join(in.dir, in.opts.Name+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return report.Wrap("take "+path, err, "")
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		text, _ := os.ReadFile(path)
		_ = f.Close()
		return report.Refuse("start cache "+in.opts.Name,
			"already running as process "+strings.TrimSpace(string(text)), "")
	}
	if err != nil {
		_ = f.Close()
		return report.Wrap("lock "+path, err, "")
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			_ = f.Close()
			return report.Wrap("write "+path, err, "")
		}
	}
	in.lock = f
	return nil
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

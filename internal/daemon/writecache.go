package daemon

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// writeCache is what a driver remembers of a device's write cache.
type writeCache struct {
	through bool
	until   int64 // then it has to be looked up again
}

// lookEvery is how old a look at a write cache may be: somebody may switch it on at any time.
const lookEvery = int64(1e9)

var writeThrough = []byte("write through")

// volatile reports whether a completed write may be lost with the device's power. The kernel drops
// flushes to a device that cannot lose any, but an fsync through io_uring goes to a worker thread
// first, whatever the device. So that is decided here, from the kernel's own note.
func (d *driver) volatile(dev *deviceFile) bool {
	if dev.note < 0 {
		return true
	}
	if now := d.Now(); now >= dev.cache.until {
		n, err := unix.Pread(dev.note, d.text[:], 0)
		dev.cache.through = err == nil && bytes.HasPrefix(d.text[:n], writeThrough)
		dev.cache.until = now + lookEvery
	}
	return !dev.cache.through
}

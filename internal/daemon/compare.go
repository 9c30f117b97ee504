package daemon

import (
	"errors"
	"io"
	"slices"

	"ubcache/cache"
	"ubcache/internal/blockdev"
)

// CompareSamples counts which of the samples a device has, shift bytes behind where they were taken.
func CompareSamples(d io.ReaderAt, list []cache.Sample, shift int64) (same, differ int, err error) {
	p := make([]byte, cache.BlockSize)
	for i := range list {
		s := &list[i]
		n := len(s.Data)
		if _, err := d.ReadAt(p[:n], s.Off+shift); err != nil {
			return same, differ, err
		}
		if s.Differs(p[:n]) {
			differ++
		} else {
			same++
		}
	}
	return same, differ, nil
}

// sampleHeads is where samples looks first: as cache.Samples does.
var sampleHeads = [...]int64{0, 1 << 20}

// headSamples is how many blocks of these there are at most.
const headSamples = 256

// samples is cache.Samples, for caches without data checksums as well: what the SSD returns is believed there, as reads
// believe it. Where it finds nothing at the places that it looks at, any whole blocks will do. It may be used where
// Cache.Samples may.
func (in *Instance) samples(c *cache.Cache, r *cache.BackingRecord, n int) []cache.Sample {
	f := onSSD{Device: in.ssd, c: c, r: r, list: c.Samples(r.ID, n)}
	if in.ssd == nil || len(f.list) > 0 || !hasClean(c, r.ID) {
		return f.list
	}
	if !c.Checksums() {
		for _, head := range sampleHeads {
			for off := head; off < min(head+int64(min(4*n, headSamples))*cache.BlockSize, r.Size); off += cache.BlockSize {
				_ = f.take(make([]byte, min(cache.BlockSize, r.Size-off)), off)
			}
		}
	}
	heads := len(f.list)
	_, err := c.Recognise(r.ID, &f, n)
	if errors.Is(err, cache.ErrIdentity) && len(f.list) > heads { // the last one fails its checksum: it says nothing about the device
		f.list = f.list[:len(f.list)-1]
	}
	return f.list
}

// hasClean reports whether anything of a backing device is cached that is not dirty.
func hasClean(c *cache.Cache, id cache.BackingID) bool {
	for _, b := range c.Status().Backings {
		if b.ID == id {
			return b.CachedBytes > b.DirtyBytes
		}
	}
	return false
}

// onSSD looks like a backing device that has what is clean in the cache, and notes what is read. So Cache.Recognise, which
// compares blocks of its own choice, tells where there are some.
type onSSD struct {
	*blockdev.Device // the SSD
	c                *cache.Cache
	r                *cache.BackingRecord
	list             []cache.Sample
}

func (f *onSSD) ReadAt(p []byte, off int64) (int, error) {
	if err := f.take(p, off-f.r.DataOff); err != nil {
		return 0, err
	}
	return len(p), nil
}

var errNotClean = errors.New("not clean in the cache")

// take reads a block from the SSD and notes it.
func (f *onSSD) take(p []byte, off int64) error {
	at, ok := f.c.Locate(f.r.ID, off)
	if !ok || at.Dirty {
		return errNotClean
	}
	block := make([]byte, cache.BlockSize)
	if _, err := f.Device.ReadAt(block, at.Off); err != nil {
		return err
	}
	if now, ok := f.c.Locate(f.r.ID, off); !ok || now != at { // of a running cache
		return errNotClean
	}
	copy(p, block)
	off += f.r.DataOff
	if !slices.ContainsFunc(f.list, func(s cache.Sample) bool { return s.Off == off }) {
		f.list = append(f.list, cache.Sample{Off: off, Data: block[:len(p)], Sectors: at.Sectors})
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/daemon"
	"ubcache/internal/header"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// salvageTarget is what salvage writes to.
type salvageTarget struct {
	dev  cache.Storage
	file *os.File         // a new one
	old  *blockdev.Device // one that was there
	base int64            // where the cached device begins
	buf  []byte           // neighbours that are not written yet
	off  int64            // of buf, on the target
}

// newFile is a file as a cache.Storage.
type newFile struct {
	*os.File
	size int64
}

func (f newFile) Size() int64 { return f.size }

// targetChunk is how much is written at a time.
const targetChunk = 1 << 20

// openTarget opens or makes what is written to. What exists is refused if it could have newer data than
// the cache.
func (f *salvageFlags) openTarget(ctx context.Context, what string, v *cache.Salvage,
	r *cache.BackingRecord,
) (*salvageTarget, error) {
	t := &salvageTarget{base: int64(f.offset)}
	what += ": write to " + f.to
	if !exists(f.to) {
		file, err := os.OpenFile(f.to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, report.Wrap(what, err, "")
		}
		t.file = file
		size := t.base + r.Size
		if v.Nameless() {
			size = 0
		}
		if err := file.Truncate(size); err != nil {
			return nil, report.Wrap(what, errors.Join(err, file.Close(), os.Remove(f.to)), "")
		}
		t.dev = newFile{file, size}
		return t, nil
	}
	i, err := blockdev.Inspect(f.to)
	if err != nil {
		return nil, err
	}
	if by := i.Users(); by != "" {
		return nil, report.Refuse(what, by, "it must not be in use")
	}
	if i.Content.Type == blockdev.TypeCache {
		return nil, report.Refuse(what, "it holds "+i.Content.String(), "")
	}
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	if t.old, err = i.Open(ctx); err != nil {
		return nil, report.Wrap(what, err, "")
	}
	t.dev = t.old
	if err := f.place(what, t, v, r); err != nil {
		return nil, errors.Join(err, t.old.Close())
	}
	return t, nil
}

// place finds out where on a device that exists the cached device begins, and whether it may be written.
func (f *salvageFlags) place(what string, t *salvageTarget, v *cache.Salvage, r *cache.BackingRecord) error {
	h, err := header.Read(t.old)
	if why := f.missed(v, r, h); why != "" && !f.overwrite {
		return report.Refuse(what, why, "write to a new file and compare, or --overwrite")
	}
	switch {
	case f.hasOffset:
	case err == nil && (h.Backing == r.UUID || v.Nameless()):
		t.base = h.DataOff
	case err == nil:
		return report.Refuse(what, fmt.Sprintf("it belongs to cache %s as backing device %s", h.Cache, h.Backing),
			"--offset writes to it all the same")
	case r.DataOff != 0:
		return report.Refuse(what, "it has no backing header, and "+r.Name+" had one",
			"--offset says where the data begins")
	}
	if !v.Nameless() && t.old.Size() < t.base+r.Size {
		return report.Refuse(what, fmt.Sprintf("it has %d bytes, %d are needed", t.old.Size(), t.base+r.Size), "")
	}
	if f.overwrite {
		return nil
	}
	const hint = "write to a new file, or --overwrite"
	same, differ, err := daemon.CompareSamples(t.old, v.Samples(r.ID, daemon.ManySamples), t.base-r.DataOff)
	taken, match := daemon.SamePrint(t.old, v.Damage().Super, r)
	taken = taken && t.base == r.DataOff
	switch {
	case err != nil:
		return report.Wrap(what, err, "")
	case differ > 0:
		return report.Refuse(what, fmt.Sprintf("%d of %d clean blocks of the cache are other data there: it was "+
			"changed without the cache, or is something else", differ, same+differ), hint)
	case taken && !match:
		return report.Refuse(what, "it is not as "+r.Name+" was when the cache was stopped: it was changed without the "+
			"cache, or is something else", hint)
	case same == 0 && !taken:
		return report.Refuse(what, "nothing shows that it has no newer data", hint)
	}
	return nil
}

// missed says why the target may have newer data than the SSD: the cache went on without that. h is the
// target's header, nil if it has none; it knows, and so does the marker on this host, which cannot tell the
// device from a copy.
func (f *salvageFlags) missed(v *cache.Salvage, r *cache.BackingRecord, h *header.Header) string {
	switch {
	case h != nil && h.Missed:
		return "it was changed while its cache was without the SSD"
	case h != nil || v.Nameless():
		return ""
	}
	m, err := missed.Read(f.stateDir, v.Damage().Super.UUID.String(), r.UUID.String())
	switch {
	case err != nil:
		return err.Error()
	case m == nil:
		return ""
	case m.Time.IsZero():
		return r.Name + " was changed without the SSD, and this may be it"
	}
	return fmt.Sprintf("%s was changed without the SSD since %s, and this may be it", r.Name,
		m.Time.Local().Format(time.DateTime))
}

// put writes a block, and returns how many bytes of it are valid. Sectors that are not stay as they are.
func (t *salvageTarget) put(b *cache.SalvageBlock) (int64, error) {
	off := t.base + b.Off
	data := b.Data
	var one cache.Ranges
	one.AddBlock(0, b.Sectors)
	if one.Bytes() < int64(len(data)) {
		data = make([]byte, len(b.Data))
		if n, err := t.dev.ReadAt(data, off); err != nil && n < len(data) && t.old != nil {
			return 0, err // of a new file, what is behind its end is zeroes
		}
		for _, r := range one {
			copy(data[r.Off:min(r.Off+r.Len, int64(len(data)))], b.Data[r.Off:])
		}
	}
	if off != t.off+int64(len(t.buf)) || len(t.buf) >= targetChunk {
		if err := t.write(); err != nil {
			return 0, err
		}
		t.off = off
	}
	t.buf = append(t.buf, data...)
	return min(one.Bytes(), int64(len(data))), nil
}

func (t *salvageTarget) write() error {
	if len(t.buf) == 0 {
		return nil
	}
	_, err := t.dev.WriteAt(t.buf, t.off)
	t.buf = t.buf[:0]
	return err
}

// sync writes what is left and makes all of it durable.
func (t *salvageTarget) sync() error { return errors.Join(t.write(), t.dev.Sync()) }

func (t *salvageTarget) close() {
	if t.file != nil {
		_ = t.file.Close()
	}
	if t.old != nil {
		_ = t.old.Close()
	}
}

package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ubcache/internal/report"
)

// Device is a block device or image file that this process has for itself. It is a
// cache.Storage.
//
// Exclusive means O_EXCL, which shuts out mounts, swap, device-mapper and other O_EXCL openers of
// a block device, and flock, which shuts out another ubcache from an image file too. Both belong
// to the open file description: a ring that it is registered with keeps it, until the last of its
// I/O is over. That makes them a fence against late writes of a killed daemon.
type Device struct {
	Info   *Info
	f      *os.File
	cache  *os.File // queue/write_cache in sysfs, nil for files
	direct bool
}

// ErrBusy: somebody else has the device.
var ErrBusy = errors.New("device is in use")

// Open opens the device exclusively for reading and writing. If somebody has it, it tries again
// until ctx ends.
func (i *Info) Open(ctx context.Context) (*Device, error) { return i.openUntil(ctx, false) }

// OpenRead is Open for reading only, which read-only devices let one do, too.
func (i *Info) OpenRead(ctx context.Context) (*Device, error) { return i.openUntil(ctx, true) }

func (i *Info) openUntil(ctx context.Context, readOnly bool) (*Device, error) {
	for {
		d, err := i.open(readOnly)
		if !errors.Is(err, ErrBusy) {
			return d, err
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, err
		case <-t.C:
		}
	}
}

func (i *Info) open(readOnly bool) (*Device, error) {
	if i.ReadOnly && !readOnly {
		return nil, report.Refuse("open "+i.Path, "device is read-only", "")
	}
	flags := os.O_RDWR | unix.O_DIRECT | unix.O_CLOEXEC
	if readOnly {
		flags = os.O_RDONLY | unix.O_DIRECT | unix.O_CLOEXEC
	}
	if i.Block {
		flags |= unix.O_EXCL
	}
	d := &Device{Info: i, direct: true}
	var err error
	d.f, err = os.OpenFile(i.Path, flags, 0)
	if errors.Is(err, unix.EINVAL) && !i.Block {
		d.direct = false // tmpfs of older kernels
		d.f, err = os.OpenFile(i.Path, flags&^unix.O_DIRECT, 0)
	}
	if errors.Is(err, unix.EBUSY) {
		return nil, i.busy()
	}
	if err != nil {
		return nil, openError(i.Path, err)
	}
	switch err := unix.Flock(d.FD(), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		if i.Block {
			d.cache, _ = os.Open(filepath.Join(i.queue, "write_cache"))
		}
		return d, nil
	case unix.EWOULDBLOCK:
		_ = d.f.Close()
		return nil, i.busy()
	default:
		_ = d.f.Close()
		return nil, fmt.Errorf("lock %s: %w", i.Path, err)
	}
}

// OpenForReading opens the device beside whoever has it. Nothing can be written, and nothing keeps others
// from writing.
func (i *Info) OpenForReading() (*Device, error) {
	d := &Device{Info: i, direct: true}
	const flags = os.O_RDONLY | unix.O_CLOEXEC
	var err error
	d.f, err = os.OpenFile(i.Path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) && !i.Block {
		d.direct = false
		d.f, err = os.OpenFile(i.Path, flags, 0)
	}
	if err != nil {
		return nil, openError(i.Path, err)
	}
	return d, nil
}

// Rewrite reads a block at off and writes it back, past all caches, beside whoever has the device: it tells
// whether the device can be written, and flushed.
func (i *Info) Rewrite(off int64) error {
	flags := os.O_RDWR | unix.O_CLOEXEC | unix.O_DSYNC
	f, err := os.OpenFile(i.Path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) && !i.Block {
		f, err = os.OpenFile(i.Path, flags, 0)
	}
	if err != nil {
		return openError(i.Path, err)
	}
	defer f.Close()
	p := alignedCopy(alignment)
	if _, err := f.ReadAt(p, off); err != nil {
		return err
	}
	if _, err = f.WriteAt(p, off); err != nil {
		return err
	}
	return f.Sync() // a device with FUA has not been asked to flush yet
}

// busy says who has the device, as far as that can be found out.
func (i *Info) busy() error {
	why := i.Users()
	if why == "" {
		if list := i.Openers(); len(list) > 0 {
			why = "in use by " + strings.Join(list, ", ")
		}
	}
	if why == "" {
		why = "in use, by a process that is just ending or by the kernel"
	}
	return &busyError{path: i.Path, why: why}
}

type busyError struct{ path, why string }

func (e *busyError) Error() string { return "open " + e.path + ": " + e.why }
func (e *busyError) Unwrap() []error {
	return []error{ErrBusy, report.Refuse("open "+e.path, e.why, "")}
}

// FD is the descriptor, for registering with a ring.
func (d *Device) FD() int { return int(d.f.Fd()) }

// Size is in bytes.
func (d *Device) Size() int64 { return d.Info.SizeBytes }

// ReadAt reads whole sectors into page-aligned memory; other memory goes through a copy.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	if !d.direct || aligned(p) {
		return d.readFull(p, off)
	}
	q := alignedCopy(len(p))
	n, err := d.readFull(q, off)
	copy(p, q[:n])
	return n, err
}

// WriteAt writes whole sectors, see ReadAt.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	if d.direct && !aligned(p) {
		q := alignedCopy(len(p))
		copy(q, p)
		p = q
	}
	return d.f.WriteAt(p, off)
}

func (d *Device) readFull(p []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n < len(p) {
		err = fmt.Errorf("%w: device ends", io.ErrUnexpectedEOF)
	}
	return n, err
}

// Sync makes completed writes durable.
func (d *Device) Sync() error {
	for {
		if err := unix.Fdatasync(d.FD()); err != syscall.EINTR {
			return err
		}
	}
}

// WriteCacheFD is a descriptor of the kernel's own note on whether the device has a volatile write
// cache ("write back") or not ("write through", and the kernel sends it neither flush nor FUA); -1
// if there is none. The note can change while the device is open.
func (d *Device) WriteCacheFD() int {
	if d.cache == nil {
		return -1
	}
	return int(d.cache.Fd())
}

// Close gives the device up.
func (d *Device) Close() error {
	if d.cache != nil {
		_ = d.cache.Close()
	}
	return d.f.Close()
}

// Reserve makes sure that the first n bytes of an image file have their blocks in the filesystem, so that
// writes to them need no space later. It does nothing to block devices, and where the filesystem cannot.
func (d *Device) Reserve(n int64) error {
	if d.Info.Block {
		return nil
	}
	for {
		switch err := unix.Fallocate(d.FD(), 0, 0, n); err {
		case unix.EINTR:
		case nil, unix.EOPNOTSUPP:
			return nil
		default:
			return fmt.Errorf("reserve %d bytes for metadata in %s: %w", n, d.Info.Path, err)
		}
	}
}

// CanPunch reports whether an image file's filesystem can make holes.
func (d *Device) CanPunch() bool {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return !d.Info.Block && unix.Fallocate(d.FD(), mode, d.Info.SizeBytes, 4096) == nil
}

// Probe looks anew for what is on the device.
func (d *Device) Probe() (Content, error) {
	return probe(&bounce{d}, d.Info.SizeBytes, d.Info.LogicalBytes)
}

// bounce reads any range through whole blocks.
type bounce struct{ d *Device }

func (b *bounce) ReadAt(p []byte, off int64) (int, error) {
	const block = 4096
	lo := off / block * block
	hi := min((off+int64(len(p))+block-1)/block*block, b.d.Info.SizeBytes)
	q := alignedCopy(int(hi - lo))
	n, err := b.d.readFull(q, lo)
	if err != nil {
		return 0, err
	}
	return copy(p, q[off-lo:n]), nil
}

const alignment = 4096

func aligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%alignment == 0
}

func alignedCopy(n int) []byte {
	p := make([]byte, n+alignment)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) & (alignment - 1)
	return p[skip : skip+n : skip+n]
}

// DiscardAll tells a block device that nothing on it is needed. It is advice and cannot fail.
func (d *Device) DiscardAll() {
	if !d.Info.Block || !d.Info.Discard {
		return
	}
	span := [2]uint64{0, uint64(d.Info.SizeBytes)}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(d.FD()), unix.BLKDISCARD,
		uintptr(unsafe.Pointer(&span)))
}

// WipeTail zeroes the end of the device, where partition tables and RAID have a second copy.
func (d *Device) WipeTail() error {
	const block = 4096
	off := max(0, (d.Info.SizeBytes-tailBytes)/block*block)
	if _, err := d.WriteAt(make([]byte, d.Info.SizeBytes-off), off); err != nil {
		return fmt.Errorf("wipe end of device: %w", err)
	}
	return nil
}

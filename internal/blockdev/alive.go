package blockdev

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Alive finds out whether an opened device is still there: it has its size and returns data from at
// least one of three places far apart, so that a bad sector is not taken for its death. It reads past
// the page cache and may take as long as the device.
func (d *Device) Alive() error {
	if d.Info.Block {
		var size uint64
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.FD()), unix.BLKGETSIZE64,
			uintptr(unsafe.Pointer(&size)))
		if errno != 0 {
			return fmt.Errorf("ask for its size: %w", errno)
		}
		if int64(size) < d.Info.SizeBytes {
			return fmt.Errorf("it has %d bytes instead of %d", size, d.Info.SizeBytes)
		}
	}
	const block = 4096
	p := alignedCopy(block)
	last := max(0, d.Info.SizeBytes-block) / block * block
	var err error
	for _, off := range []int64{last / 2 / block * block, 0, last} {
		n := min(block, d.Info.SizeBytes-off)
		if _, err = d.readFull(p[:n], off); err == nil {
			return nil
		}
	}
	return err
}

// Is reports whether i describes the device that is open, and not another one under its name.
func (d *Device) Is(i *Info) bool {
	if d.Info.Block || i.Block {
		return d.Info.Dev == i.Dev && d.Info.diskSeq == i.diskSeq
	}
	var here, there unix.Stat_t
	return unix.Fstat(d.FD(), &here) == nil && unix.Stat(i.Path, &there) == nil &&
		here.Dev == there.Dev && here.Ino == there.Ino
}

// Volatile reports whether the device may lose completed writes with its power, as the kernel notes it;
// also where there is no note.
func (d *Device) Volatile() bool {
	const through = "write through"
	var text [32]byte
	if d.cache == nil {
		return true
	}
	n, err := unix.Pread(int(d.cache.Fd()), text[:], 0)
	return err != nil || n < len(through) || string(text[:len(through)]) != through
}

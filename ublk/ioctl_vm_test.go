//go:build vm

package ublk_test

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func blockIoctl(fd int, req uint, off, n uint64) error {
	arg := [2]uint64{off, n}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req),
		uintptr(unsafe.Pointer(&arg)))
	if e != 0 {
		return e
	}
	return nil
}

// deviceSize is the size of a block device in bytes.
func deviceSize(fd int) (uint64, error) {
	var n uint64
	_, _, e := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64,
		uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return 0, e
	}
	return n, nil
}

package extents

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsxattr is struct fsxattr of include/uapi/linux/fs.h.
type fsxattr struct {
	Flags uint32
	_     [24]byte
}

const (
	fsIocFsgetxattr = 0x801c581f
	fsxRealtime     = 1 // the data is on the realtime device of an XFS, not on its main one
)

// onRealtime says whether a file's data is on another device than its filesystem.
func onRealtime(fd int) bool {
	var x fsxattr
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFsgetxattr,
		uintptr(unsafe.Pointer(&x)))
	return errno == 0 && x.Flags&fsxRealtime != 0
}

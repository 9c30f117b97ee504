package uring

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These are the only system calls of the package. Arguments that the kernel looks at after the
// return lie in mapped memory; those it reads during the call are kept alive by the
// uintptr(unsafe.Pointer(p)) pattern in the call expression.

func sysSetup(entries uint32, p *params) (int, syscall.Errno) {
	fd, _, e := syscall.RawSyscall(unix.SYS_IO_URING_SETUP, uintptr(entries),
		uintptr(unsafe.Pointer(p)), 0)
	return int(fd), e
}

// sysEnterHold waits without telling the runtime, so the wait must be a short one; see hold.go.
func sysEnterHold(fd int, submit, minComplete, flags uint32, arg, argSz uintptr) (int,
	syscall.Errno,
) {
	n, _, e := syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit),
		uintptr(minComplete), uintptr(flags), arg, argSz)
	return int(n), e
}

// sysEnter never sleeps: minComplete is zero.
func sysEnter(fd int, submit, flags uint32) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), 0,
		uintptr(flags), 0, 0)
	return int(n), e
}

func sysEnterWait(fd int, submit, minComplete, flags uint32, arg, argSz uintptr) (int,
	syscall.Errno,
) {
	n, _, e := syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit),
		uintptr(minComplete), uintptr(flags), arg, argSz)
	return int(n), e
}

func sysRegister(fd int, op uint32, arg unsafe.Pointer, n uint32) (int, syscall.Errno) {
	for {
		r, _, e := syscall.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), uintptr(op),
			uintptr(arg), uintptr(n), 0, 0)
		if e == unix.EINTR {
			continue
		}
		return int(r), e
	}
}

package client

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// transfer does a request by system calls: channels Shared and Plain.
func (d *Device) transfer(op *Op) {
	buf := op.memory()
	for {
		n, err := 0, error(nil)
		switch op.Kind {
		case Read:
			n, err = unix.Pread(d.fd, buf, op.Off)
		case Write:
			n, err = d.write(op, buf)
		case Flush:
			err = unix.Fdatasync(d.fd)
		case Discard:
			err = d.discard(op)
		case WriteZeroes:
			err = unix.Fallocate(d.fd, unix.FALLOC_FL_ZERO_RANGE, op.Off, op.Len)
		}
		if err == unix.EINTR {
			continue
		}
		if op.N, op.Err = max(n, 0), err; err != nil {
			op.N = 0
		}
		return
	}
}

func (d *Device) write(op *Op, buf []byte) (int, error) {
	if op.FUA {
		return unix.Pwritev2(d.fd, [][]byte{buf}, op.Off, unix.RWF_DSYNC)
	}
	return unix.Pwrite(d.fd, buf, op.Off)
}

func (d *Device) discard(op *Op) error {
	if !d.block {
		return unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.Off, op.Len)
	}
	span := [2]uint64{uint64(op.Off), uint64(op.Len)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.BLKDISCARD,
		uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}

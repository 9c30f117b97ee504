package uring

import (
	"testing"
	"unsafe"
)

// Sizes and offsets of include/uapi/linux/io_uring.h; they are frozen kernel ABI.
func TestABI(t *testing.T) {
	var s SQE
	var p params
	for _, c := range []struct {
		what      string
		got, want uintptr
	}{
		{"io_uring_sqe", unsafe.Sizeof(s), 64},
		{"io_uring_sqe.off", unsafe.Offsetof(s.Off), 8},
		{"io_uring_sqe.addr", unsafe.Offsetof(s.Addr), 16},
		{"io_uring_sqe.len", unsafe.Offsetof(s.Len), 24},
		{"io_uring_sqe.rw_flags", unsafe.Offsetof(s.OpFlags), 28},
		{"io_uring_sqe.user_data", unsafe.Offsetof(s.UserData), 32},
		{"io_uring_sqe.buf_index", unsafe.Offsetof(s.BufIndex), 40},
		{"io_uring_sqe.file_index", unsafe.Offsetof(s.FileIndex), 44},
		{"io_uring_sqe.cmd", unsafe.Offsetof(s.Addr3), 48},
		{"io_uring_cqe", unsafe.Sizeof(CQE{}), 16},
		{"io_uring_params", unsafe.Sizeof(p), 120},
		{"io_uring_params.sq_off", unsafe.Offsetof(p.sqOff), 40},
		{"io_uring_params.cq_off", unsafe.Offsetof(p.cqOff), 80},
		{"io_uring_getevents_arg", unsafe.Sizeof(getEventsArg{}), 24},
		{"io_uring_rsrc_register", unsafe.Sizeof(rsrcRegister{}), 32},
		{"io_uring_rsrc_update", unsafe.Sizeof(rsrcUpdate{}), 16},
		{"io_uring_rsrc_update2", unsafe.Sizeof(rsrcUpdate2{}), 32},
		{"io_uring_probe", unsafe.Sizeof(probe{}), 16 + 256*8},
		{"__kernel_timespec", unsafe.Sizeof(Timespec{}), 16},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.what, c.got, c.want)
		}
	}
}

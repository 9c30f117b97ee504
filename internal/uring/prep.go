package uring

import (
	"time"
	"unsafe"
)

// File names the file of a submission: a descriptor, or a slot of the ring's table of registered
// files, which is cheaper.
type File struct {
	n     int32
	fixed bool
}

// FD names an ordinary file descriptor.
func FD(fd int) File { return File{n: int32(fd)} }

// Fixed names slot i of the ring's registered files.
func Fixed(i int) File { return File{n: int32(i), fixed: true} }

func (s *SQE) file(f File) {
	s.FD = f.n
	if f.fixed {
		s.Flags |= SQEFixedFile
	}
}

// SetUserData sets the value that the completion carries.
func (s *SQE) SetUserData(v uint64) { s.UserData = v }

// Link makes the next submission wait for this one's success (IOSQE_IO_LINK).
func (s *SQE) Link() { s.Flags |= SQELink }

// Quiet leaves out the completion unless the submission fails (IOSQE_CQE_SKIP_SUCCESS).
func (s *SQE) Quiet() { s.Flags |= SQEQuiet }

// PrepNop does nothing, successfully.
func (s *SQE) PrepNop() { s.Opcode = OpNop; s.FD = -1 }

func (s *SQE) rw(op uint8, f File, addr uintptr, n uint32, off uint64, rwFlags uint32) {
	s.Opcode, s.Addr, s.Len, s.Off, s.OpFlags = op, uint64(addr), n, off, rwFlags
	s.file(f)
}

// PrepRead reads len(b) bytes at byte offset off into b. b must lie outside the Go heap.
// rwFlags are RWF*.
func (s *SQE) PrepRead(f File, b []byte, off uint64, rwFlags uint32) {
	s.rw(OpRead, f, Addr(b), uint32(len(b)), off, rwFlags)
}

// PrepWrite writes b at byte offset off. b must lie outside the Go heap.
func (s *SQE) PrepWrite(f File, b []byte, off uint64, rwFlags uint32) {
	s.rw(OpWrite, f, Addr(b), uint32(len(b)), off, rwFlags)
}

// PrepReadAddr is PrepRead of n bytes to an address.
func (s *SQE) PrepReadAddr(f File, addr uintptr, n uint32, off uint64, rwFlags uint32) {
	s.rw(OpRead, f, addr, n, off, rwFlags)
}

// PrepWriteAddr is PrepWrite of n bytes from an address.
func (s *SQE) PrepWriteAddr(f File, addr uintptr, n uint32, off uint64, rwFlags uint32) {
	s.rw(OpWrite, f, addr, n, off, rwFlags)
}

// PrepWritev writes what v names, one after the other, at byte offset off. v itself must lie outside
// the Go heap too, and stay as it is until the submission has completed.
func (s *SQE) PrepWritev(f File, v []Iovec, off uint64, rwFlags uint32) {
	s.rw(OpWritev, f, uintptr(unsafe.Pointer(unsafe.SliceData(v))), uint32(len(v)), off, rwFlags)
}

// PrepReadFixed reads n bytes at off into registered buffer buf. addr is an address inside the
// buffer as it was registered; for a buffer that the kernel registered (a ublk request) it is the
// byte offset inside the request.
func (s *SQE) PrepReadFixed(f File, buf uint16, addr uintptr, n uint32, off uint64,
	rwFlags uint32,
) {
	s.rw(OpReadFixed, f, addr, n, off, rwFlags)
	s.BufIndex = buf
}

// PrepWriteFixed writes n bytes of registered buffer buf, see PrepReadFixed, at off.
func (s *SQE) PrepWriteFixed(f File, buf uint16, addr uintptr, n uint32, off uint64,
	rwFlags uint32,
) {
	s.rw(OpWriteFixed, f, addr, n, off, rwFlags)
	s.BufIndex = buf
}

// SetPI makes a prepared read or write carry integrity metadata (Linux 6.14). It needs a block device
// that has such metadata, opened with O_DIRECT. a, and the memory it names, must be outside the Go
// heap; the kernel reads a when it takes the submission.
func (s *SQE) SetPI(a *PIAttr) {
	s.Addr3, s.attrMask = uint64(uintptr(unsafe.Pointer(a))), attrPI
}

// PrepFsync makes earlier completed writes of f durable; dataOnly as fdatasync does.
func (s *SQE) PrepFsync(f File, dataOnly bool) {
	s.Opcode = OpFsync
	if dataOnly {
		s.OpFlags = fsyncDatasync
	}
	s.file(f)
}

func (s *SQE) fallocate(f File, mode uint32, off, n uint64) {
	s.Opcode, s.Len, s.Off, s.Addr = OpFallocate, mode, off, n
	s.file(f)
}

// PrepPunchHole deallocates n bytes at off; they read as zero. On a block device it is a discard
// that must zero, or EOPNOTSUPP.
func (s *SQE) PrepPunchHole(f File, off, n uint64) {
	s.fallocate(f, fallocPunchHole|fallocKeepSize, off, n)
}

// PrepZeroRange makes n bytes at off read as zero. On a block device it is BLKZEROOUT.
func (s *SQE) PrepZeroRange(f File, off, n uint64) {
	s.fallocate(f, fallocZeroRange|fallocKeepSize, off, n)
}

// PrepBlockDiscard discards n bytes at off of a block device (Linux 6.12; EOPNOTSUPP or EINVAL
// before, and on regular files). What they read as afterwards is the device's choice.
func (s *SQE) PrepBlockDiscard(f File, off, n uint64) {
	s.Opcode, s.Off, s.Addr, s.Addr3 = OpUringCmd, BlockCmdDiscard, off, n
	s.file(f)
}

// PrepPollAdd waits for events (POLLIN, …) on f, once or again and again.
func (s *SQE) PrepPollAdd(f File, events uint32, multishot bool) {
	s.Opcode, s.OpFlags = OpPollAdd, events
	if multishot {
		s.Len = pollAddMulti
	}
	s.file(f)
}

// PrepPollRemove ends the poll submitted with userData.
func (s *SQE) PrepPollRemove(userData uint64) {
	s.Opcode, s.FD, s.Addr = OpPollRemove, -1, userData
}

// PrepCancel cancels submissions that match: by user data, or, with CancelOp in flags, by
// operation code in op. CancelAll cancels every match.
func (s *SQE) PrepCancel(userData uint64, op uint8, flags uint32) {
	s.Opcode, s.FD, s.Addr, s.Len, s.OpFlags = OpAsyncCancel, -1, userData, uint32(op), flags
}

// PrepMsgRing posts a completion with res, userData and, with passFlags, cqeFlags on another ring.
func (s *SQE) PrepMsgRing(ring File, res uint32, userData uint64) {
	s.Opcode, s.Len, s.Off = OpMsgRing, res, userData
	s.file(ring)
}

// PrepUringCmd sends a driver-specific command. Its payload goes to Cmd.
func (s *SQE) PrepUringCmd(f File, cmdOp uint32) {
	s.Opcode, s.Off = OpUringCmd, uint64(cmdOp)
	s.file(f)
}

// Cmd is where the payload of a command begins, at byte 48: 16 bytes are there, or 80 on a ring
// with submissions of 128 bytes.
func (s *SQE) Cmd() unsafe.Pointer { return unsafe.Pointer(&s.Addr3) }

// PrepTimeout completes with -ETIME after d. flags are Timeout*; with TimeoutAbs d is a point in
// time of CLOCK_MONOTONIC (or the clock in flags).
func (r *Ring) PrepTimeout(s *SQE, d time.Duration, flags uint32) {
	// The kernel copies the value at submission, so that a slot's value is free with its slot.
	slot := (uintptr(unsafe.Pointer(s)) - uintptr(r.sqes)) >> r.sqeShift
	ts := (*Timespec)(unsafe.Pointer(&r.args.b[argsTimespecs+(int(slot)+1)*timespecSize]))
	*ts = timespec(d)
	s.Opcode, s.FD, s.Addr, s.Len = OpTimeout, -1, uint64(uintptr(unsafe.Pointer(ts))), 1
	s.OpFlags = flags
}

// PrepTimeoutRemove ends the timeout submitted with userData.
func (s *SQE) PrepTimeoutRemove(userData uint64) {
	s.Opcode, s.FD, s.Addr = OpTimeoutRemove, -1, userData
}

// Slot is the number of a registered file; ok is false for a descriptor.
func (f File) Slot() (n int, ok bool) { return int(f.n), f.fixed }

package uring

import (
	"fmt"
	"runtime"
	"unsafe"
)

// registerRingFD spares each enter the look-up of the descriptor. The index is valid on the calling
// thread only. A failure costs a little speed and nothing else.
func (r *Ring) registerRingFD() {
	up := rsrcUpdate{offset: ^uint32(0), data: uint64(r.fd)}
	if n, e := sysRegister(r.fd, regRingFDs, unsafe.Pointer(&up), 1); e == 0 && n == 1 {
		r.enterFD, r.enterFix = int(up.offset), enterRegisteredRing
	}
}

// unregisterRingFD drops the thread's reference, which would otherwise keep the ring alive until
// the thread ends.
func (r *Ring) unregisterRingFD() {
	if r.enterFix == 0 {
		return
	}
	up := rsrcUpdate{offset: uint32(r.enterFD)}
	_, _ = sysRegister(r.fd, unregRingFDs, unsafe.Pointer(&up), 1)
	r.enterFD, r.enterFix = r.fd, 0
}

// RegisterFileTable makes n empty slots for registered files; RegisterFile fills them.
func (r *Ring) RegisterFileTable(n int) error {
	if n <= 0 || n > maxRegisteredFiles {
		return fmt.Errorf("register %d files: at most %d", n, maxRegisteredFiles)
	}
	reg := rsrcRegister{nr: uint32(n), flags: rsrcSparse}
	_, e := sysRegister(r.fd, regFiles2, unsafe.Pointer(&reg), uint32(unsafe.Sizeof(reg)))
	if e != 0 {
		return fmt.Errorf("register %d files: %w", n, e)
	}
	r.files = true
	return nil
}

// RegisterFile puts fd into slot i, or empties it if fd is -1. The ring holds its own reference.
func (r *Ring) RegisterFile(i, fd int) error {
	v := int32(fd)
	up := rsrcUpdate{offset: uint32(i), data: uint64(uintptr(unsafe.Pointer(&v)))}
	var pin runtime.Pinner
	pin.Pin(&v)
	_, e := sysRegister(r.fd, regFilesUpdate, unsafe.Pointer(&up), 1)
	pin.Unpin()
	if e != 0 {
		return fmt.Errorf("register file %d in slot %d: %w", fd, i, e)
	}
	return nil
}

// UnregisterFiles drops the table and its references, at once if nothing is in flight on them.
func (r *Ring) UnregisterFiles() error {
	if !r.files {
		return nil
	}
	r.files = false
	if _, e := sysRegister(r.fd, unregFiles, nil, 0); e != 0 {
		return fmt.Errorf("unregister files: %w", e)
	}
	return nil
}

// RegisterBufferTable makes n empty slots for registered buffers. RegisterBuffer fills them, or a
// driver such as ublk.
func (r *Ring) RegisterBufferTable(n int) error {
	if n <= 0 || n > maxRegisteredBufs {
		return fmt.Errorf("register %d buffers: at most %d", n, maxRegisteredBufs)
	}
	reg := rsrcRegister{nr: uint32(n), flags: rsrcSparse}
	_, e := sysRegister(r.fd, regBuffers2, unsafe.Pointer(&reg), uint32(unsafe.Sizeof(reg)))
	if e != 0 {
		return fmt.Errorf("register %d buffers: %w", n, e)
	}
	r.buffers = true
	return nil
}

// RegisterBuffer pins b, which must lie outside the Go heap, into slot i; nil empties the slot.
func (r *Ring) RegisterBuffer(i int, b []byte) error {
	iov := [2]uint64{uint64(Addr(b)), uint64(len(b))}
	up := rsrcUpdate2{offset: uint32(i), data: uint64(uintptr(unsafe.Pointer(&iov))), nr: 1}
	var pin runtime.Pinner
	pin.Pin(&iov)
	_, e := sysRegister(r.fd, regBuffersUpdate, unsafe.Pointer(&up), uint32(unsafe.Sizeof(up)))
	pin.Unpin()
	if e != 0 {
		return fmt.Errorf("register buffer of %d bytes in slot %d: %w", len(b), i, e)
	}
	return nil
}

// UnregisterBuffers drops the buffer table.
func (r *Ring) UnregisterBuffers() error {
	if !r.buffers {
		return nil
	}
	r.buffers = false
	if _, e := sysRegister(r.fd, unregBuffers, nil, 0); e != 0 {
		return fmt.Errorf("unregister buffers: %w", e)
	}
	return nil
}

// LimitWorkers limits the kernel's helper threads for requests that would block, bounded (files,
// block devices) and unbounded ones; 0 leaves a limit as it is.
func (r *Ring) LimitWorkers(bounded, unbounded uint32) error {
	v := [2]uint32{bounded, unbounded}
	if _, e := sysRegister(r.fd, regIOWQMaxWorkers, unsafe.Pointer(&v), 2); e != 0 {
		return fmt.Errorf("limit io_uring workers: %w", e)
	}
	return nil
}

// Supports reports whether the kernel knows an operation code.
func (r *Ring) Supports(op uint8) bool {
	p := new(probe)
	if _, e := sysRegister(r.fd, regProbe, unsafe.Pointer(p), uint32(len(p.ops))); e != 0 {
		return false
	}
	return op <= p.lastOp && p.ops[op].flags&opSupported != 0
}

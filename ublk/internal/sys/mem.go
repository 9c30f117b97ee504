package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ParamsSize is the size of struct ublk_params as this package knows it.
const ParamsSize = uint32(unsafe.Sizeof(Params{}))

// Bytes views a structure as bytes, for as long as v lives.
func Bytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// PutCtrlCmd writes the payload of a control command at p, see uring.SQE.Cmd.
func PutCtrlCmd(p unsafe.Pointer, c CtrlCmd) { *(*CtrlCmd)(p) = c }

// PutIOCmd writes the payload of an I/O command at p.
func PutIOCmd(p unsafe.Pointer, c IOCmd) { *(*IOCmd)(p) = c }

// Descriptors is a queue's array of request descriptors, mapped from /dev/ublkcN. The driver writes
// an element before it completes the tag's fetch; only then may it be read.
type Descriptors struct {
	mem    []byte
	stride uintptr
	mapped bool
}

// MapDescriptors maps the descriptors of one queue. The area of a queue begins at a multiple of the
// largest one's size, that of MaxQueueDepth descriptors, whatever the depth
// (ublk_max_cmd_buf_size).
func MapDescriptors(fd, queue, depth, stride, page int) (*Descriptors, error) {
	round := func(n int) int { return (n + page - 1) &^ (page - 1) }
	off := CmdBufOffset + queue*round(MaxQueueDepth*stride)
	mem, err := unix.Mmap(fd, int64(off), round(depth*stride), unix.PROT_READ,
		unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	return &Descriptors{mem: mem, stride: uintptr(stride), mapped: true}, nil
}

// DescriptorsIn views memory as descriptors, for tests.
func DescriptorsIn(mem []byte) *Descriptors {
	return &Descriptors{mem: mem, stride: unsafe.Sizeof(IODesc{})}
}

// At is the descriptor of a tag.
func (d *Descriptors) At(tag uint16) *IODesc {
	return (*IODesc)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(d.mem)), uintptr(tag)*d.stride))
}

// Unmap drops the mapping, which holds a reference to /dev/ublkcN.
func (d *Descriptors) Unmap() error {
	if d == nil || !d.mapped {
		return nil
	}
	mem := d.mem
	d.mem, d.mapped = nil, false
	return unix.Munmap(mem)
}

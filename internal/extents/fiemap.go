package extents

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"ubcache/attrs/rules"
)

// The interface of FS_IOC_FIEMAP, from include/uapi/linux/fiemap.h.
const (
	fsIocFiemap = 0xc020660b

	fiemapSync = 1

	extentLast       = 0x1
	extentUnknown    = 0x2
	extentDelalloc   = 0x4
	extentEncoded    = 0x8
	extentEncrypted  = 0x80
	extentNotAligned = 0x100
	extentInline     = 0x200
	extentTail       = 0x400
)

type fiemapExtent struct {
	Logical, Physical, Length uint64
	_                         [2]uint64
	Flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	Start, Length        uint64
	Flags, Mapped, Count uint32
	_                    uint32
	Extents              [fiemapBatch]fiemapExtent
}

// fiemapBatch is how many extents one call asks for: a buffer of 28 KiB.
const fiemapBatch = 512

// layout asks the filesystem where the data of a regular file lies on its device. Data that has no
// place of its own there is left out: small files that are kept in the inode, and data that is only
// in memory so far, of which there is some if unsettled is true. With sync the filesystem writes the
// latter out first.
func (m *fiemap) layout(f *os.File, sync bool) (list []rules.Range, unsettled bool, err error) {
	for start := uint64(0); ; {
		m.Start, m.Length, m.Flags, m.Mapped, m.Count = start, ^uint64(0)-start, 0, 0, fiemapBatch
		if sync {
			m.Flags = fiemapSync
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(m)))
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP, unix.ENOTTY:
			return nil, false, errNoFiemap
		default:
			return nil, false, fmt.Errorf("ask where %s lies: %w", f.Name(), errno)
		}
		for i := range m.Mapped {
			e := &m.Extents[i]
			if place, ok := e.place(); ok {
				list = append(list, place)
			}
			unsettled = unsettled || e.Flags&(extentDelalloc|extentUnknown) != 0
			start = e.Logical + e.Length
			if e.Flags&extentLast != 0 {
				return list, unsettled, nil
			}
		}
		if m.Mapped == 0 || start <= m.Start {
			return list, unsettled, nil
		}
	}
}

var errNoFiemap = errors.New("its filesystem does not tell where files lie")

// place is where the extent is on the device, if it is at a place of its own. Encrypted data is;
// other encodings, such as compression, do not map bytes to bytes. Extents that are allocated but
// not written yet count: it is there that the data will go.
func (e *fiemapExtent) place() (rules.Range, bool) {
	encoded := e.Flags&extentEncoded != 0 && e.Flags&extentEncrypted == 0
	const nowhere = extentUnknown | extentDelalloc | extentNotAligned | extentInline | extentTail
	if encoded || e.Flags&nowhere != 0 || e.Physical > 1<<62 || e.Length > 1<<62 {
		return rules.Range{}, false
	}
	return rules.Range{Off: int64(e.Physical), End: int64(e.Physical + e.Length)}, true
}

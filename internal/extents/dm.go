package extents

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"ubcache/attrs/rules"
)

// The interface of device-mapper, from include/uapi/linux/dm-ioctl.h: a head, then for each target of
// the table a dm_target_spec and its parameters as text. Numbers are those of the machine.
const (
	dmControl     = "/dev/mapper/control"
	dmTableStatus = 0xc138fd0c
	dmHeadBytes   = 312
	dmSpecBytes   = 40

	dmStatusTable = 1 << 4 // flag: the table, not its state
	dmBufferFull  = 1 << 8 // flag in the answer: the buffer is too small

	dmBufferMin = 16 << 10
	dmBufferMax = 64 << 20
)

// Places in the head.
const (
	dmVersion   = 0
	dmDataSize  = 12
	dmDataStart = 16
	dmCount     = 20
	dmFlags     = 28
	dmDev       = 40
)

var errDM = errors.New("device-mapper's answer cannot be read")

// dmLayers asks device-mapper for the table of a device.
func dmLayers(d Device) ([]layer, error) {
	f, err := os.OpenFile(dmControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ask device-mapper about %v: %w", d, err)
	}
	defer f.Close()
	for size := dmBufferMin; size <= dmBufferMax; size *= 8 {
		b := make([]byte, size)
		n := binary.NativeEndian
		n.PutUint32(b[dmVersion:], 4)
		n.PutUint32(b[dmDataSize:], uint32(size))
		n.PutUint32(b[dmDataStart:], dmHeadBytes)
		n.PutUint32(b[dmFlags:], dmStatusTable)
		n.PutUint64(b[dmDev:], unix.Mkdev(d.Major, d.Minor))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), dmTableStatus,
			uintptr(unsafe.Pointer(&b[0])))
		if errno != 0 {
			return nil, fmt.Errorf("ask device-mapper about %v: %w", d, errno)
		}
		if n.Uint32(b[dmFlags:])&dmBufferFull == 0 {
			return parseTable(d, b)
		}
	}
	return nil, fmt.Errorf("the table of %v is too long", d)
}

// parseTable reads the answer to dmTableStatus.
func parseTable(d Device, b []byte) ([]layer, error) {
	n := binary.NativeEndian
	start := n.Uint32(b[dmDataStart:])
	if start < dmHeadBytes || int64(start) > int64(len(b)) {
		return nil, errDM
	}
	data := b[start:]
	at := uint32(0)
	var list []layer
	for range n.Uint32(b[dmCount:]) {
		if int64(at)+dmSpecBytes > int64(len(data)) {
			return nil, errDM
		}
		spec, text := data[at:at+dmSpecBytes], data[at+dmSpecBytes:]
		end := bytes.IndexByte(text, 0)
		if end < 0 {
			return nil, errDM
		}
		kind := string(bytes.TrimRight(spec[24:40], "\x00"))
		first, count := n.Uint64(spec), n.Uint64(spec[8:])
		if first > 1<<53 || count > 1<<53 {
			return nil, errDM
		}
		l, err := parseTarget(kind, string(text[:end]))
		if err != nil {
			return nil, fmt.Errorf("its filesystem is on %v: %w", d, err)
		}
		l.part.Range = rules.Range{
			Off: int64(first) * sectorBytes, End: int64(first+count) * sectorBytes,
		}
		if l.below != (Device{}) { // else on no device
			list = append(list, l)
		}
		at = n.Uint32(spec[20:])
	}
	return list, nil
}

// parseTarget reads the parameters of a target: device and first sector there.
func parseTarget(kind, params string) (l layer, err error) {
	f := strings.Fields(params)
	switch {
	case kind == "linear" && len(f) >= 2:
	case kind == "crypt" && len(f) >= 5: // cipher, key, offset of the initial vectors, device, sector
		f = f[3:]
	case kind == "zero" || kind == "error":
		return l, nil
	default:
		return l, fmt.Errorf("device-mapper's %s cannot be followed down (only linear and crypt can)", kind)
	}
	if l.below, err = parseDevice(f[0]); err != nil {
		return l, err
	}
	sector, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil || sector < 0 || sector > 1<<53 {
		return l, errDM
	}
	l.part.to = sector * sectorBytes
	return l, nil
}

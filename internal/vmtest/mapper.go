//go:build vm

package vmtest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The device mapper's ioctls, as far as tests need them too often for a command each: a mark in a log of
// writes costs microseconds instead of the start of a process. include/uapi/linux/dm-ioctl.h has
// the structure and the numbers.
const (
	dmHeaderBytes = 312
	dmNameOff     = 48
	dmFlagsOff    = 28
	dmSuspend     = 6  // number of DM_DEV_SUSPEND, which resumes as well
	dmMessage     = 14 // number of DM_TARGET_MSG
	dmSuspendFlag = 1 << 1
	dmSkipLockFS  = 1 << 10
)

// Mapped is a device of the device mapper that a test suspends or sends messages to.
type Mapped struct {
	name    string
	control *os.File
}

// OpenMapped opens the control of a device that [Mapper] has made.
func OpenMapped(t testing.TB, dev string) *Mapped {
	t.Helper()
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &Mapped{name: filepath.Base(dev), control: f}
}

// Suspend waits for all I/O under way and holds up what comes after.
func (m *Mapped) Suspend() error {
	return m.ioctl("suspend", dmSuspend, dmSuspendFlag|dmSkipLockFS, nil)
}

// Resume ends [Mapped.Suspend]. If a table was loaded meanwhile it takes effect.
func (m *Mapped) Resume() error { return m.ioctl("resume", dmSuspend, 0, nil) }

// Message sends the device's first target a message.
func (m *Mapped) Message(text string) error {
	// A sector number of 64 bits, and the text.
	return m.ioctl("send message to", dmMessage, 0, append(append(make([]byte, 8), text...), 0))
}

func (m *Mapped) ioctl(what string, number, flags uint32, data []byte) error {
	buf := make([]byte, dmHeaderBytes+(len(data)+7)/8*8)
	le := binary.LittleEndian
	le.PutUint32(buf, 4) // version 4.0.0 of the interface
	le.PutUint32(buf[12:], uint32(len(buf)))
	le.PutUint32(buf[16:], dmHeaderBytes)
	le.PutUint32(buf[dmFlagsOff:], flags)
	copy(buf[dmNameOff:dmNameOff+127], m.name)
	copy(buf[dmHeaderBytes:], data)
	const readWrite, dmType = 3, 0xfd
	request := uintptr(readWrite)<<30 | uintptr(dmHeaderBytes)<<16 | uintptr(dmType)<<8 | uintptr(number)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.control.Fd(), request,
		uintptr(unsafe.Pointer(&buf[0])))
	if errno != 0 {
		return fmt.Errorf("%s %s: %w", what, m.name, errno)
	}
	return nil
}

// Swap replaces the table of a device live, under I/O: what is under way ends with the old table, and
// what comes meets the new one.
func Swap(t testing.TB, dev, table string) {
	t.Helper()
	name := filepath.Base(dev)
	Run(t, "dmsetup", "load", name, "--table", table)
	Run(t, "dmsetup", "suspend", "--nolockfs", name)
	Run(t, "dmsetup", "resume", name)
}

// Loop makes a loop device of a device or file, which sends its requests on with O_DIRECT. It has one
// hardware queue, so that flushes end in the order in which they began.
func Loop(t testing.TB, file string) string {
	t.Helper()
	loop := Run(t, "losetup", "--show", "--direct-io=on", "-f", file)
	t.Cleanup(func() { Run(t, "losetup", "-d", loop) })
	return loop
}

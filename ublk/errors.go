package ublk

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a caller may act on.
var (
	// ErrBusy: the device is open, mounted, or still held by another server.
	ErrBusy = errors.New("device is in use")
	// ErrNotFound: no such device.
	ErrNotFound = errors.New("no such ublk device")
	// ErrNotRecoverable: the device was created without recovery.
	ErrNotRecoverable = errors.New("device was created without recovery")
	// ErrStopped: the device is not running (any more).
	ErrStopped = errors.New("device is not running")
	// ErrLost: a control command got no answer in time. The driver may be stuck; no further
	// device should be created.
	ErrLost = errors.New("the driver does not answer")
)

// Error is a failed control command.
type Error struct {
	Op    string        // what was being done: "add device", …
	ID    int           // device, or -1
	Errno syscall.Errno // as the driver gave it
	kind  error
	hint  string
}

func (e *Error) Error() string {
	s := "ublk: " + e.Op
	if e.ID >= 0 {
		s = fmt.Sprintf("ublk%d: %s", e.ID, e.Op)
	}
	s += ": " + e.Errno.Error()
	if e.hint != "" {
		s += " (" + e.hint + ")"
	}
	return s
}

// Unwrap lets errors.Is find both the errno and the sentinel it stands for.
func (e *Error) Unwrap() []error {
	if e.kind == nil {
		return []error{e.Errno}
	}
	return []error{e.Errno, e.kind}
}

// commandError is the one place where the driver's errno become errors.
func commandError(op string, id int, errno syscall.Errno) error {
	e := &Error{Op: op, ID: id, Errno: errno}
	switch errno {
	case unix.ENODEV:
		e.kind = ErrNotFound
	case unix.EBUSY:
		e.kind = ErrBusy
	case unix.EPERM:
		e.kind, e.hint = fs.ErrPermission, "needs CAP_SYS_ADMIN"
	case unix.EACCES:
		e.hint = "the device was started before; delete it and create it anew"
	case unix.EEXIST:
		e.kind, e.hint = fs.ErrExist, "choose another id, or -1 for any"
	case unix.EOPNOTSUPP:
		e.hint = "the kernel does not know the command"
	}
	return e
}

func controlOpenError(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		hint = " (load the module: modprobe ublk_drv)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		hint = " (run as root)"
	}
	return fmt.Errorf("open %s: %w%s", controlPath, err, hint)
}

// lostError reports a command whose deadline has passed.
func lostError(op string, id int, after time.Duration) error {
	return fmt.Errorf("ublk%d: %s: %w (waited %v)", id, op, ErrLost, after.Round(time.Millisecond))
}

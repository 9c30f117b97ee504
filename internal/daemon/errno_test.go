package daemon

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/cache"
)

// What attributes make a request fail with is what the client sees.
func TestErrnoOf(t *testing.T) {
	for want, err := range map[syscall.Errno]error{
		attrs.ErrnoRefused:  fmt.Errorf("a required attribute: %w", attrs.ErrnoRefused),
		attrs.ErrnoInvalid:  attrs.ErrnoInvalid,
		attrs.ErrnoMismatch: cache.ErrMismatch,
		attrs.ErrnoDeadline: cache.ErrLate,
		unix.EIO:            errors.New("something else"),
	} {
		if got := errnoOf(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
	if got := errnoOf(unix.EAGAIN); got != unix.EIO {
		t.Errorf("EAGAIN becomes %v", got)
	}
}

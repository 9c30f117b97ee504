package hostile

import (
	"errors"
	"os"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"
)

// gone is memory that was there and is not any more.
func gone(t *testing.T) []byte {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	if err := Copy(b, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCopy: to touch memory that is gone is an error, in both directions.
func TestCopy(t *testing.T) {
	b, mine := gone(t), make([]byte, 4096)
	for _, err := range []error{Copy(mine, b), Copy(b, mine)} {
		if !errors.Is(err, ErrFault) {
			t.Errorf("error %v", err)
		}
	}
	if was := debug.SetPanicOnFault(false); was {
		t.Error("faults are panics afterwards")
	}
}

// TestGuard: other panics are passed on, and without any the error stays as it is.
func TestGuard(t *testing.T) {
	mistake := errors.New("a mistake")
	guarded := func(f func()) (err error) {
		defer Guard(&err, debug.SetPanicOnFault(true))
		f()
		return mistake
	}
	if err := guarded(func() {}); !errors.Is(err, mistake) {
		t.Errorf("error %v", err)
	}
	defer func() {
		if p := recover(); p != "on purpose" {
			t.Errorf("panic %v", p)
		}
		if was := debug.SetPanicOnFault(false); was {
			t.Error("faults are panics afterwards")
		}
	}()
	_ = guarded(func() { panic("on purpose") })
}

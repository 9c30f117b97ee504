package shm

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestIdentity: the same memory is known again through any descriptor, and no other is.
func TestIdentity(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	a, err := Create(Options{Bytes: 1 << 20})
	must(err)
	defer a.Close()
	b, err := Create(Options{Bytes: 1 << 20})
	must(err)
	defer b.Close()
	va, err := Open(a.FD(), 1<<20)
	must(err)
	defer va.Close()
	dup, err := unix.Dup(a.FD())
	must(err)
	defer unix.Close(dup)
	again, err := Identify(dup)
	must(err)
	other, err := Identify(b.FD())
	must(err)
	if va.Identity() != again || again == other || again.Bytes != va.Bytes() || again.Inode == 0 {
		t.Errorf("%+v, again %+v, other memory %+v", va.Identity(), again, other)
	}
	if _, err := Identify(-1); err == nil {
		t.Error("nothing has an identity")
	}
}

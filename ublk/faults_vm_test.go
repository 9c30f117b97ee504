//go:build vm

package ublk_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// failingStart is a handler whose Start fails on one queue.
type failingStart struct {
	ublk.HandlerFunc
	err error
}

func (f failingStart) Start(*ublk.Queue) error { return f.err }

func TestStartFails(t *testing.T) {
	boom := errors.New("boom")
	for _, bad := range []int{0, 1} {
		d, err := ublk.Create(testOptions(ublk.Copy, testDiskSize))
		if err != nil {
			t.Fatal(err)
		}
		err = d.Start(func(i int) (ublk.Handler, error) {
			if i == bad {
				return failingStart{err: boom}, nil
			}
			return failingStart{}, nil
		})
		if !errors.Is(err, boom) {
			t.Errorf("Start: %v, want boom", err)
		}
		if err := d.Delete(timeout(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHandlerPanics(t *testing.T) {
	o := testOptions(ublk.Copy, testDiskSize)
	errs := make(chan error, 100)
	o.OnError = func(err error) { errs <- err }
	disk := newDisk(t, testDiskSize)
	d := serve(t, o, func(i int) (ublk.Handler, error) {
		h, _ := disk.factory(i)
		return panicking{h}, nil
	})
	fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf, err := ublk.NewArena(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	if _, err := unix.Pread(fd, buf.Bytes(), badOffset); err != unix.EIO {
		t.Errorf("read whose handler panics: %v, want EIO", err)
	}
	select {
	case err := <-errs:
		t.Logf("reported: %.60s…", err)
	default:
		t.Error("OnError was not called")
	}
	if _, err := unix.Pread(fd, buf.Bytes(), 0); err != nil {
		t.Errorf("read after a panic: %v", err)
	}
}

const badOffset = 48 << 20

type panicking struct{ ublk.Handler }

func (p panicking) Handle(q *ublk.Queue, r *ublk.Request) {
	if r.Op == ublk.OpRead && r.Offset() == badOffset {
		panic("a bug in the handler")
	}
	p.Handler.Handle(q, r)
}

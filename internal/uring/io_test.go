package uring_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// ioKind names a file by descriptor and by slot, and memory by address and by buffer index.
type ioKind struct{ fixedFile, fixedBuf bool }

func newArena(t testing.TB, size int) *uring.Arena {
	t.Helper()
	a, err := uring.NewArena(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Free(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// newFile opens a temporary file, for direct I/O if the filesystem can.
func newFile(t testing.TB) int {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_CLOEXEC
	fd, err := unix.Open(name, flags|unix.O_DIRECT, 0o600)
	if err == unix.EINVAL {
		t.Logf("no direct I/O in %s", name)
		fd, err = unix.Open(name, flags, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestReadWrite(t *testing.T) {
	eachKind(t, func(t *testing.T, o uring.Options) {
		for _, k := range []ioKind{{}, {fixedFile: true}, {fixedBuf: true}, {true, true}} {
			t.Run(fmt.Sprintf("%+v", k), func(t *testing.T) { readWrite(t, newRing(t, 64, o), k) })
		}
	})
}

func readWrite(t *testing.T, r *uring.Ring, k ioKind) {
	const blocks, size = 32, 8192
	fd := newFile(t)
	out, in := newArena(t, blocks*size), newArena(t, blocks*size)
	file := uring.FD(fd)
	if k.fixedFile {
		if err := r.RegisterFileTable(4); err != nil {
			t.Fatal(err)
		}
		if err := r.RegisterFile(2, fd); err != nil {
			t.Fatal(err)
		}
		file = uring.Fixed(2)
		defer func() {
			if err := r.UnregisterFiles(); err != nil {
				t.Error(err)
			}
		}()
	}
	if k.fixedBuf {
		if err := r.RegisterBufferTable(8); err != nil {
			t.Fatal(err)
		}
		for i, a := range []*uring.Arena{out, in} {
			if err := r.RegisterBuffer(i, a.Bytes()); err != nil {
				t.Fatal(err)
			}
		}
		defer func() {
			if err := r.UnregisterBuffers(); err != nil {
				t.Error(err)
			}
		}()
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range out.Bytes() {
		out.Bytes()[i] = byte(rng.Uint32())
	}
	prep := func(write bool, i int) {
		s := r.NextSQE()
		a, buf := in, uint16(1)
		if write {
			a, buf = out, 0
		}
		b, off := a.Slice(i*size, size), uint64(i*size)
		switch {
		case write && k.fixedBuf:
			s.PrepWriteFixed(file, buf, uring.Addr(b), size, off, uring.RWFDSync)
		case write:
			s.PrepWrite(file, b, off, uring.RWFDSync)
		case k.fixedBuf:
			s.PrepReadFixed(file, buf, uring.Addr(b), size, off, 0)
		default:
			s.PrepRead(file, b, off, 0)
		}
		s.SetUserData(uint64(i))
	}
	for _, write := range []bool{true, false} {
		for _, i := range rng.Perm(blocks) {
			prep(write, i)
		}
		for i, res := range await(t, r, blocks) {
			if res != size {
				t.Fatalf("block %d, write %v: %d", i, write, res)
			}
		}
	}
	if !bytes.Equal(in.Bytes(), out.Bytes()) {
		t.Error("data read is not data written")
	}
}

func TestFsyncAndHoles(t *testing.T) {
	r := newRing(t, 8, uring.Options{})
	fd := newFile(t)
	a := newArena(t, 16384)
	for i := range a.Bytes() {
		a.Bytes()[i] = 0xff
	}
	one := func(what string, prep func(s *uring.SQE), want int32) {
		t.Helper()
		prep(r.NextSQE())
		if got := await(t, r, 1)[0]; got != want {
			if got == -int32(unix.EOPNOTSUPP) {
				t.Skipf("skipped: %s is not supported by the filesystem", what)
			}
			t.Fatalf("%s: %d, want %d", what, got, want)
		}
	}
	one("write", func(s *uring.SQE) { s.PrepWrite(uring.FD(fd), a.Bytes(), 0, 0) }, 16384)
	one("fsync", func(s *uring.SQE) { s.PrepFsync(uring.FD(fd), false) }, 0)
	one("fdatasync", func(s *uring.SQE) { s.PrepFsync(uring.FD(fd), true) }, 0)
	one("punch hole", func(s *uring.SQE) { s.PrepPunchHole(uring.FD(fd), 4096, 4096) }, 0)
	one("zero range", func(s *uring.SQE) { s.PrepZeroRange(uring.FD(fd), 12288, 4096) }, 0)
	one("read", func(s *uring.SQE) { s.PrepRead(uring.FD(fd), a.Bytes(), 0, 0) }, 16384)
	for i, want := range []byte{0xff, 0, 0xff, 0} {
		if got := a.Bytes()[i*4096]; got != want {
			t.Errorf("page %d: %#x, want %#x", i, got, want)
		}
	}
	s := r.NextSQE()
	s.PrepBlockDiscard(uring.FD(fd), 0, 4096)
	if got := await(t, r, 1)[0]; got >= 0 {
		t.Errorf("block discard of a regular file: %d", got)
	}
}

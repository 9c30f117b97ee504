//go:build vm

package ublk_test

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// TestReplacedMemory: the driver takes a read's data from the memory that the commit names, not from what
// the tag had before, which may change at any time.
func TestReplacedMemory(t *testing.T) {
	for _, mode := range []ublk.CopyMode{ublk.Copy, ublk.RingCopy} {
		t.Run(mode.String(), func(t *testing.T) {
			need(t, modeFeatures(mode))
			o := testOptions(mode, testDiskSize)
			o.Queues = 1
			replaced := 0
			d := serve(t, o, func(int) (ublk.Handler, error) {
				return ublk.HandlerFunc(func(q *ublk.Queue, r *ublk.Request) {
					if r.Op != ublk.OpRead {
						q.CompleteOK(r.Tag)
						return
					}
					old := r.Data
					if at, ok := q.Replace(r.Tag); ok {
						replaced++
						defer q.Reclaim(at)
					}
					copy(r.Data, bytes.Repeat([]byte{0x5a}, len(r.Data)))
					copy(old, bytes.Repeat([]byte{0xee}, len(old)))
					q.CompleteOK(r.Tag)
					copy(old, bytes.Repeat([]byte{0xef}, len(old)))
				}), nil
			})
			fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			buf, err := ublk.NewArena(64 << 10)
			if err != nil {
				t.Fatal(err)
			}
			defer buf.Free()
			for range 300 {
				b := buf.Slice(0, 64<<10)
				clear(b)
				if _, err := unix.Pread(fd, b, 0); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b, bytes.Repeat([]byte{0x5a}, len(b))) {
					t.Fatalf("the read has %#x", b[0])
				}
			}
			if replaced < 300 {
				t.Errorf("memory was replaced %d times", replaced)
			}
		})
	}
}

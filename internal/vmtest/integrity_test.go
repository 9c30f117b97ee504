//go:build vm

package vmtest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/internal/pi"
	"ubcache/internal/uring"
)

// TestIntegrityRefused: an older kernel says so, and nothing is attached.
func TestIntegrityRefused(t *testing.T) {
	if KernelAtLeast(t, "7.0") {
		t.Skip("this kernel has integrity metadata: TestIntegrity")
	}
	Limit(t, time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 64))
	Refused(t, 3, "needs Linux 7.0", "attach", Slice(t, "slow", 0, 64), "--name=data", "--integrity")
	if n := len(c.Status(t).Devices); n != 0 {
		t.Errorf("%d devices attached", n)
	}
}

// TestIntegrity: plain programs and filesystems are protected by the kernel, a program that brings its
// own tuples is checked before a write has any effect, and gets tuples and results with a read.
func TestIntegrity(t *testing.T) {
	NeedKernel(t, "7.0")
	Limit(t, 3*time.Minute)
	for _, sums := range []string{"checksums", "no-checksums"} {
		t.Run(sums, func(t *testing.T) {
			var flags []string
			if sums == "no-checksums" {
				flags = append(flags, "--no-checksums")
			}
			c := NewCache(t, Slice(t, "ssd", 0, 128), flags...)
			dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", "--mode=writeback", "--integrity")
			if d := c.Device(t, "data"); !d.Integrity || d.CopyMode != "user-copy" {
				t.Fatalf("integrity %v, copy mode %s", d.Integrity, d.CopyMode)
			}
			testPI(t, c, dev)
			c.Kill(t)
			c.Start(t)
			// What was read near unflushed writes counts as dirty after a crash, and dirty data
			// cannot be passed by.
			Ubcache(t, "flush", "data")
			testPI(t, c, dev)
			fsOnIntegrity(t, dev)
		})
	}
}

// fsOnIntegrity: ext4 knows nothing of it and is protected all the same.
func fsOnIntegrity(t *testing.T, dev string) {
	Run(t, "mkfs.ext4", "-q", "-F", dev)
	dir := Mount(t, dev, "")
	want := MakeTree(t, filepath.Join(dir, "tree"), 50, 7)
	Run(t, "sync", "-f", dir)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	want.Compare(t, "tree", ListTree(t, filepath.Join(dir, "tree")))
	Run(t, "umount", dir)
	Run(t, "e2fsck", "-fn", dev)
}

// piRing issues reads and writes with metadata of the program's own.
type piRing struct {
	ring  *uring.Ring
	fd    int
	block int
	mem   *uring.Arena // data, metadata, attribute
}

const (
	piMetaAt, piAttrAt = 1 << 20, 1<<20 + 1<<16
	checkAll           = 1 | 2 // IO_INTEGRITY_CHK_GUARD, IO_INTEGRITY_CHK_REFTAG
)

func newPIRing(t testing.TB, dev string) *piRing {
	t.Helper()
	r, err := uring.New(8, uring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	mem, err := uring.NewArena(piAttrAt + 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Free() })
	f := openDirect(t, dev, 0)
	return &piRing{r, int(f.Fd()), int(QueueLimit(t, dev, "logical_block_size")), mem}
}

func (p *piRing) data(n int) []byte { return p.mem.Slice(0, n) }
func (p *piRing) meta(n int) []byte { return p.mem.Slice(piMetaAt, n/p.block*pi.Bytes) }

// do moves n bytes at off; the result is a byte count or a negated errno.
func (p *piRing) do(t testing.TB, write bool, n int, off int64) int32 {
	t.Helper()
	a := (*uring.PIAttr)(unsafe.Pointer(&p.mem.Bytes()[piAttrAt]))
	*a = uring.PIAttr{
		Flags: checkAll, Len: uint32(len(p.meta(n))), Addr: uint64(uring.Addr(p.meta(n))),
		Seed: uint64(off) / uint64(p.block),
	}
	s := p.ring.NextSQE()
	if write {
		s.PrepWrite(uring.FD(p.fd), p.data(n), uint64(off), 0)
	} else {
		s.PrepRead(uring.FD(p.fd), p.data(n), uint64(off), 0)
	}
	s.SetPI(a)
	if err := p.ring.SubmitAndWait(1, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	res := p.ring.Peek().Res
	p.ring.Advance(1)
	return res
}

func testPI(t *testing.T, c *Cache, dev string) {
	p := newPIRing(t, dev)
	const n, off = 16384, 1 << 20
	lba := uint64(off / p.block)

	// A write with tuples and attributes of its own.
	var set attrs.Set
	set.SetHint(attrs.HintBypass)
	set.Require(attrs.IDHint)
	var opaque [attrs.CompactBytes]byte
	if err := set.EncodeCompact(opaque[:]); err != nil {
		t.Fatal(err)
	}
	Fill(p.data(n), 1)
	pi.Fill(p.meta(n), p.data(n), opaque[:], p.block, lba)
	want := bytes.Clone(p.data(n))
	before := c.Stats(t).Devices["data"].CachedWriteBlocks
	if res := p.do(t, true, n, off); res != n {
		t.Fatalf("write with metadata: %d", res)
	}
	if now := c.Stats(t).Devices["data"].CachedWriteBlocks; now != before {
		t.Errorf("%d blocks cached by a write with hint=bypass beside its tuples", now-before)
	}

	// It comes back with tuples that fit, and with results.
	clear(p.data(n))
	clear(p.meta(n))
	if res := p.do(t, false, n, off); res != n || !bytes.Equal(p.data(n), want) {
		t.Fatalf("read with metadata: %d, or wrong data", res)
	}
	if bad, ok := pi.Check(p.meta(n), p.data(n), p.block, lba); !ok {
		t.Errorf("the metadata of block %d does not fit its data", bad)
	}
	var r attrs.Results
	if err := r.DecodeCompact(p.meta(n)); err != nil || r.Origin != attrs.OriginBacking {
		t.Errorf("results beside the tuples: %v, origin %v, want backing", err, r.Origin)
	}

	// A tuple that does not fit its data, or its place, or an attribute that is required and means
	// nothing: refused, and nothing is stored.
	set = attrs.Set{}
	set.SetHint(attrs.HintPrefetch)
	set.Require(attrs.IDHint)
	for name, spoil := range map[string]func(){
		"data":      func() { p.data(n)[5000] ^= 1 },
		"reference": func() { p.meta(n)[pi.Bytes-1] ^= 1 },
		"required":  func() { _ = set.EncodeCompact(opaque[:]); pi.Fill(p.meta(n), p.data(n), opaque[:], p.block, lba) },
	} {
		Fill(p.data(n), 2)
		pi.Fill(p.meta(n), p.data(n), nil, p.block, lba)
		spoil()
		wantErr := -int32(unix.EILSEQ)
		if name == "required" {
			wantErr = -int32(attrs.ErrnoRefused)
		}
		if res := p.do(t, true, n, off); res != wantErr {
			t.Errorf("%s: write: %d, want %d", name, res, wantErr)
		}
		f := openDirect(t, dev, 0)
		got := alignedMemory(t, n)
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: a refused write had an effect (%v)", name, err)
		}
	}
}

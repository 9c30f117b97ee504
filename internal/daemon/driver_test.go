package daemon

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/cache"
)

// These tests run the engine and the driver on real io_uring and image files, without ublk.

// world is what a client's part of the device must hold. Sectors that were discarded hold
// anything until they are written again.
type world struct {
	base    int64
	data    []byte
	unknown []bool // per sector
	locked  []bool // per sector: a request is under way
}

const sector = cache.SectorSize

func newWorld(base, size int64) *world {
	return &world{
		base: base, data: make([]byte, size), unknown: make([]bool, size/sector),
		locked: make([]bool, size/sector),
	}
}

// lock reserves sectors that no other request uses; false if one does.
func (w *world) lock(off, n int64) bool {
	for i := off / sector; i < (off+n)/sector; i++ {
		if w.locked[i] {
			return false
		}
	}
	w.set(w.locked, off, n, true)
	return true
}

func (w *world) set(what []bool, off, n int64, v bool) {
	for i := off / sector; i < (off+n)/sector; i++ {
		what[i] = v
	}
}

// compare reports the first sector of got that the device cannot hold.
func (w *world) compare(off int64, got []byte) error {
	for i := int64(0); i < int64(len(got)); i += sector {
		if w.unknown[(off+i)/sector] {
			continue
		}
		want := w.data[off+i : off+i+sector]
		if !bytes.Equal(got[i:i+sector], want) {
			return fmt.Errorf("sector at %d reads %x… instead of %x…", w.base+off+i, got[i:i+16],
				want[:16])
		}
	}
	return nil
}

// exercise makes n random requests on a client's part of the device and compares what it reads.
func exercise(t *testing.T, c *client, w *world, rng *rand.Rand, n int) {
	t.Helper()
	var first error
	c.next = func(r *cache.Request, buf []byte) bool {
		if n == 0 || first != nil {
			return false
		}
		n--
		r.Op, r.FUA, r.Off, r.Len, r.Data = cache.ReqFlush, false, 0, 0, nil
		kind := rng.IntN(100)
		if kind < 3 {
			return true
		}
		var off, size int64
		for tries := 0; ; tries++ {
			size = sector * (1 + rng.Int64N(int64(c.max)/sector))
			if rng.IntN(2) == 0 {
				size = (size + 4095) &^ 4095
			}
			off = rng.Int64N((int64(len(w.data))-size)/sector+1) * sector
			if rng.IntN(2) == 0 {
				off &^= 4095
			}
			if w.lock(off, size) {
				break
			}
			if tries == 1000 {
				return true
			}
		}
		r.Off, r.Len = w.base+off, size
		switch {
		case kind < 50:
			r.Op, r.Data = cache.ReqRead, buf[:size]
			clear(r.Data)
		case kind < 90:
			r.Op, r.Data, r.FUA = cache.ReqWrite, buf[:size], kind < 55
			for i := 0; i < len(r.Data); i += 8 {
				binary.LittleEndian.PutUint64(r.Data[i:], rng.Uint64())
			}
		case kind < 95:
			r.Op = cache.ReqDiscard
		default:
			r.Op = cache.ReqWriteZeroes
		}
		return true
	}
	c.done = func(r *cache.Request) {
		if r.Err != nil && first == nil {
			first = fmt.Errorf("%s at %d+%d: %w", r.Op, r.Off, r.Len, r.Err)
		}
		if r.Len == 0 {
			return
		}
		off := r.Off - w.base
		w.set(w.locked, off, r.Len, false)
		switch r.Op {
		case cache.ReqRead:
			if err := w.compare(off, r.Data); err != nil && first == nil {
				first = err
			}
			return
		case cache.ReqWrite:
			copy(w.data[off:], r.Data)
		case cache.ReqWriteZeroes:
			clear(w.data[off : off+r.Len])
		}
		w.set(w.unknown, off, r.Len, r.Op == cache.ReqDiscard)
	}
	c.run()
	if first != nil {
		t.Error(first)
	}
}

func TestDriver(t *testing.T) {
	const half, ops = 24 << 20, 1500
	for _, mode := range []cache.Mode{
		cache.Writeback, cache.Writethrough, cache.Writearound, cache.Writeonly, cache.None,
	} {
		for _, checksums := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/checksums=%v", mode, checksums), func(t *testing.T) {
				t.Parallel() // mostly they wait for the disk
				seed := uint64(mode)*2 + 1
				w := newBench(t, benchOptions{
					ssdBytes: 64 << 20, diskBytes: 2 * half, mode: mode, noChecksums: !checksums,
				})
				worlds := []*world{newWorld(0, half), newWorld(half, half)}
				for round := range 4 {
					var wg sync.WaitGroup
					for i, p := range worlds {
						c := w.client(8, 256<<10)
						rng := rand.New(rand.NewPCG(seed, uint64(round*2+i)))
						wg.Go(func() { exercise(t, c, p, rng, ops/4) })
					}
					wg.Wait()
					if round%2 == 0 {
						w.kill()
					} else {
						w.stop()
					}
					w.check()
					w.open()
					if late := w.c.Loading().Running; late != (round%2 == 1) {
						t.Errorf("round %d: the index is loaded beside I/O: %v", round, late)
					}
					w.start()
				}
				for _, p := range worlds {
					readBack(t, w.client(4, 1<<20), p)
				}
				w.stop()
			})
		}
	}
}

// readBack reads a whole part of the device and compares it.
func readBack(t *testing.T, c *client, w *world) {
	t.Helper()
	at := int64(0)
	c.next = func(r *cache.Request, buf []byte) bool {
		if at == int64(len(w.data)) {
			return false
		}
		n := min(int64(c.max), int64(len(w.data))-at)
		r.Op, r.FUA, r.Off, r.Len, r.Data = cache.ReqRead, false, w.base+at, n, buf[:n]
		at += n
		return true
	}
	c.done = func(r *cache.Request) {
		if r.Err != nil {
			t.Error(r.Err)
		} else if err := w.compare(r.Off-w.base, r.Data); err != nil {
			t.Error("after restarts: ", err)
		}
	}
	c.run()
}

// TestMissingDevice makes sure that a device that is not there is an error and never another file.
func TestMissingDevice(t *testing.T) {
	// Descriptor 0 is what the zero value of a file would mean.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	must(t, unix.Dup3(int(null.Fd()), 0, 0))
	w := newBench(t, benchOptions{ssdBytes: 64 << 20, diskBytes: 32 << 20, mode: cache.Writearound})
	c := w.client(1, 4096)
	must(t, c.l.do(func() error { return c.l.dropFile(w.id) }))
	ops := []cache.ReqOp{cache.ReqRead, cache.ReqWrite, cache.ReqDiscard, cache.ReqWriteZeroes}
	n := 0
	c.next = func(r *cache.Request, buf []byte) bool {
		if n == len(ops) {
			return false
		}
		r.Op, r.FUA, r.Off, r.Len, r.Data = ops[n], false, 0, 4096, buf[:4096]
		n++
		return true
	}
	c.done = func(r *cache.Request) {
		if r.Err == nil {
			t.Errorf("a %s without a device succeeded", r.Op)
		}
	}
	c.run()
	w.stop()
}

// BenchmarkHit is 4 KiB random reads that the cache has, 16 at a time, from memory: what driver,
// ring and engine cost.
func BenchmarkHit(b *testing.B) {
	for _, checksums := range []bool{true, false} {
		b.Run(fmt.Sprintf("checksums=%v", checksums), func(b *testing.B) { benchmarkHit(b, checksums) })
	}
}

func benchmarkHit(b *testing.B, checksums bool) {
	const size = 64 << 20
	dir, err := os.MkdirTemp("/dev/shm", "ubcache-bench-")
	must(b, err)
	defer os.RemoveAll(dir)
	w := newBench(b, benchOptions{
		dir: dir, ssdBytes: 2 << 30, diskBytes: size, mode: cache.Writeback,
		noChecksums: !checksums,
	})
	fill := w.client(4, 1<<20)
	at := int64(0)
	fill.next = func(r *cache.Request, buf []byte) bool {
		r.Op, r.FUA, r.Off, r.Len, r.Data = cache.ReqRead, false, at, 1<<20, buf
		at += 1 << 20
		return at <= size
	}
	fill.done = func(*cache.Request) {}
	fill.run()
	c := w.client(16, 4096)
	rng := rand.New(rand.NewPCG(1, 2))
	n := b.N
	c.next = func(r *cache.Request, buf []byte) bool {
		r.Op, r.FUA, r.Off, r.Len, r.Data = cache.ReqRead, false, rng.Int64N(size/4096)*4096, 4096, buf
		n--
		return n >= 0
	}
	c.done = func(r *cache.Request) {
		if r.Err != nil {
			b.Error(r.Err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	c.run()
	b.StopTimer()
	if s := w.c.Stats().Backings[w.id]; s.MissBlocks > size/4096 {
		b.Errorf("%d blocks missed", s.MissBlocks)
	}
	w.stop()
}

package cache

import (
	"bytes"
	"errors"
	"os"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm/hostile"
)

// readTo reads blocks with the client's memory, and returns where the data is said to be.
func (h *harness) readTo(target []byte, first Block, set string) ([]byte, error) {
	h.t.Helper()
	r := request(h.t, ReqRead, first, len(target)/BlockSize, set)
	if set == "" {
		r.Attrs, r.Results = nil, nil
	}
	r.Target = target
	err := h.do(r)
	if r.Placed {
		return r.Target, err
	}
	return r.Data, err
}

// aimedAt counts the reads into a target, which have that outcome.
func (h *harness) aimedAt(target []byte, outcome error) (n *int) {
	n = new(int)
	h.fail = func(op *Op) error {
		for i := 0; i < len(target); i += BlockSize {
			if op.Kind == OpRead && op.Mem != nil && &op.Mem[0] == &target[i] {
				*n++
				return outcome
			}
		}
		return nil
	}
	return n
}

// TestTarget: hits are read straight into the client's memory; what takes another way is copied there.
func TestTarget(t *testing.T) {
	h := small(t)
	copy(h.back, fill(7, 600))
	h.write(0, fill(1, 4))
	h.write(8*BlockSize, fill(2, 1)[:512])            // a part of a block
	h.write((regionBlocks-2)*BlockSize, fill(3, 4))   // hits in two regions
	h.write((2*regionBlocks-2)*BlockSize, fill(4, 2)) // hits in one, misses in the next
	expected := fill(7, 600)
	copy(expected, fill(1, 4))
	copy(expected[8*BlockSize:], fill(2, 1)[:512])
	copy(expected[(regionBlocks-2)*BlockSize:], fill(3, 4))
	copy(expected[(2*regionBlocks-2)*BlockSize:], fill(4, 2))
	for _, c := range []struct {
		name   string
		first  Block
		n, at  int // blocks; bytes that the memory is off a page
		aimed  int
		copied bool // the data is not in the client's memory
		set    string
	}{
		{name: "hits", first: 0, n: 4, aimed: 1},
		{name: "two pieces", first: regionBlocks - 2, n: 4, aimed: 2},
		{name: "a piece of two", first: 2*regionBlocks - 2, n: 4, aimed: 1},
		{name: "hits and misses", first: 2, n: 4},
		{name: "misses", first: 300, n: 4},
		{name: "part of a block", first: 8, n: 1},
		{name: "memory that is not aligned", first: 0, n: 4, at: 512},
		{name: "checksums for the client", first: 0, n: 4, copied: true, set: "checksum=crc32c+return"},
		{name: "other attributes", first: 0, n: 4, aimed: 1, set: "hint=cache,tenant=7"},
	} {
		want := expected[int(c.first)*BlockSize:][:c.n*BlockSize]
		target := alignedBytes((c.n + 1) * BlockSize)[c.at:][:c.n*BlockSize]
		aimed := h.aimedAt(target, nil)
		hits := h.stats().HitBlocks
		got, err := h.readTo(target, c.first, c.set)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: error %v, data right: %v", c.name, err, bytes.Equal(got, want))
		}
		if copied := &got[0] != &target[0]; copied != c.copied || *aimed != c.aimed {
			t.Errorf("%s: %d reads into the client's memory, the data is elsewhere: %v", c.name, *aimed, copied)
		}
		if c.name == "hits" && h.stats().HitBlocks != hits+4 {
			t.Error("the hits are not counted")
		}
		h.fail = nil
	}
}

// TestTargetMeddled: whatever the client does to its memory while a read into it is under way, the read's data is right in
// the end, and nothing of it is blamed on the SSD.
func TestTargetMeddled(t *testing.T) {
	for name, outcome := range map[string]error{"gone": syscall.EFAULT, "changed": nil} {
		for _, clean := range []bool{false, true} {
			h := small(t)
			h.write(0, fill(1, 4))
			if clean {
				h.drain()
				h.flush()
			}
			target := alignedBytes(4 * BlockSize)
			aimed := h.aimedAt(target, outcome)
			h.then = func(op *Op) {
				if &op.Mem[0] == &target[0] {
					op.Mem[BlockSize] ^= 1
				}
			}
			before := h.stats()
			got, err := h.readTo(target, 0, "")
			if err != nil || !bytes.Equal(got, fill(1, 4)) || &got[0] != &target[0] {
				t.Errorf("%s: error %v, or the data is wrong", name, err)
			}
			if *aimed != 1 {
				t.Errorf("%s: %d reads into the client's memory", name, *aimed)
			}
			s := h.stats()
			if s.HealedBlocks != 0 || s.BadBlocks != 0 || h.c.ssdHealth.failures.Load() != 0 {
				t.Errorf("%s: the SSD is blamed: %+v, %d failures", name, s, h.c.ssdHealth.failures.Load())
			}
			if s.HitBlocks != before.HitBlocks+4 {
				t.Errorf("%s: %d hits are counted for 4", name, s.HitBlocks-before.HitBlocks)
			}
			if r := h.resident(0, 4); r.Cached != 4 {
				t.Errorf("%s: %d blocks of 4 are cached", name, r.Cached)
			}
			h.wantUnpinned()
		}
	}
}

// TestTargetOnce: a read that has to be done once more counts once, and its deadline as for one that had begun.
func TestTargetOnce(t *testing.T) {
	refs := func(h *harness) state {
		s := h.c.index.stripeOf(h.b.id, 0)
		s.mu.Lock()
		defer s.mu.Unlock()
		e, _ := h.c.index.find(makeKey(h.b.id, 0))
		return e.st & stRefMax
	}
	var got [2]state
	for i, meddled := range []bool{false, true} {
		h := small(t)
		h.write(0, fill(1, 4))
		h.drain()
		h.flush()
		target := alignedBytes(4 * BlockSize)
		h.then = func(op *Op) {
			if &op.Mem[0] != &target[0] {
				return
			}
			if n := h.stats().HitBlocks; n != 0 {
				t.Errorf("%d hits are counted before it is certain", n)
			}
			if meddled {
				op.Mem[0] ^= 1
				h.now += int64(time.Second)
			}
		}
		if data, err := h.readTo(target, 0, "deadline=5ms"); err != nil || !bytes.Equal(data, fill(1, 4)) {
			t.Errorf("error %v, or the data is wrong", err)
		}
		if n := h.stats().HitBlocks; n != 4 {
			t.Errorf("%d hits are counted for 4", n)
		}
		got[i] = refs(h)
	}
	if got[0] != got[1] {
		t.Errorf("references %#x, done twice %#x", got[0], got[1])
	}
}

// TestTargetBadSSD: what the SSD itself fails, or returns wrongly, is found in the client's memory as well.
func TestTargetBadSSD(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 2))
	h.drain()
	h.flush()
	h.write(2*BlockSize, fill(2, 1))
	for blk := range Block(3) {
		if blk != 1 {
			h.ssd[h.slotOf(blk)] ^= 1
		}
	}
	target := alignedBytes(2 * BlockSize)
	got, err := h.readTo(target, 0, "")
	if err != nil || !bytes.Equal(got, fill(1, 2)) || h.stats().HealedBlocks != 1 {
		t.Errorf("clean: error %v, data right: %v, %d blocks healed", err, bytes.Equal(got, fill(1, 2)),
			h.stats().HealedBlocks)
	}
	if _, err = h.readTo(target[:BlockSize], 2, ""); !errors.Is(err, ErrDirtyBad) {
		t.Errorf("dirty: %v", err)
	}
	if !bytes.Equal(target[:BlockSize], make([]byte, BlockSize)) {
		t.Error("what the SSD returned wrongly is left in the client's memory")
	}
	h.wantUnpinned()
}

// TestTargetGone: memory that the client takes away raises SIGBUS when it is looked at, or copied to. The read fails then,
// and no more.
func TestTargetGone(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4 * BlockSize); err != nil {
		t.Fatal(err)
	}
	target, err := unix.Mmap(int(f.Fd()), 0, 4*BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(target) }()
	h := small(t)
	copy(h.back, fill(7, 16))
	h.write(0, fill(1, 4))
	for _, first := range []Block{0, 8} { // hits and misses
		if err := f.Truncate(4 * BlockSize); err != nil {
			t.Fatal(err)
		}
		h.then = func(op *Op) {
			if op.Kind != OpRead {
				return
			}
			if err := f.Truncate(0); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.readTo(target, first, ""); !errors.Is(err, hostile.ErrFault) || !errors.Is(err, syscall.EFAULT) {
			t.Errorf("read of block %d: %v", first, err)
		}
		h.then = nil
	}
	if h.c.ssdHealth.failures.Load() != 0 || h.stats().BadBlocks != 0 {
		t.Error("the SSD is blamed")
	}
	h.wantRead(0, fill(1, 4))
	h.wantUnpinned()
}

// TestTargetStalled: a read into the client's memory cannot be taken back, so that it is not abandoned while the SSD stalls.
func TestTargetStalled(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 4))
	v.drain()
	v.flush()
	answered := 0
	v.finish = func(*Request) { answered++ }
	v.stall()
	target := alignedBytes(4 * BlockSize)
	r := v.start(&Request{Op: ReqRead, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize), Target: target})
	v.pass(defaultStallLimit * 2)
	if answered != 0 || v.swapped != 0 {
		t.Fatalf("%d requests are answered, memory was replaced %d times", answered, v.swapped)
	}
	v.stuck = nil
	v.until("the end of the stall", func() bool { return answered == 1 })
	if r.Err != nil || !r.Placed || !bytes.Equal(target, fill(1, 4)) {
		t.Errorf("error %v, or the data is wrong", r.Err)
	}
}

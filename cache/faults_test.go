package cache

import (
	"bytes"
	"errors"
	"testing"
)

var errMedium = errors.New("medium error")

func fill(b byte, blocks int) []byte { return bytes.Repeat([]byte{b}, blocks*BlockSize) }

// small is a harness on small devices.
func small(t *testing.T) *harness { return smallWith(t, FormatOptions{BucketBytes: 64 << 10}) }

func smallWith(t *testing.T, o FormatOptions) *harness { return smallOn(t, o, 4<<20) }

func smallOn(t *testing.T, o FormatOptions, backing int) *harness {
	t.Helper()
	dev := make(memStorage, 6<<20)
	if _, err := Format(dev, o); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, backing)
	t.Cleanup(func() {
		if p := h.c.Verify(); len(p) > 0 {
			t.Errorf("the index is inconsistent: %v", p)
		}
		h.c.Abandon()
	})
	return h
}

func (h *harness) stats() BackingStats { return h.c.Stats().Backings[h.b.ID()] }

func TestCleanCorruptionHeals(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	h.drain()
	h.ssd[h.slotOf(2)+7] ^= 0xff
	h.wantRead(0, fill(1, 4))
	if s := h.stats(); s.HealedBlocks != 1 || s.BadBlocks != 0 {
		t.Errorf("healed %d, bad %d", s.HealedBlocks, s.BadBlocks)
	}
	if h.slotOf(2) != -1 {
		t.Error("the damaged copy is still cached")
	}
	h.wantRead(2*BlockSize, fill(1, 1))
	if h.slotOf(2) == -1 {
		t.Error("the block was not cached anew")
	}
	// The same through a read of part of a block.
	h.ssd[h.slotOf(1)+4000] ^= 0xff
	h.wantRead(BlockSize+512, fill(1, 1)[:512])
	if s := h.stats(); s.HealedBlocks != 2 {
		t.Errorf("healed %d", s.HealedBlocks)
	}
}

func TestDirtyCorruptionFailsItsBlockOnly(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	h.ssd[h.slotOf(2)+7] ^= 0xff
	if _, err := h.read(0, 4*BlockSize); !errors.Is(err, ErrDirtyBad) {
		t.Fatalf("read over the damaged block: %v", err)
	}
	h.wantRead(0, fill(1, 2))
	h.wantRead(3*BlockSize, fill(1, 1))
	if _, err := h.read(2*BlockSize+512, 512); !errors.Is(err, ErrDirtyBad) {
		t.Fatalf("read of a part of it: %v", err)
	}
	h.drain() // goes past it
	if s := h.c.Status().Backings[0]; s.BadBytes != BlockSize || s.DirtyBytes != BlockSize {
		t.Errorf("after the drain %d bytes are bad, %d dirty", s.BadBytes, s.DirtyBytes)
	}
	h.write(2*BlockSize, fill(5, 1))
	h.wantRead(0, append(append(fill(1, 2), fill(5, 1)...), fill(1, 1)...))
	if s := h.c.Status().Backings[0]; s.BadBytes != 0 {
		t.Errorf("%d bytes are bad after the block was overwritten", s.BadBytes)
	}
}

func TestSSDReadErrors(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 2))
	h.drain()
	h.write(4*BlockSize, fill(2, 1))
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpRead && op.Off >= h.c.geo.DataOff {
			return errMedium
		}
		return nil
	}
	h.wantRead(0, fill(1, 2))
	if _, err := h.read(4*BlockSize, BlockSize); !errors.Is(err, ErrDirtyBad) {
		t.Errorf("dirty block: %v", err)
	}
	if s := h.stats(); s.SSDErrors == 0 {
		t.Error("no error was counted")
	}
	if e, ok := h.c.index.find(makeKey(h.b.ID(), 4)); !ok || !h.c.buckets[h.c.bucketOf(e.slot)].failed.Load() {
		t.Error("the bucket with the bad block will be written to again")
	}
}

// TestPendingBlocksComeFromTheBackingDevice: what was written through, or back, is dirty on record until the
// backing device has been flushed, but a failing SSD makes no error of it. From then on a FLUSH
// has to reach the backing device.
func TestPendingBlocksComeFromTheBackingDevice(t *testing.T) {
	for _, mode := range []Mode{Writethrough, Writeback} {
		h := small(t)
		h.write(0, fill(9, 4))
		if err := h.c.SetMode(h.b.ID(), mode); err != nil {
			t.Fatal(err)
		}
		h.flush()
		broken, held := false, true
		h.fail = func(op *Op) error {
			switch {
			case broken && op.Dev == SSD && op.Kind == OpRead:
				return errMedium
			case held && op.Dev != SSD && op.Kind == OpFlush: // so that nothing becomes clean
				return errMedium
			}
			return nil
		}
		h.write(0, fill(1, 4))
		if mode == Writeback {
			if err := h.c.SetDrain(h.b.ID(), true); err != nil {
				t.Fatal(err)
			}
			h.until("writeback", func() bool { return bytes.Equal(h.back[:4*BlockSize], fill(1, 4)) })
		}
		broken = true
		h.wantRead(0, fill(1, 4))
		if h.b.direct.Load() <= h.b.flushed.Load() {
			t.Errorf("%v: a FLUSH would not reach the only copy", mode)
		}
		h.wantRead(BlockSize+512, fill(1, 1)[:512])
		want := fill(1, 4)
		if mode == Writeback { // merged with what is there; the other mode would have to flush
			h.write(2*BlockSize+512, fill(2, 1)[:512])
			copy(want[2*BlockSize+512:], fill(2, 1)[:512])
		}
		held = false
		h.flush()
		broken = false
		h.wantRead(0, want)
		if s := h.stats(); s.BadBlocks != 0 || s.SSDErrors == 0 {
			t.Errorf("%v: bad %d, SSD errors %d", mode, s.BadBlocks, s.SSDErrors)
		}
	}
}

func TestSSDWriteErrorGoesToTheBackingDevice(t *testing.T) {
	for _, mode := range []Mode{Writeback, Writethrough} {
		h := small(t)
		if err := h.c.SetMode(h.b.ID(), mode); err != nil {
			t.Fatal(err)
		}
		h.write(0, fill(9, 1))
		h.fail = func(op *Op) error {
			if op.Dev == SSD && op.Kind == OpWrite && !op.FUA && op.Off >= h.c.geo.DataOff {
				return errMedium
			}
			return nil
		}
		h.write(0, fill(1, 4))
		h.write(8*BlockSize+512, fill(3, 1)[:1024])
		h.fail = nil
		if !bytes.Equal(h.back[:4*BlockSize], fill(1, 4)) {
			t.Errorf("%v: the write is not on the backing device", mode)
		}
		h.wantRead(0, fill(1, 4))
		h.wantRead(8*BlockSize+512, fill(3, 1)[:1024])
	}
}

func TestBackingWriteErrorIsTheWritersError(t *testing.T) {
	h := small(t)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			return errMedium
		}
		return nil
	}
	err := h.do(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(1, 1)})
	var de *DeviceError
	if !errors.Is(err, errMedium) || !errors.As(err, &de) || de.Device != "disk" {
		t.Errorf("write: %v", err)
	}
}

func TestWritebackErrorKeepsTheDirtyData(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 3))
	broken := true
	h.fail = func(op *Op) error {
		if broken && op.Dev != SSD && op.Kind == OpWrite {
			return errMedium
		}
		return nil
	}
	_ = h.c.SetDrain(h.b.ID(), true)
	for range 50 {
		h.tick()
		h.step()
	}
	if h.b.dirty.Load() != 3 {
		t.Fatalf("%d blocks are dirty", h.b.dirty.Load())
	}
	broken = false
	h.drain()
	if !bytes.Equal(h.back[:3*BlockSize], fill(1, 3)) {
		t.Error("the data did not reach the backing device")
	}
}

// TestFlushIsOneBarrier: in writeback mode a FLUSH costs one flush and one FUA write of the SSD,
// and nothing of the backing device, also while dirty data is being written back (I6).
func TestFlushIsOneBarrier(t *testing.T) {
	h := small(t)
	h.flush() // what an earlier process may have left unflushed
	h.write(0, fill(1, 1))
	h.drain()
	h.write(0, fill(2, 3))
	backing, fua := 0, 0
	h.count = map[OpKind]int{}
	h.fail = func(op *Op) error {
		if op.Dev != SSD {
			backing++
		}
		if op.Dev == SSD && op.FUA {
			fua++
		}
		return nil
	}
	h.flush()
	if h.count[OpFlush] != 1 || fua != 1 || backing != 0 {
		t.Errorf("a FLUSH took %d SSD flushes, %d FUA writes, %d operations of the backing device",
			h.count[OpFlush], fua, backing)
	}
	h.count = map[OpKind]int{}
	h.flush()
	if h.count[OpFlush] != 0 || fua != 1 {
		t.Errorf("a FLUSH without news took %d SSD flushes", h.count[OpFlush])
	}
}

func TestPartialBlocks(t *testing.T) {
	h := small(t)
	copy(h.back, fill(7, 4))
	h.write(512, fill(1, 1)[:512])
	h.write(3*512, fill(2, 1)[:1024])
	want := fill(7, 1)
	copy(want[512:], fill(1, 1)[:512])
	copy(want[3*512:], fill(2, 1)[:1024])
	h.wantRead(0, want)
	if !bytes.Equal(h.back[:BlockSize], fill(7, 1)) {
		t.Error("a partial write went to the backing device")
	}
	h.drain()
	if !bytes.Equal(h.back[:BlockSize], want) {
		t.Error("the sectors were not written back")
	}
	h.wantRead(0, want)
}

func TestHitsAllocateNothing(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 8))
	data := make([]byte, BlockSize)
	h.ops = make([]*Op, 0, 64)
	r := &Request{}
	hit := func() {
		*r = Request{Op: ReqRead, Backing: h.b.ID(), Off: BlockSize, Len: BlockSize, Data: data}
		h.done = false
		h.l.Submit(r)
		op := h.ops[0]
		h.ops = h.ops[:0]
		copy(op.Mem, h.ssd[op.Off:])
		h.l.Complete(op, nil)
		if !h.done || r.Err != nil {
			t.Fatal("not a hit")
		}
	}
	hit()
	if n := testing.AllocsPerRun(1000, hit); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
	write := func() {
		*r = Request{Op: ReqWrite, Backing: h.b.ID(), Off: BlockSize, Len: BlockSize, Data: data}
		h.done = false
		h.l.Submit(r)
		op := h.ops[0]
		h.ops = h.ops[:0]
		h.l.Complete(op, nil)
	}
	write()
	if n := testing.AllocsPerRun(100, write); n != 0 {
		t.Errorf("a cached write allocates %v times", n)
	}
}

func FuzzDecodeSuper(f *testing.F) {
	dev := make(memStorage, 6<<20)
	sb, _ := Format(dev, FormatOptions{BucketBytes: 64 << 10, Label: "x"})
	sb.Backings = []BackingRecord{{ID: 1, Mode: Writeback, LBS: 512, Size: 1 << 20, Name: "disk"}}
	f.Add(sb.encode(superOffA))
	f.Add([]byte(superMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		sb, err := decodeSuper(p, superOffA)
		if err != nil {
			return
		}
		again, err := decodeSuper(sb.encode(superOffA), superOffA)
		if err != nil || again.UUID != sb.UUID || len(again.Backings) != len(sb.Backings) {
			t.Fatalf("does not survive encoding: %v", err)
		}
	})
}

func FuzzJournalPage(f *testing.F) {
	dev := make(memStorage, 6<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		f.Fatal(err)
	}
	c, _, err := inspect(f.Context(), dev, nil, false, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(make([]byte, pageSize))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) != pageSize {
			return
		}
		// Sealed, so that the fuzzer gets past the checksum.
		copy(p, []byte{0x55, 0x42, 0x4a, 0x4c})
		putWord(p[jpCache:], cacheID(c.sb.UUID))
		putWord(p[jpSeq:], 1)
		putWord(p[jpSum:], 0)
		putWord(p[jpSum:], metaSum(p, journalOff+pageSize))
		jp, state := c.decodeJournalPage(p, 1)
		for i := 0; state == pageGood && i < jp.count; i++ {
			r, err := c.pageRecord(p, i)
			if err != nil {
				continue
			}
			var q [recordBytes]byte
			r.encode(q[:])
			if again := decodeRecord(q[:]); again != r {
				t.Fatalf("record %+v becomes %+v", r, again)
			}
		}
	})
}

func putWord(p []byte, v uint64) {
	for i := range 8 {
		p[i] = byte(v >> (8 * i))
	}
}

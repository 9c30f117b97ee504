package cache

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// badStorage cannot read some pages.
type badStorage struct {
	memStorage
	bad []int64 // their places
}

func (s *badStorage) ReadAt(p []byte, off int64) (int, error) {
	for _, b := range s.bad {
		if b < off+int64(len(p)) && off < b+pageSize {
			return 0, errMedium
		}
	}
	return s.memStorage.ReadAt(p, off)
}

// stopped is a harness whose cache holds 64 dirty blocks, settled and abandoned.
func stopped(t *testing.T) (*harness, Geometry) {
	dev := make(memStorage, 6<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 4<<20)
	h.write(0, fill(1, 64))
	h.settle()
	geo := h.c.geo
	h.c.Abandon()
	return h, geo
}

// TestUnreadableMetadata: of superblocks and summaries one copy may be unreadable or damaged, any of
// them, and the cache starts with all it had.
func TestUnreadableMetadata(t *testing.T) {
	h, geo := stopped(t)
	pages := []int64{superOffA, superOffB}
	for b := range BucketID(6) {
		pages = append(pages, geo.summaryOff(0, b), geo.summaryOff(1, b))
	}
	for _, off := range pages {
		for _, unreadable := range []bool{true, false} {
			dev := &badStorage{memStorage: slices.Clone(h.ssd)}
			if unreadable {
				dev.bad = []int64{off}
			} else {
				dev.memStorage[off+100] ^= 1
			}
			c, err := Open(dev, Options{})
			if err != nil {
				t.Errorf("page at %d, unreadable %v: %v", off, unreadable, err)
				continue
			}
			s := c.Status()
			if s.DirtyBytes != 64*BlockSize || s.Epoch != h.c.epoch+1 || len(s.Backings) != 1 {
				t.Errorf("page at %d, unreadable %v: %d dirty bytes, epoch %d after %d, %d backing devices",
					off, unreadable, s.DirtyBytes, s.Epoch, h.c.epoch, len(s.Backings))
			}
			c.Abandon()
		}
	}
}

// TestUnreadableJournalPage: one that does not matter is as good as any, one that does is damage.
func TestUnreadableJournalPage(t *testing.T) {
	dev := make(memStorage, 6<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 4<<20)
	for i := range 3 {
		h.write(int64(i)*BlockSize, fill(1, 1))
		h.flush()
	}
	geo := h.c.geo
	h.c.Abandon()
	open := func(seq uint64) error {
		c, err := Open(&badStorage{slices.Clone(h.ssd), []int64{geo.journalPageOff(seq)}}, Options{})
		if err == nil {
			c.Abandon()
		}
		return err
	}
	if err := open(1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without the first page: %v", err)
	}
	if err := open(30); err != nil {
		t.Errorf("without a page that was never written: %v", err)
	}
}

// TestLostSummaryCopyIsWrittenAgain: a start that had one copy of a summary leaves two.
func TestLostSummaryCopyIsWrittenAgain(t *testing.T) {
	h, geo := stopped(t)
	off := [2]int64{geo.summaryOff(0, 1), geo.summaryOff(1, 1)}
	clear(h.ssd[off[1]+20 : off[1]+pageSize])
	h.ops = nil
	h.open()
	h.b, _ = h.c.Backing(h.b.ID())
	h.settle()
	a, b := h.ssd[off[0]:][:pageSize], h.ssd[off[1]:][:pageSize]
	if !bytes.Equal(a[summaryHeader:], b[summaryHeader:]) {
		t.Error("the second copy is still damaged after the next settling")
	}
	h.c.Abandon()
}

// TestPendingCorruption: what was written through is on the backing device, so a bad copy on the SSD
// is no error, whether it has been flushed there or not; and a write of part of it loses nothing.
func TestPendingCorruption(t *testing.T) {
	h := small(t)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.write(0, fill(1, 4))
	h.ssd[h.slotOf(0)+7] ^= 0xff
	h.ssd[h.slotOf(1)+7] ^= 0xff
	h.ssd[h.slotOf(2)+7] ^= 0xff
	h.wantRead(0, fill(1, 2))
	h.wantRead(2*BlockSize+512, fill(1, 1)[:512])
	if h.slotOf(0) == -1 {
		t.Error("the block was dropped before the backing device was flushed")
	}
	if err := h.c.SetMode(h.b.ID(), Writeback); err != nil {
		t.Fatal(err)
	}
	h.write(BlockSize+512, fill(2, 1)[:512])
	want := fill(1, 1)
	copy(want[512:], fill(2, 1)[:512])
	h.wantRead(BlockSize, want)
	h.until("cleaning", func() bool { return len(h.b.mu.pending) == 0 })
	if h.slotOf(0) != -1 || h.slotOf(1) == -1 {
		t.Error("after the flush, block 0 is still cached, or block 1 is not")
	}
	h.drain()
	if !bytes.Equal(h.back[BlockSize:2*BlockSize], want) || h.stats().BadBlocks != 0 {
		t.Error("the merged block is not on the backing device")
	}
}

// TestBadSectorSparesItsNeighbours: one bad sector fails the operation that reads a run of blocks, but
// only its own block is lost: for a read, and for writeback.
func TestBadSectorSparesItsNeighbours(t *testing.T) {
	for _, drain := range []bool{false, true} {
		h := small(t)
		h.write(0, fill(1, 8))
		bad := h.slotOf(3)
		h.fail = func(op *Op) error {
			if op.Dev == SSD && op.Kind == OpRead && op.Off <= bad && bad < op.Off+op.Len {
				return errMedium
			}
			return nil
		}
		if drain {
			h.drain()
			if !bytes.Equal(h.back[4*BlockSize:8*BlockSize], fill(1, 4)) {
				t.Error("the blocks after the bad one were not written back")
			}
		} else if _, err := h.read(0, 8*BlockSize); !errors.Is(err, ErrDirtyBad) {
			t.Errorf("read over the bad block: %v", err)
		}
		if n := h.stats().BadBlocks; n != 1 {
			t.Errorf("%d blocks are lost", n)
		}
		h.wantRead(0, fill(1, 3))
		h.wantRead(4*BlockSize, fill(1, 4))
	}
}

// TestSSDGoesAfterAGoodProbe: writeback reads a block again when a probe has succeeded. If the SSD is gone by then no
// block is bad for it.
func TestSSDGoesAfterAGoodProbe(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 8))
	bad, gone := h.slotOf(3), false
	h.fail = func(op *Op) error {
		if op.Dev == SSD && (gone || op.Kind == OpRead && op.Off <= bad && bad < op.Off+op.Len) {
			return errMedium
		}
		return nil
	}
	_ = h.c.SetDrain(h.b.ID(), true)
	wb := &h.l.bg.wb
	h.until("the probe", func() bool { return len(wb.failed) > 0 && h.c.ssdHealth.good.Load() >= h.c.ssdHealth.wanted.Load() })
	if n := h.stats().BadBlocks; n != 0 {
		t.Fatalf("%d blocks are bad after one try", n)
	}
	gone = true
	h.until("the loss", func() bool { return h.c.lost() && len(h.ops) == 0 })
	if n := h.stats().BadBlocks; n != 0 {
		t.Errorf("%d blocks are bad because the SSD is gone", n)
	}
	for i := range h.c.buckets {
		if n := h.c.buckets[i].pins.Load(); n != 0 {
			t.Errorf("bucket %d: %d pins are left", i, n)
		}
	}
}

// TestBlipCondemnsNothing: the SSD fails everything until a probe has failed, too, and answers again. What it failed before
// is read once more, and is not bad.
func TestBlipCondemnsNothing(t *testing.T) {
	for name, r := range map[string]func() *Request{
		"read":         func() *Request { return readOf(0, BlockSize) },
		"partial read": func() *Request { return readOf(512, 512) },
		"write":        func() *Request { return writeOf(512, fill(2, 1)[:512]) },
	} {
		t.Run(name, func(t *testing.T) {
			h := small(t)
			h.write(0, fill(1, 1))
			h.flush()
			away, answered := true, false
			h.fail = func(op *Op) error {
				if op.Dev == SSD && away {
					away = !op.probe
					return errMedium
				}
				return nil
			}
			r := r()
			r.Backing, h.done = h.b.ID(), false
			h.finish = func(f *Request) { answered = answered || f == r }
			h.l.Submit(r)
			h.until("the answer", func() bool { return answered })
			if n := h.stats().BadBlocks; r.Err != nil || n != 0 || away || h.c.lost() {
				t.Errorf("ended with %v; %d blocks are bad, away %v, lost %v", r.Err, n, away, h.c.lost())
			}
			h.finish = nil
			h.wantRead(1024, fill(1, 1)[1024:])
		})
	}
}

// TestOneErrorCondemnsNothing: the SSD is there and fails to return a dirty block, once. Only the second time it is bad.
func TestOneErrorCondemnsNothing(t *testing.T) {
	for name, r := range map[string]func() *Request{
		"read":         func() *Request { return readOf(0, BlockSize) },
		"partial read": func() *Request { return readOf(512, 512) },
		"write":        func() *Request { return writeOf(512, fill(2, 1)[:512]) },
	} {
		for times := range 3 {
			t.Run(fmt.Sprintf("%s, %d errors", name, times), func(t *testing.T) {
				h := small(t)
				h.write(0, fill(1, 1))
				h.flush()
				left, at := times, h.slotOf(0)
				h.fail = func(op *Op) error {
					if op.Dev == SSD && op.Kind == OpRead && op.Off == at && left > 0 {
						left--
						return errMedium
					}
					return nil
				}
				r, answered := r(), false
				r.Backing = h.b.ID()
				h.finish = func(f *Request) { answered = answered || f == r }
				h.l.Submit(r)
				h.until("the answer", func() bool { return answered })
				want, bad := error(nil), int64(0)
				if times == 2 {
					want, bad = ErrDirtyBad, 1
				}
				if n := h.stats().BadBlocks; !errors.Is(r.Err, want) || n != bad || left > 0 {
					t.Errorf("ended with %v; %d blocks are bad, %d errors are left", r.Err, n, left)
				}
			})
		}
	}
}

// TestBadBackingSectorBesideTheRead: a block that the SSD has in part is completed from the backing
// device; a bad sector there that was not asked for is no error.
func TestBadBackingSectorBesideTheRead(t *testing.T) {
	h := small(t)
	h.write(512, fill(1, 1)[:512])
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpRead && op.Off+op.Len > 7*512 {
			return errMedium
		}
		return nil
	}
	h.wantRead(0, append(make([]byte, 512), fill(1, 1)[:512]...))
	if _, err := h.read(0, BlockSize); !errors.Is(err, errMedium) {
		t.Errorf("read of the bad sector: %v", err)
	}
}

// TestLastBlockCanBeReplaced: the last block of a device may be short, and a write of all of it does
// not need what was there.
func TestLastBlockCanBeReplaced(t *testing.T) {
	dev := make(memStorage, 6<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 1<<20+1024)
	t.Cleanup(func() { h.c.Abandon() })
	h.write(1<<20, fill(1, 1)[:1024])
	h.ssd[h.slotOf(256)+7] ^= 0xff
	if _, err := h.read(1<<20, 1024); !errors.Is(err, ErrDirtyBad) {
		t.Fatalf("read of the damaged block: %v", err)
	}
	if err := h.do(&Request{Op: ReqWrite, Off: 1 << 20, Len: 512, Data: fill(2, 1)[:512]}); !errors.Is(err, ErrDirtyBad) {
		t.Errorf("write of a part of it: %v", err)
	}
	h.write(1<<20, fill(2, 1)[:1024])
	h.wantRead(1<<20, fill(2, 1)[:1024])
}

// loseWhileWritten loses dirty block 0 on the SSD when writeback has read it, and finds that out, before it is
// written to the backing device.
func (h *harness) loseWhileWritten() {
	h.t.Helper()
	_ = h.c.SetDrain(h.b.ID(), true)
	h.until("the write", func() bool {
		return len(h.ops) > 0 && h.ops[0].Dev != SSD && h.ops[0].Kind == OpWrite
	})
	writing := h.ops
	h.ops = nil
	h.ssd[h.slotOf(0)+7] ^= 0xff
	if _, err := h.read(0, BlockSize); !errors.Is(err, ErrDirtyBad) {
		h.t.Fatalf("read of the damaged block: %v", err)
	}
	h.ops = append(writing, h.ops...)
}

// TestWritebackSavesWhatIsLost: a block that the SSD loses while writeback has it in hand is on the
// backing device in the end, and no error is left of it.
func TestWritebackSavesWhatIsLost(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 1))
	h.loseWhileWritten()
	h.drain()
	h.wantRead(0, fill(1, 1))
	if n := h.c.Status().Backings[0].BadBytes; n != 0 {
		t.Errorf("%d bytes are bad", n)
	}
}

// TestPendingUnderAChange: a pending block that a flush covers while its next change is under way stays
// pending until that is over, so that a bad copy on the SSD is no error meanwhile.
func TestPendingUnderAChange(t *testing.T) {
	h := small(t)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.write(0, fill(1, 1))
	change := &Request{Op: ReqWrite, Backing: h.b.ID(), Len: BlockSize, Data: fill(2, 1)}
	h.l.Submit(change)
	writing := h.ops
	h.ops = nil
	if len(writing) != 2 {
		t.Fatalf("%d operations, want the writes of both devices", len(writing))
	}
	wrote := h.b.mu.pending[0].wrote
	h.until("the flush", func() bool { return h.b.flushed.Load() >= wrote })
	h.tick()
	h.ssd[h.slotOf(0)+7] ^= 0xff
	h.wantRead(0, fill(1, 1))
	h.ops = append(writing, h.ops...)
	h.until("the change", func() bool { return len(h.ops) == 0 })
	h.wantRead(0, fill(2, 1))
	h.until("cleaning", func() bool { return len(h.b.mu.pending) == 0 })
	if h.b.dirty.Load() != 0 {
		t.Errorf("%d blocks are dirty", h.b.dirty.Load())
	}
}

// TestPendingAfterAFailedChange: a pending block whose next change fails is written back once more, and is clean
// only when a flush has covered that: not one that began before, and covers what was there first.
func TestPendingAfterAFailedChange(t *testing.T) {
	h := small(t)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	h.stuck = func(op *Op) bool { return op.Kind == OpFlush && op.Dev != SSD }
	h.write(0, fill(1, 1))
	first := h.b.mu.pending[0].wrote
	h.fail = func(op *Op) error {
		if op.Kind != OpWrite || op.Dev == SSD {
			return nil
		}
		copy(h.back[op.Off:], op.Mem[:SectorSize]) // a part of it gets there
		return syscall.EIO
	}
	change := &Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1)}
	if err := h.do(change); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the change: %v", err)
	}
	if n := len(h.b.mu.pending); n != 0 || h.b.dirty.Load() != 1 {
		t.Errorf("after the failed change %d slots wait for a flush and %d blocks are dirty", n, h.b.dirty.Load())
	}
	h.fail = nil
	if err := h.c.SetDrain(h.b.ID(), true); err != nil {
		t.Fatal(err)
	}
	h.until("writeback", func() bool { return h.b.dirty.Load() == 0 })
	h.b.flushDone(first, 0)
	h.tick()
	if p, ok := h.c.Locate(h.b.ID(), 0); !ok || !p.Dirty || !p.Pending {
		t.Errorf("not flushed since it was written back, the block is %+v", p)
	}
	h.stuck = nil
	h.until("cleaning", func() bool { return len(h.b.mu.pending) == 0 })
	if p, ok := h.c.Locate(h.b.ID(), 0); !ok || p.Dirty {
		t.Errorf("flushed, the block is %+v", p)
	}
	h.wantRead(0, fill(1, 1))
}

// TestWritebackOneErrorCondemnsNothing: a block that the SSD fails once is not bad because another one is.
func TestWritebackOneErrorCondemnsNothing(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(5*BlockSize, page(1))
	v.write(600*BlockSize, page(2))
	v.flush()
	bad, other, once := v.slotOf(5), v.slotOf(600), false
	health := &v.c.ssdHealth
	v.fail = func(op *Op) error {
		if op.Dev != SSD || op.Kind != OpRead {
			return nil
		}
		switch {
		case op.Off == bad:
			return errMedium
		case op.Off == other && !once:
			once = true
			return errMedium
		}
		return nil
	}
	v.stuck = func(op *Op) bool {
		return op.Dev == SSD && op.Kind == OpRead && op.Off == other && !once &&
			(health.wanted.Load() == 0 || health.good.Load() < health.wanted.Load())
	}
	_ = v.c.SetDrain(v.b.id, true)
	v.until("the end", func() bool { return v.b.Remaining() == 0 && len(v.ops) == 0 })
	if !once {
		t.Fatal("the second block has not failed")
	}
	got, err := v.read(600*BlockSize, BlockSize)
	if err != nil || got[0] != 2 {
		t.Errorf("the block that has failed once: %v", err)
	}
}

// TestManyBadBlocks: of more blocks that the SSD cannot read than are remembered each is found to be bad.
func TestManyBadBlocks(t *testing.T) {
	defer func(n int) { maxFailed = n }(maxFailed)
	maxFailed = 64
	h := pressed(t)
	h.write(0, fill(1, 250))
	h.flush()
	from, to := h.slotOf(0), int64(0)
	for b := range Block(250) {
		from, to = min(from, h.slotOf(b)), max(to, h.slotOf(b))
	}
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpRead && op.Off >= from && op.Off <= to {
			return errMedium
		}
		return nil
	}
	_ = h.c.SetDrain(h.b.ID(), true)
	if !h.within(10*time.Minute, func() bool { return h.b.Remaining() == 0 }) {
		t.Errorf("after 10 minutes %d of 250 blocks are neither written back nor bad, %d are bad", h.b.Remaining(), h.b.bad.Load())
	}
}

package cache

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ubcache/attrs"
)

// orderHarness is a harness whose device is ordered, and which notes what happens to the backing
// device.
type orderHarness struct {
	*harness
	log   []string
	image []memStorage // at each flush
}

func newOrderHarness(t *testing.T, change func(*Tunables)) *orderHarness {
	return orderHarnessOf(t, 16<<20, 64<<10, change)
}

func orderHarnessOf(t *testing.T, size, bucket int64, change func(*Tunables)) *orderHarness {
	ssd := make(memStorage, size)
	if _, err := Format(ssd, FormatOptions{BucketBytes: bucket}); err != nil {
		t.Fatal(err)
	}
	h := &orderHarness{harness: newHarness(t, ssd, 8<<20)}
	h.fail = h.note
	h.set(func(t *Tunables) {
		t.Ordered = true
		if change != nil {
			change(t)
		}
	})
	h.until("the order", func() bool { return h.status().Ordered == "on" })
	h.log, h.image = nil, nil
	return h
}

func (h *orderHarness) note(op *Op) error {
	if op.Dev == SSD {
		return nil
	}
	switch op.Kind {
	case OpWrite:
		h.log = append(h.log, fmt.Sprintf("write %d+%d %d", op.Off/BlockSize, op.Len/BlockSize, op.Mem[0]))
	case OpFlush:
		h.log = append(h.log, "flush")
		h.image = append(h.image, bytes.Clone(h.back))
	case OpDiscard, OpZero:
		h.log = append(h.log, fmt.Sprintf("%s %d+%d", op.Kind, op.Off/BlockSize, op.Len/BlockSize))
	}
	return nil
}

func (h *orderHarness) set(change func(*Tunables)) {
	h.t.Helper()
	t := h.c.Super().Backings[0].Tunables
	change(&t)
	if err := h.c.SetTunables(h.b.ID(), t); err != nil {
		h.t.Fatal(err)
	}
}

func (h *orderHarness) status() BackingStatus { return h.c.Status().Backings[0] }

func page(v byte) []byte { return bytes.Repeat([]byte{v}, BlockSize) }

// reopen is what a start after a power cut of all but the disk finds: what is on the SSD.
func (h *orderHarness) reopen() {
	h.c.Abandon()
	h.ops = nil
	h.open()
	b, err := h.c.Backing(h.b.ID())
	if err != nil {
		h.t.Fatal(err)
	}
	h.b = b
	b.SetAbilities(true, true)
}

func (h *orderHarness) wantLog(want ...string) {
	h.t.Helper()
	h.log = slices.CompactFunc(h.log, func(a, b string) bool { return a == b && a == "flush" })
	if !slices.Equal(h.log, want) {
		h.t.Errorf("the backing device saw\n  %s\nwant\n  %s", strings.Join(h.log, ", "), strings.Join(want, ", "))
	}
}

func (h *orderHarness) wantSound() {
	h.t.Helper()
	if p := h.c.Verify(); len(p) > 0 {
		h.t.Errorf("the counters are wrong: %v", p)
	}
}

// TestOrderedWritesBackBatchByBatch: what a flush has ended is on the disk, and flushed, before
// anything of the next batch; an older version that was overwritten since included.
func TestOrderedWritesBackBatchByBatch(t *testing.T) {
	for _, restart := range []bool{false, true} {
		h := newOrderHarness(t, nil)
		h.write(5*BlockSize, page(1))
		h.write(2*BlockSize, page(1))
		h.flush()
		h.write(9*BlockSize, page(2))
		h.write(9*BlockSize, page(3)) // in the same batch: the newer one counts
		h.flush()
		h.write(5*BlockSize, page(4)) // the old one has to get to the disk first
		h.write(1*BlockSize, page(4))
		h.flush()
		h.write(5*BlockSize, page(5)) // no flush
		h.tick()
		if s := h.status(); s.UnsettledBytes != 7*BlockSize || s.UnsettledMs == 0 {
			t.Errorf("%d bytes of %d ms are said to be behind, of 7 blocks", s.UnsettledBytes, s.UnsettledMs)
		}
		if len(h.log) != 0 {
			t.Fatalf("the disk was written early: %v", h.log)
		}
		h.wantSound()
		last := "write 5+1 5"
		if restart {
			h.flush()
			h.reopen()
			h.wantSound()
			h.wantRead(5*BlockSize, page(5))
		}
		h.drain()
		want := []string{
			"write 2+1 1", "write 5+1 1", "flush", "write 9+1 3", "flush", "write 1+1 4", "write 5+1 4",
			"flush", last, "flush",
		}
		if restart {
			want = append([]string{"flush"}, want...) // what the process before may have left
		}
		h.wantLog(want...)
		h.wantSound()
		if s := h.status(); s.UnsettledBytes != 0 || s.UnsettledMs != 0 || s.DirtyBytes != 0 {
			t.Errorf("after the drain %+v", s)
		}
	}
}

// TestOrderedStartForgetsWhatIsSettled: what a record says is on the disk is not written again.
func TestOrderedStartForgetsWhatIsSettled(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.drain()
	h.write(5*BlockSize, page(2))
	h.flush()
	h.log = nil
	h.reopen()
	h.drain()
	h.wantLog("flush", "write 5+1 2", "flush")
}

// TestOrderedTailWaits: summaries of all buckets do not let the queue be forgotten.
func TestOrderedTailWaits(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.write(5*BlockSize, page(2))
	h.flush()
	h.settle() // writes all summaries
	h.log = nil
	h.reopen()
	h.wantSound()
	h.drain()
	h.wantLog("flush", "write 5+1 1", "flush", "write 5+1 2", "flush")
}

// TestOrderedDiscardTakesItsTurn: a discard waits for what was written before, and what is written
// past the cache as well.
func TestOrderedDiscardTakesItsTurn(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.write(6*BlockSize, page(2))
	h.write(7*BlockSize, page(2))
	if err := h.do(&Request{Op: ReqDiscard, Off: 6 * BlockSize, Len: BlockSize}); err != nil {
		t.Fatal(err)
	}
	h.wantLog("write 5+1 1", "flush", "write 6+2 2", "flush", "discard 6+1", "flush")
	h.wantRead(6*BlockSize, page(0))
	h.wantRead(7*BlockSize, page(2))
	h.log = nil
	h.write(8*BlockSize, page(3))
	h.set(func(t *Tunables) { t.DirtyTarget, t.DirtyMax = 0, 1 })
	for i := range int64(200) { // to where there may be no more dirty data
		h.write((100+i)*BlockSize, page(4))
	}
	if h.log[0] != "write 8+1 3" && h.log[0] != "write 8+1 3, flush" {
		t.Errorf("first came %q", h.log[0])
	}
	h.drain()
	h.wantSound()
}

// TestOrderedLimitOfBytes: there is never more to lose than ordered-max says, and writes go on.
func TestOrderedLimitOfBytes(t *testing.T) {
	h := newOrderHarness(t, func(t *Tunables) { t.OrderedMax = 1 << 20 })
	most := int64(0)
	for i := range int64(1500) {
		h.write(i%1024*BlockSize, page(byte(i)))
		if i%7 == 0 {
			h.flush()
		}
		most = max(most, h.status().UnsettledBytes)
	}
	if most > 1<<20 || most < 1<<19 {
		t.Errorf("%d bytes were to be lost, at most 1 MiB may be", most)
	}
	h.drain()
	h.wantSound()
}

// TestOrderedLimitOfAge: on a disk that takes 10 ms for whatever it does, one after the other, the oldest
// data that would be lost is never older than ordered-age; writes are slowed down.
func TestOrderedLimitOfAge(t *testing.T) {
	// Large, for the journal must not be the limit.
	h := orderHarnessOf(t, 512<<20, 1<<20, func(t *Tunables) { t.OrderedAge = 8 * time.Second })
	due := map[*Op]int64{}
	disk := int64(0) // busy until then
	h.pick = func() int {
		first := 0
		for i, op := range h.ops {
			if due[op] == 0 {
				due[op] = h.now + int64(100*time.Microsecond)
				if op.Dev != SSD {
					disk = max(disk, h.now) + int64(10*time.Millisecond)
					due[op] = disk
				}
			}
			if due[op] < due[h.ops[first]] {
				first = i
			}
		}
		h.now = max(h.now, due[h.ops[first]])
		delete(due, h.ops[first])
		return first
	}
	oldest, from := int64(0), h.now
	for i := range int64(3500) {
		h.write(i*37%2000*BlockSize, page(byte(i)))
		if i%16 == 0 {
			h.flush()
		}
		h.now += int64(2 * time.Millisecond)
		h.l.Tick()
		if i > 1500 { // before that it does not know how slow the disk is
			oldest = max(oldest, h.status().UnsettledMs)
		}
	}
	took := time.Duration(h.now - from)
	t.Logf("3500 writes took %v; the oldest data was %d ms old", took, oldest)
	if oldest > 8000 {
		t.Errorf("data was %d ms old, 8000 are allowed", oldest)
	}
	if oldest < 1000 || took < 20*time.Second {
		t.Error("the disk was not the limit, so this shows nothing")
	}
}

// TestOrderedBackingFails: while the disk fails, what waits for it fails, and nothing of a later
// batch is written; when it is back everything goes on.
func TestOrderedBackingFails(t *testing.T) {
	h := newOrderHarness(t, func(t *Tunables) { t.OrderedMax = 1 << 20 })
	broken := errors.New("broken")
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			if op.Off/BlockSize >= 128 {
				t.Errorf("block %d was written before its turn", op.Off/BlockSize)
			}
			return broken
		}
		return nil
	}
	failed := 0
	for i := range int64(300) {
		err := h.do(&Request{Op: ReqWrite, Off: i * BlockSize, Len: BlockSize, Data: page(byte(i))})
		if err != nil {
			failed++
			if !errors.Is(err, broken) {
				t.Fatal(err)
			}
			h.now += int64(2 * time.Second)
		}
		if i == 127 {
			h.flush()
		}
	}
	if failed == 0 {
		t.Error("no write waited for the disk")
	}
	if err := h.do(&Request{Op: ReqDiscard, Off: 6 * BlockSize, Len: BlockSize}); !errors.Is(err, broken) {
		t.Errorf("a discard out of its turn: %v", err)
	}
	h.fail = h.note
	h.now += int64(2 * time.Second)
	h.drain()
	h.wantSound()
	h.wantRead(127*BlockSize, page(127))
}

// TestOrderedLosesABlock: a version that the SSD returns wrongly does not stop the others.
func TestOrderedLosesABlock(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.write(6*BlockSize, page(1))
	h.ssd[h.slotOf(5)] ^= 1 // of the old version, soon a shadow
	h.flush()
	h.write(5*BlockSize, page(2))
	h.flush()
	h.set(func(t *Tunables) {})
	for _, want := range []string{"write 6+1 1", "write 5+1 2"} {
		h.log = nil
		h.until("a batch", func() bool {
			h.b.draining.Store(true)
			return slices.Contains(h.log, want)
		})
	}
	h.b.draining.Store(false)
	h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
	if n := h.status().OrderedLost; n != 1 {
		t.Errorf("%d blocks are missing on the disk, should be 1", n)
	}
	h.wantRead(5*BlockSize, page(2))
	h.wantSound()
}

// TestOrderedOffAndOn: switching it off keeps the newest of everything; on again, what is dirty
// comes first.
func TestOrderedOffAndOn(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.write(5*BlockSize, page(2))
	h.write(9*BlockSize, page(2))
	h.flush()
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("the end of the order", func() bool { return !h.b.order.live() })
	h.wantSound()
	h.write(3*BlockSize, page(3))
	h.flush()
	h.set(func(t *Tunables) { t.Ordered = true })
	h.tick()
	if s := h.status().Ordered; s != "starting" {
		t.Errorf("the order is %q while older data is dirty", s)
	}
	h.write(1*BlockSize, page(4))
	h.flush()
	h.until("the order", func() bool { return h.status().Ordered == "on" })
	h.drain()
	h.wantLog("write 3+1 3", "write 5+1 2", "write 9+1 2", "flush", "write 1+1 4", "flush")
	h.wantSound()
	// A start after it must not take anything from the time before for the queue.
	h.reopen()
	h.wantSound()
	for blk, v := range map[int64]byte{1: 4, 3: 3, 5: 2, 9: 2} {
		h.wantRead(blk*BlockSize, page(v))
	}
}

// TestOrderedNeedsVersion2: programs that know nothing of the order refuse the cache.
func TestOrderedNeedsVersion2(t *testing.T) {
	h := newOrderHarness(t, nil)
	sb, err := ReadSuper(h.ssd)
	if err != nil || sb.Version != orderedVersion {
		t.Fatalf("version %d, %v", sb.Version, err)
	}
	h.set(func(t *Tunables) { t.Ordered = false })
	if sb, err = ReadSuper(h.ssd); err != nil || sb.Version != orderedVersion {
		t.Fatalf("the journal still has records of version 2, but the superblock says %d, %v", sb.Version, err)
	}
	plain := make(memStorage, 16<<20)
	if sb, err = Format(plain, FormatOptions{BucketBytes: 64 << 10}); err != nil || sb.Version != 1 {
		t.Fatalf("a cache without ordered devices has version %d, %v", sb.Version, err)
	}
}

// TestOrderedDetach: a detach waits for shadows, too, and the journal lets go.
func TestOrderedDetach(t *testing.T) {
	h := newOrderHarness(t, nil)
	for i := range byte(20) {
		h.write(5*BlockSize, page(i))
		h.flush()
	}
	if err := h.c.BeginDetach(h.b.ID()); err != nil {
		t.Fatal(err)
	}
	h.until("the drain", func() bool { return h.b.Remaining() == 0 })
	if !bytes.Equal(h.back[5*BlockSize:6*BlockSize], page(19)) {
		t.Error("the newest version is not on the disk")
	}
	h.wantSound()
}

// TestOrderedSSDCannotBeRead: an SSD that is gone for a moment costs nothing, whenever that is; only what it cannot
// read although it is there is given up.
func TestOrderedSSDCannotBeRead(t *testing.T) {
	for blip := range sickTries {
		h := newOrderHarness(t, nil)
		h.write(5*BlockSize, page(1))
		h.write(60*BlockSize, page(1))
		h.flush()
		bad, r := h.slotOf(5), h.l.bg.orderOf(h.b)
		gone, was := false, false
		h.fail = func(op *Op) error {
			if op.Dev != SSD {
				return h.note(op)
			}
			if !was && r.busy && r.step == orderCopy && r.tries == blip {
				gone, was = true, true
			}
			switch {
			case gone && op.probe:
				gone = false // it is back after this one
				return errMedium
			case gone, op.Kind == OpRead && op.Off == bad:
				return errMedium
			}
			return nil
		}
		h.b.draining.Store(true)
		h.until("the blip", func() bool { return was && !gone && !r.busy })
		if s := h.status(); s.OrderedLost != 0 || s.BadBytes != 0 {
			t.Errorf("gone at try %d: %d blocks were given up", blip, s.OrderedLost)
		}
		h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
		h.wantLog("write 60+1 1", "flush")
		if s := h.status(); s.OrderedLost != 1 || s.BadBytes != BlockSize {
			t.Errorf("gone at try %d: %d blocks are missing on the disk, %d bytes are bad", blip, s.OrderedLost, s.BadBytes)
		}
		h.wantSound()
	}
}

// TestOrderedSSDGoes: the same if it does not come back. Reads that say nothing about their blocks are no tries.
func TestOrderedSSDGoes(t *testing.T) {
	for _, how := range []string{"at the last try", "with a probe under way", "after errors that are no verdict"} {
		h := newOrderHarness(t, nil)
		h.write(5*BlockSize, page(1))
		h.write(60*BlockSize, page(1))
		h.flush()
		bad, r := h.slotOf(5), h.l.bg.orderOf(h.b)
		gone, fails := false, 0
		h.fail = func(op *Op) error {
			if op.Dev != SSD {
				return h.note(op)
			}
			gone = gone || how == "at the last try" && r.busy && r.step == orderCopy && r.tries == sickTries-1
			switch at := op.Kind == OpRead && op.Off == bad; {
			case gone, at && how != "after errors that are no verdict":
				return errMedium
			case op.probe && how == "with a probe under way":
				gone = r.tries == sickTries-1 // the last good one
			case at && fails < sickTries:
				if fails++; fails < sickTries {
					return errStuck
				}
				return errMedium
			}
			return nil
		}
		h.stuck = func(op *Op) bool {
			return how == "with a probe under way" && op.probe && r.tries == sickTries-1 && !(r.busy && r.step == orderProbe)
		}
		h.b.draining.Store(true)
		h.until("the end", func() bool {
			return (h.c.lost() || h.status().UnsettledBytes == 0) && len(h.ops) == 0
		})
		if s := h.status(); h.c.lost() != gone || s.OrderedLost != 0 || s.BadBytes != 0 {
			t.Errorf("%s: lost %v, %d blocks were given up", how, h.c.lost(), s.OrderedLost)
		}
		if how == "at the last try" {
			h.wantLog()
		} else if gone {
			h.wantLog("write 60+1 1")
		} else {
			h.wantLog("write 5+1 1", "write 60+1 1", "flush")
			h.wantSound()
		}
	}
}

// TestOrderedBadSectorSparesItsNeighbours: of versions that are read at once only the one with the bad sector is lost.
func TestOrderedBadSectorSparesItsNeighbours(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(0, fill(1, 8))
	h.flush()
	bad := h.slotOf(3)
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpRead && op.Off <= bad && bad < op.Off+op.Len {
			return errMedium
		}
		return h.note(op)
	}
	h.b.draining.Store(true)
	h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
	h.wantLog("write 0+3 1", "write 4+4 1", "flush")
	if s := h.status(); s.OrderedLost != 1 || s.BadBytes != BlockSize {
		t.Errorf("%d blocks are missing on the disk, %d bytes are bad", s.OrderedLost, s.BadBytes)
	}
	h.wantSound()
}

// TestOrderedDoesNotStopOthers: a device whose disk fails keeps its queue as long as the journal has
// room, and no longer; when the disk is back, all is written and the order begins anew.
func TestOrderedDoesNotStopOthers(t *testing.T) {
	h := newOrderHarness(t, nil)
	other, err := h.c.Attach(AttachOptions{
		Name: "other", Mode: Writeback, LBS: 512, Identity: Identity{Size: 8 << 20}, Tunables: DefaultTunables(),
	})
	if err != nil {
		t.Fatal(err)
	}
	first := h.b
	h.write(5*BlockSize, page(1))
	h.flush()
	h.write(5*BlockSize, page(2))
	h.flush()
	broken := true
	h.fail = func(op *Op) error {
		switch {
		case op.Dev == first.id && broken:
			return errors.New("broken")
		case op.Dev == other.id:
			return nil
		}
		return h.note(op)
	}
	h.b = other
	for i := range int64(500) { // more pages than the journal has
		h.write(i*BlockSize, page(byte(i)))
		h.flush()
	}
	h.wantSound()
	if n := h.status().OrderedBroken; n == 0 {
		t.Error("the journal was not full, so this shows nothing")
	}
	h.b = first
	h.wantRead(5*BlockSize, page(2))
	h.reopen()
	first = h.b
	h.wantSound()
	h.wantRead(5*BlockSize, page(2))
	h.set(func(*Tunables) {})
	broken = false
	h.drain()
	if !bytes.Contains([]byte(strings.Join(h.log, " ")), []byte("write 5+1 2")) {
		t.Errorf("the disk saw %v", h.log)
	}
	h.until("the order", func() bool { return h.status().Ordered == "on" })
}

// TestOrderedWaitsForItsRecord: nothing of a batch is written before it is on record that the last
// one is on the disk: a start would write that again, with older versions of its blocks.
func TestOrderedWaitsForItsRecord(t *testing.T) {
	h := newOrderHarness(t, nil)
	for i := range int64(2) {
		h.write(i*BlockSize, page(1))
		h.flush()
	}
	h.pick = func() int { // the record does not get to the SSD
		return slices.IndexFunc(h.ops, func(op *Op) bool { return op.Dev != SSD || !op.FUA })
	}
	h.b.draining.Store(true)
	for range 300 {
		h.tick()
		h.step()
	}
	h.wantLog("write 0+1 1", "flush")
	h.pick = nil
	h.until("the end", func() bool { return h.status().UnsettledBytes == 0 && len(h.ops) == 0 })
	h.wantLog("write 0+1 1", "flush", "write 1+1 1", "flush")
}

// TestOrderedBaseComesFirst: what was dirty before is on the disk, and flushed, before anything that was
// written since, even if the disk does not take it at once.
func TestOrderedBaseComesFirst(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("the end of the order", func() bool { return !h.b.order.live() })
	h.write(3*BlockSize, page(1))
	failed := false
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite && !failed {
			failed = true
			return errors.New("once")
		}
		return h.note(op)
	}
	h.set(func(t *Tunables) { t.Ordered = true })
	h.until("the order", func() bool { return h.b.order.on.Load() })
	h.write(2*BlockSize, page(2))
	h.flush()
	h.drain()
	if !failed {
		t.Error("the first write did not fail")
	}
	h.wantLog("write 3+1 1", "flush", "write 2+1 2", "flush")
}

// TestOrderedAgainAfterOff: records of the time before the order was switched off are not taken for the
// queue of the time since.
func TestOrderedAgainAfterOff(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("the end of the order", func() bool { return !h.b.order.live() })
	h.drain()
	h.set(func(t *Tunables) { t.Ordered = true })
	h.until("the order", func() bool { return h.b.order.on.Load() })
	h.write(2*BlockSize, page(2))
	h.flush()
	h.log = nil
	h.reopen()
	h.wantSound()
	h.drain()
	h.wantLog("flush", "write 2+1 2", "flush")
}

// TestOrderedBaseDoesNotStopOthers: nor does a device whose disk cannot even take what was dirty before
// it was ordered.
func TestOrderedBaseDoesNotStopOthers(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.set(func(t *Tunables) { t.Ordered = false })
	h.until("the end of the order", func() bool { return !h.b.order.live() })
	h.write(3*BlockSize, page(1))
	broken := true
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite && broken {
			return errors.New("broken")
		}
		return nil
	}
	h.set(func(t *Tunables) { t.Ordered = true })
	h.until("the order", func() bool { return h.b.order.on.Load() })
	for i := range int64(300) { // more pages than the journal has
		h.write((i%50)*BlockSize, page(byte(i)))
		h.flush()
	}
	broken = false
	h.until("the order", func() bool { return h.status().Ordered == "on" })
	h.wantSound()
	if n := h.status().OrderedBroken; n != 0 {
		t.Errorf("an order that had not begun was given up %d times", n)
	}
}

// TestOrderedOffAndOnAtOnce: the queue goes on if nobody has seen that the order was off for a moment.
func TestOrderedOffAndOnAtOnce(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(5*BlockSize, page(1))
	h.flush()
	h.set(func(t *Tunables) { t.Ordered = false })
	h.set(func(t *Tunables) { t.Ordered = true })
	h.write(5*BlockSize, page(2))
	h.flush()
	h.log = nil
	h.reopen()
	h.drain()
	h.wantLog("flush", "write 5+1 1", "flush", "write 5+1 2", "flush")
	h.wantSound()
}

// TestOrderedAnswersHonestly: what asks to pass the cache by goes to the SSD first like all other
// writes, and is told so; if that was required, it fails without any effect.
func TestOrderedAnswersHonestly(t *testing.T) {
	h := newOrderHarness(t, nil)
	h.write(100*BlockSize, page(1)) // what would have to go before
	for _, c := range []struct {
		attrs string
		id    attrs.ID
	}{
		{"mode=writethrough", attrs.IDMode},
		{"mode=writearound", attrs.IDMode},
		{"hint=bypass", attrs.IDHint},
		{"hint=once", attrs.IDHint},
	} {
		got, err := h.ask(ReqWrite, c.attrs)
		if err != nil {
			t.Fatal(err)
		}
		want(t, c.attrs, got.For(c.id), attrs.Ignored, attrs.ReasonOverruled)
		before, _ := h.read(0, BlockSize)
		if _, err := h.ask(ReqWrite, c.attrs+",required:"+c.attrs[:4]); err == nil {
			t.Errorf("a write that requires %s succeeded", c.attrs)
		}
		h.wantRead(0, before)
	}
	got, err := h.ask(ReqWrite, "mode=writeback")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "mode=writeback", got.For(attrs.IDMode), attrs.Handled, attrs.ReasonNone)
	h.wantLog()
	if h.resident(0, 4).Dirty != 4 {
		t.Error("the write is not dirty on the SSD")
	}
	// What leaves the cache does so in its turn.
	want(t, "evict", h.hint(ReqWrite, 0, 4, "hint=evict"), attrs.Handled, attrs.ReasonNone)
	h.until("the eviction", func() bool { return h.resident(0, 4).Cached == 0 && len(h.ops) == 0 })
	h.wantLog("write 0+4 7", "write 100+1 1", "flush")
	h.wantSound()
}

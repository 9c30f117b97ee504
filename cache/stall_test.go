package cache

import (
	"bytes"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"ubcache/attrs"
)

// stalled makes operations on the SSD hang, those under way included, and lets time pass.
func (v *lossy) stall() {
	v.stuck = func(op *Op) bool { return op.Dev == SSD }
}

// pass lets time pass for the background, with whatever operations end.
func (v *lossy) pass(d time.Duration) {
	for end := v.now + int64(d); v.now < end; {
		v.tick()
		v.step()
	}
}

// start submits a request without waiting for it.
func (v *lossy) start(r *Request) *Request {
	r.Backing = v.b.id
	v.l.Submit(r)
	return r
}

// TestStallReads: while the SSD stalls, reads of what the backing device has go there, and nothing is
// admitted; when it goes on, so does the cache, in place.
func TestStallReads(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 4))
	v.drain()
	v.flush()
	v.write(8*BlockSize, fill(2, 1))
	var answered []*Request
	v.finish = func(r *Request) { answered = append(answered, r) }
	v.stall()
	dirty := v.start(&Request{Op: ReqRead, Off: 8 * BlockSize, Len: BlockSize, Data: make([]byte, BlockSize)})
	v.pass(defaultStallLimit + 2*time.Second)
	if v.c.health() != HealthSlow {
		t.Fatalf("the SSD is %v", v.c.health())
	}
	v.wantRead(0, fill(1, 4))
	fills := v.stats().FillBlocks
	v.wantRead(64*BlockSize, fill(0, 4))
	v.write(32*BlockSize, fill(3, 4)) // nothing of it is on the SSD
	v.wantRead(32*BlockSize, fill(3, 4))
	if v.stats().FillBlocks != fills || v.slotOf(32) >= 0 {
		t.Error("something was admitted")
	}
	if dirty.Err != nil || bytes.Equal(dirty.Data, fill(2, 1)) {
		t.Error("the read of dirty data did not wait")
	}
	v.stuck = nil
	v.until("the end of the stall", func() bool { return v.c.health() == HealthOK })
	if !bytes.Equal(dirty.Data, fill(2, 1)) {
		t.Error("the read that waited has something else")
	}
	hits := v.stats().HitBlocks
	v.wantRead(0, fill(1, 4))
	if v.stats().HitBlocks != hits+4 {
		t.Error("the cache does not serve again")
	}
}

// TestStandstill: a process that stood still, however long, does not take it for a stall of the SSD.
func TestStandstill(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 4))
	v.pass(time.Second)
	v.stall()
	r := v.start(&Request{Op: ReqRead, Off: 0, Len: BlockSize, Data: make([]byte, BlockSize)})
	v.now += int64(2 * defaultLossLimit)
	v.tick() // the background runs before the lane has looked at what has ended
	v.stuck = nil
	for v.runnable() >= 0 {
		v.step()
	}
	v.pass(time.Second)
	if h := &v.c.ssdHealth; v.c.health() != HealthOK || h.slows.Load()+h.losses.Load() != 0 {
		t.Errorf("the SSD is %v, was slow %d times and lost %d times", v.c.health(), h.slows.Load(), h.losses.Load())
	}
	if !bytes.Equal(r.Data, fill(1, 1)) {
		t.Error("the read has something else")
	}
}

// TestStallBecomesLoss: after the second limit the SSD is lost; requests that wait for the journal are
// let go. When all ends well after all, and nothing was missed, it is taken back as it was.
func TestStallBecomesLoss(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{Hold: 2 * time.Second})
	v.write(0, fill(1, 4))
	v.drain()
	v.flush()
	v.write(8*BlockSize, fill(2, 1))
	v.flush()
	if err := v.c.SetMode(v.b.id, Writearound); err != nil {
		t.Fatal(err)
	}
	v.stall()
	v.write(128*BlockSize, fill(9, 1)) // nothing cached, nothing to wait for
	v.start(&Request{Op: ReqRead, Off: 8 * BlockSize, Len: BlockSize, Data: make([]byte, BlockSize)})
	v.pass(defaultLossLimit + 5*time.Second)
	if v.c.health() != HealthLost {
		t.Fatalf("the SSD is %v", v.c.health())
	}
	_, err := v.read(8*BlockSize, BlockSize)
	v.wantError(err, ErrSSDLost, "read of dirty data")
	v.wantRead(0, fill(1, 4))
	if len(v.markers) != 0 {
		t.Fatal("the SSD has missed something")
	}
	v.stuck = nil
	v.until("the return", func() bool { return v.c.health() == HealthOK })
	v.wantRead(8*BlockSize, fill(2, 1))
	hits := v.stats().HitBlocks
	v.wantRead(0, fill(1, 4))
	if v.stats().HitBlocks != hits+4 {
		t.Error("the cache does not serve again")
	}
	v.write(0, fill(4, 1))
	v.flush()
	v.drain()
	if h := &v.c.ssdHealth; h.losses.Load() != 1 || h.returns.Load() != 1 || h.slows.Load() != 1 {
		t.Error("the changes are not counted")
	}
}

// TestStallThenMissed: an SSD that has missed a change is not taken back in place.
func TestStallThenMissed(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.write(0, fill(1, 4))
	v.drain()
	v.flush()
	v.stall()
	w := v.start(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1)}) // waits for the removal
	v.pass(defaultLossLimit + 5*time.Second)
	if w.Err != nil || !bytes.Equal(v.back[:BlockSize], fill(2, 1)) {
		t.Fatalf("the write that waited for the journal: %v", w.Err)
	}
	v.wantRead(0, append(fill(2, 1), fill(1, 3)...))
	v.stuck = nil
	v.pass(20 * time.Second)
	if v.c.health() != HealthLost {
		t.Errorf("the SSD is %v", v.c.health())
	}
	v.restart(UUID{0xb})
	v.wantRead(0, append(fill(2, 1), fill(1, 3)...))
}

// TestStallThenFlush: a FLUSH that waited for the SSD to come back covers what was written past it meanwhile, too.
func TestStallThenFlush(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{Hold: time.Hour})
	v.write(0, fill(1, 1)) // has no record on the SSD yet, so a FLUSH waits for that
	v.stall()
	v.start(&Request{Op: ReqRead, Len: BlockSize, Data: make([]byte, BlockSize)})
	v.pass(defaultLossLimit + 5*time.Second)
	if v.c.health() != HealthLost {
		t.Fatalf("the SSD is %v", v.c.health())
	}
	v.write(64*BlockSize, fill(2, 1))
	if !bytes.Equal(v.back[64*BlockSize:][:BlockSize], fill(2, 1)) {
		t.Fatal("the write did not go to the backing device")
	}
	v.order = nil
	over := v.async(&Request{Op: ReqFlush})
	v.pass(time.Second)
	if *over {
		t.Fatal("the FLUSH did not wait for the SSD")
	}
	v.stuck = nil
	v.until("the FLUSH", func() bool { return *over })
	if v.c.health() != HealthOK || !slices.Contains(v.order, "backing flush") {
		t.Errorf("the SSD is %v, and on the backing device there was %v", v.c.health(), v.order)
	}
}

// TestFailingCommits: writers wait for a journal that fails for a moment, and see no error.
func TestFailingCommits(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.write(0, fill(1, 4))
	v.drain()
	v.flush()
	until := v.now + failLimit/2
	v.fail = func(op *Op) error {
		if op.Dev == SSD && op.FUA && v.now < until {
			return syscall.ENOSPC // nothing that was written before is lost with it
		}
		return nil
	}
	v.write(0, fill(2, 2))
	v.flush()
	if v.c.health() != HealthOK || v.c.Stats().JournalErrors == 0 || len(v.markers) != 0 {
		t.Errorf("the SSD is %v after %d errors", v.c.health(), v.c.Stats().JournalErrors)
	}
	v.wantRead(0, append(fill(2, 2), fill(1, 2)...))
	// One that goes on failing is lost, and the writer goes on.
	v.drain()
	until = 1 << 62
	v.write(0, fill(3, 1))
	if v.c.health() != HealthLost || len(v.markers) != 1 {
		t.Errorf("the SSD is %v", v.c.health())
	}
	v.wantRead(0, append(append(fill(3, 1), fill(2, 1)...), fill(1, 2)...))
}

// TestFailureThenStall: a commit that fails once and then hangs for a while is one of an SSD that stalls.
func TestFailureThenStall(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 1))
	failed := false
	v.fail = func(op *Op) error {
		if op.Dev == SSD && op.FUA && !failed {
			failed = true
			v.stall()
			return syscall.ENOSPC
		}
		return nil
	}
	r := v.start(&Request{Op: ReqFlush})
	done := false
	v.finish = func(f *Request) { done = done || f == r }
	v.pass(time.Duration(2 * failLimit))
	if !failed || done || v.c.health() != HealthOK {
		t.Fatalf("the SSD is %v, the FLUSH done: %v", v.c.health(), done)
	}
	v.stuck = nil
	v.until("the FLUSH", func() bool { return done })
	if r.Err != nil || v.c.health() != HealthOK {
		t.Errorf("FLUSH: %v, the SSD is %v", r.Err, v.c.health())
	}
}

// TestFailingCheckpoints: a journal that cannot be emptied must not make writers wait for ever.
func TestFailingCheckpoints(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.fail = func(op *Op) error {
		g := &v.c.geo
		if op.Dev == SSD && op.Kind == OpWrite && op.Off >= g.SummaryOff[0] && op.Off < g.DataOff {
			return errMedium
		}
		return nil
	}
	for i := 0; v.c.health() == HealthOK; i++ {
		if i > 100_000 {
			t.Fatal("nothing happens")
		}
		v.write(int64(i%512)*BlockSize, fill(byte(i), 1))
		if i%8 == 0 && v.c.health() == HealthOK {
			_ = v.do(&Request{Op: ReqFlush})
		}
	}
	v.write(1000*BlockSize, fill(1, 1))
	v.wantRead(1000*BlockSize, fill(1, 1))
}

// TestBadSectorIsNotLoss: an error of one block is not one of the SSD, and it is not told for certain
// before a probe says so.
func TestBadSectorIsNotLoss(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 2))
	bad := v.slotOf(1)
	vanished := false
	v.fail = func(op *Op) error {
		if op.Dev == SSD && (vanished || op.Kind == OpRead && op.Off == bad) {
			return errMedium // both look the same
		}
		return nil
	}
	_, err := v.read(BlockSize, BlockSize)
	v.wantError(err, ErrDirtyBad, "read of a bad block")
	v.wantRead(0, fill(1, 1))
	if v.c.health() != HealthOK {
		t.Errorf("the SSD is %v", v.c.health())
	}
	vanished = true
	_, err = v.read(0, BlockSize)
	v.wantError(err, ErrSSDLost, "read of dirty data of a vanished SSD")
	if errors.Is(err, ErrDirtyBad) || v.b.bad.Load() != 1 {
		t.Errorf("%d blocks count as bad", v.b.bad.Load())
	}
}

// TestStuckReads: reads that the SSD had begun when it stalled are answered from the backing device, and what
// the SSD then writes to their old memory harms nobody. Where memory cannot be replaced they wait.
func TestStuckReads(t *testing.T) {
	for _, noSwap := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writeback)
		v.noSwap = noSwap
		v.write(0, fill(1, 4))
		v.write(8*BlockSize, fill(2, 1)) // between hits there are misses, and several runs of slots
		v.drain()
		v.flush()
		var answered []*Request
		v.finish = func(r *Request) { answered = append(answered, r) }
		v.stall()
		old := make([]byte, 16*BlockSize)
		reads := []*Request{
			v.start(&Request{Op: ReqRead, Len: 16 * BlockSize, Data: old}),
			v.start(&Request{Op: ReqRead, Off: BlockSize + 512, Len: 512, Data: make([]byte, 512)}), // by an edge
		}
		v.pass(defaultStallLimit + 2*time.Second)
		if noSwap {
			if len(answered) != 1 || answered[0] != reads[1] {
				t.Fatalf("%d reads were answered", len(answered))
			}
			v.stuck = nil
			v.until("the end of the stall", func() bool { return len(answered) == 2 })
			continue
		}
		if len(answered) != 2 || v.swapped != 1 || v.reclaimed != 0 {
			t.Fatalf("%d reads were answered, memory replaced %d times", len(answered), v.swapped)
		}
		want := append(append(append(fill(1, 4), fill(0, 4)...), fill(2, 1)...), fill(0, 7)...)
		check := func() {
			t.Helper()
			if !bytes.Equal(reads[0].Data, want) || !bytes.Equal(reads[1].Data, want[:512]) {
				t.Error("the data is wrong")
			}
		}
		check()
		for _, op := range v.ops { // the SSD writes something to the old memory
			if op.Kind == OpRead && op.Mem != nil {
				for i := range op.Mem {
					op.Mem[i] = 0xee
				}
				for _, p := range v.l.freePages {
					if &p[0] == &op.Mem[0] {
						t.Error("memory that the SSD may write to is free")
					}
				}
			}
		}
		check()
		v.stuck = nil
		v.until("the end of the stall", func() bool { return v.c.health() == HealthOK })
		if v.reclaimed != 1 {
			t.Error("the memory was not given back")
		}
		if n := v.b.cached.Load(); n < 5 {
			t.Errorf("%d blocks are cached: the stall took some", n)
		}
		v.wantRead(0, want)
	}
}

// TestStuckWrites: writes that hang are made on the backing device when the SSD is lost; the slots that
// they were given are not used again before they end.
func TestStuckWrites(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	copy(v.back, fill(7, 32))
	var answered []*Request
	v.finish = func(r *Request) { answered = append(answered, r) }
	v.stall()
	v.start(&Request{Op: ReqWrite, Len: 2 * BlockSize, Data: fill(1, 2)})
	v.start(&Request{Op: ReqWrite, Off: 4*BlockSize + 512, Len: 512, Data: fill(2, 1)[:512]})
	v.pass(defaultLossLimit / 2)
	if len(answered) != 0 {
		t.Fatal("a write was answered before it was anywhere")
	}
	v.pass(defaultLossLimit)
	if len(answered) != 2 || answered[0].Err != nil || answered[1].Err != nil {
		t.Fatalf("%d writes were answered", len(answered))
	}
	want := fill(7, 1)
	copy(want[512:], fill(2, 1)[:512])
	if !bytes.Equal(v.back[:2*BlockSize], fill(1, 2)) || !bytes.Equal(v.back[4*BlockSize:5*BlockSize], want) {
		t.Error("the writes are not on the backing device")
	}
	if len(v.markers) != 0 {
		t.Error("the SSD has missed something")
	}
	writing := func() (n int32) {
		for i := range v.c.buckets {
			n += v.c.buckets[i].writing.Load()
		}
		return n
	}
	held, open := writing(), int32(0)
	for _, o := range v.l.open {
		if o.id != noBucket {
			open++
		}
	}
	if held != open+2 {
		t.Errorf("%d slots are being written with %d open buckets and two operations under way", held, open)
	}
	v.stuck = nil
	v.until("the return", func() bool { return v.c.health() == HealthOK })
	if now := writing(); now != held-2 {
		t.Errorf("%d slots are being written after the operations ended, %d before", now, held)
	}
	v.wantRead(0, fill(1, 2))
	v.wantRead(4*BlockSize, want)
	v.write(0, fill(3, 2))
	v.flush()
	v.wantRead(0, fill(3, 2))
}

// TestStuckCopies: a write to both does not wait for its copy.
func TestStuckCopies(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.stall()
	w := v.start(&Request{Op: ReqWrite, Len: 2 * BlockSize, Data: fill(1, 2)})
	done := false
	v.finish = func(*Request) { done = true }
	v.pass(defaultStallLimit + time.Second)
	if !done || w.Err != nil || v.c.health() != HealthSlow {
		t.Fatalf("the write waits: %v, the SSD is %v", w.Err, v.c.health())
	}
	v.wantRead(0, fill(1, 2))
	v.stuck = nil
	v.until("the end of the stall", func() bool { return v.c.health() == HealthOK })
	v.wantRead(0, fill(1, 2))
}

// TestLateSuccess: a write whose memory the engine cannot see waits for its operation. If that succeeds after
// the SSD was lost, it is made on the backing device all the same: no record speaks of what the SSD has.
func TestLateSuccess(t *testing.T) {
	v := newLossy(t, FormatOptions{NoChecksums: true}, Writeback)
	v.hidden = fill(1, 2)
	var answered *Request
	v.finish = func(r *Request) { answered = r }
	v.stuck = func(op *Op) bool { return op.Dev == SSD && op.Req != nil }
	w := v.start(&Request{Op: ReqWrite, Len: 2 * BlockSize})
	v.gone = true
	v.c.ssdFailed(syscall.ENODEV)
	v.until("the loss", v.c.ssdHealth.settled.Load)
	if answered != nil {
		t.Fatal("the write was answered while its pages are in use")
	}
	v.gone, v.stuck = false, nil
	v.until("the answer", func() bool { return answered == w })
	if w.Err != nil || !bytes.Equal(v.back[:2*BlockSize], fill(1, 2)) {
		t.Errorf("the write is not on the backing device: %v", w.Err)
	}
	if v.b.dirty.Load() != 0 {
		t.Error("a lost SSD has got dirty data")
	}
	v.flush()
}

// TestStallWithoutBackingDevice: while the backing device is away, a slow SSD is not passed by: who reads what it has
// would wait for the backing device instead, for however long that takes.
func TestStallWithoutBackingDevice(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 4))
	v.drain()
	v.flush()
	var answered []*Request
	v.finish = func(r *Request) { answered = append(answered, r) }
	v.c.SetPresence(v.b.id, Holding)
	v.stall()
	first := v.start(&Request{Op: ReqRead, Len: BlockSize, Data: make([]byte, BlockSize)})
	v.pass(defaultStallLimit + time.Second)
	if v.c.health() != HealthSlow || len(answered) != 0 {
		t.Fatalf("the SSD is %v, %d requests are answered", v.c.health(), len(answered))
	}
	read := v.start(&Request{Op: ReqRead, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize)})
	write := v.start(&Request{Op: ReqWrite, Off: 32 * BlockSize, Len: BlockSize, Data: fill(2, 1)})
	v.stuck = func(op *Op) bool { return op.Dev != SSD }
	v.until("the answers", func() bool { return len(answered) == 3 })
	for _, r := range []*Request{first, read, write} {
		if r.Err != nil {
			t.Errorf("%s: %v", r.Op, r.Err)
		}
	}
	if !bytes.Equal(read.Data, fill(1, 4)) || !bytes.Equal(first.Data, fill(1, 1)) {
		t.Error("the data is wrong")
	}
}

// TestStuckReadsOfPending: what is pending when the SSD stalls, or is lost, is not taken for bad: it stays, with
// its pin.
func TestStuckReadsOfPending(t *testing.T) {
	for _, d := range []time.Duration{defaultStallLimit, defaultLossLimit} {
		v := newLossy(t, FormatOptions{}, Writethrough)
		v.write(0, fill(1, 4))
		want(t, "pin", v.hint(ReqRead, 0, 4, "hint=pin"), attrs.Handled, attrs.ReasonNone)
		answered := 0
		v.finish = func(*Request) { answered++ }
		v.stuck = func(op *Op) bool { return op.Dev == SSD || op.Kind == OpFlush } // so it stays pending
		whole := v.start(&Request{Op: ReqRead, Len: 2 * BlockSize, Data: make([]byte, 2*BlockSize)})
		part := v.start(&Request{Op: ReqRead, Off: 2*BlockSize + 512, Len: 512, Data: make([]byte, 512)})
		v.pass(d + 2*time.Second)
		if answered != 2 || !bytes.Equal(whole.Data, fill(1, 2)) || !bytes.Equal(part.Data, fill(1, 1)[:512]) {
			t.Fatalf("%d reads are answered, or the data is wrong", answered)
		}
		if r := v.resident(0, 4); r.Pinned != 4 || r.Leaving != 0 {
			t.Errorf("the SSD is %v: %+v", v.c.health(), r)
		}
		v.stuck = nil
		v.until("the return", func() bool { return v.c.health() == HealthOK })
		v.until("cleaning", func() bool { return len(v.b.mu.pending) == 0 })
		if r := v.resident(0, 4); r.Pinned != 4 {
			t.Errorf("when the SSD is back: %+v", r)
		}
	}
}

// TestStuckWriteOfPending: a write of a part of a block that is pending, under way when the SSD is lost, goes to the backing
// device; what it leaves of the block need not be read there, and may be unreadable.
func TestStuckWriteOfPending(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	both := request(t, ReqWrite, 0, 1, "mode=writethrough")
	copy(both.Data, fill(1, 1))
	if err := v.do(both); err != nil {
		t.Fatal(err)
	}
	v.stuck = func(op *Op) bool { return op.Dev == SSD }
	answered := 0
	v.finish = func(*Request) { answered++ }
	part := v.start(&Request{Op: ReqWrite, Off: 512, Len: 512, Data: fill(2, 1)[:512]})
	v.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpRead {
			return syscall.EIO
		}
		return nil
	}
	v.c.ssdForgot()
	v.pass(time.Second)
	if answered != 1 || part.Err != nil || v.c.health() != HealthLost {
		t.Fatalf("%d requests are answered, error %v, the SSD is %v", answered, part.Err, v.c.health())
	}
	expected := fill(1, 1)
	copy(expected[512:], fill(2, 1)[:512])
	if !bytes.Equal(v.back[:BlockSize], expected) {
		t.Error("the write is not on the backing device")
	}
}

// woken counts how often it goes on.
type woken int

func (n *woken) run(*Lane, error) { *n++ }

// TestParkedLate: a request waits for a probe that ends between its decision to wait and its waiting: nobody wakes it but the
// next look at the SSD.
func TestParkedLate(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.pass(time.Second)
	n := woken(0)
	w := waiter{lane: v.l, owner: &n}
	v.c.ssdHealth.park(v.c, &w)
	v.pass(time.Second)
	if n == 0 {
		t.Error("it waits for ever")
	}
}

package cache

import (
	"errors"
	"testing"
	"time"

	"ubcache/attrs"
)

func withDeadline(d time.Duration) (*attrs.Set, *attrs.Results) {
	var set attrs.Set
	set.SetDeadline(d)
	return &set, &attrs.Results{}
}

func late(err error) bool { return errors.Is(err, attrs.ErrnoDeadline) }

// A change that waits for another past its deadline has no effect.
func TestDeadlineOfQueuedChange(t *testing.T) {
	for _, mode := range []Mode{Writeback, Writethrough, Writearound} {
		for _, op := range []ReqOp{ReqWrite, ReqDiscard, ReqWriteZeroes} {
			for _, in := range []time.Duration{time.Millisecond / 2, time.Second} {
				h := small(t)
				h.b.mode.Store(uint32(mode))
				h.lapse = int64(time.Millisecond)
				// Blocks in part make it wait for others in every mode.
				a := &Request{Op: ReqWrite, Off: 512, Len: 2 * BlockSize, Data: fill(1, 2)}
				b := &Request{Op: op, Off: 512, Len: 2 * BlockSize, Data: fill(2, 2)}
				if op != ReqWrite {
					b.Data = nil
				}
				b.Attrs, b.Results = withDeadline(in)
				h.both(a, b)
				given := in < time.Millisecond
				if a.Err != nil || late(b.Err) != given || !given && b.Err != nil {
					t.Fatalf("%v, %v, %v: %v, %v", mode, op, in, a.Err, b.Err)
				}
				want := attrs.ReasonNone
				if given {
					want = attrs.ReasonLate
				}
				if g := b.Results.For(attrs.IDDeadline); g.Status != attrs.Handled || g.Reason != want {
					t.Errorf("%v, %v, %v: %v", mode, op, in, g)
				}
				h.lapse = 0
				h.wantNoneHeld()
				switch {
				case given:
					h.wantRead(512, fill(1, 2))
					if b.Results.Origin != attrs.OriginNone {
						t.Errorf("%v, %v: origin %v", mode, op, b.Results.Origin)
					}
				case op == ReqWrite:
					h.wantRead(512, fill(2, 2))
				default:
					h.wantRead(512, make([]byte, 2*BlockSize))
				}
				h.drain()
			}
		}
	}
}

// wantNoneHeld looks for journal room and slots that nobody gave back.
func (h *harness) wantNoneHeld() {
	h.t.Helper()
	if n := h.c.journal.mu.reserved; n != 0 {
		h.t.Errorf("room for %d records is reserved", n)
	}
	open := map[BucketID]bool{}
	for _, o := range h.l.open {
		open[o.id] = true
	}
	for i := range h.c.buckets {
		want := int32(0)
		if open[BucketID(i)] {
			want = 1
		}
		if n := h.c.buckets[i].writing.Load(); n != want {
			h.t.Errorf("bucket %d: %d slots are being written, want %d", i, n, want)
		}
	}
}

// wantUnpinned looks for slots that nobody reads and are held for a read all the same.
func (h *harness) wantUnpinned() {
	h.t.Helper()
	for b := range h.c.buckets {
		if n := h.c.buckets[b].pins.Load(); n != 0 {
			h.t.Errorf("bucket %d has %d pins", b, n)
		}
	}
}

// A change that comes too late leaves clean copies where they are.
func TestLateChangeKeepsCopies(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	h.drain()
	h.b.mode.Store(uint32(None))
	h.lapse = int64(time.Millisecond)
	a := &Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1)}
	b := &Request{Op: ReqWrite, Len: 4 * BlockSize, Data: fill(3, 4)}
	b.Attrs, b.Results = withDeadline(time.Millisecond)
	h.both(a, b)
	if !late(b.Err) || h.slotOf(3) < 0 || h.slotOf(0) >= 0 {
		t.Errorf("%v, block 0 at %d, 3 at %d", b.Err, h.slotOf(0), h.slotOf(3))
	}
}

// A read with a deadline does not wait for the fill of another: it reads the backing device itself.
func TestDeadlineDoesNotWaitForFills(t *testing.T) {
	h := small(t)
	copy(h.back, blocks(1, 8))
	for _, in := range []time.Duration{0, time.Second} {
		h.lapse = int64(time.Millisecond)
		a := &Request{Op: ReqRead, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize)}
		b := &Request{Op: ReqRead, Off: 2 * BlockSize, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize)}
		var set attrs.Set
		b.Attrs, b.Results = &set, &attrs.Results{}
		if in != 0 {
			set.SetDeadline(in)
		}
		set.SetTiming()
		h.both(a, b)
		got, _ := b.Results.Timing()
		if a.Err != nil || b.Err != nil || (got.Queued == 0) != (in != 0) || string(b.Data) != string(blocks(3, 4)) {
			t.Errorf("%v: %v, %v, %+v", in, a.Err, b.Err, got)
		}
		h.lapse = 0
		h.wantNoneHeld()
		h.wantRead(0, blocks(1, 8))
		h.drain()
		for i := range 8 {
			h.drop(Block(i))
		}
	}
}

// A read whose turn comes after its deadline starts nothing.
func TestDeadlineOverBeforeRead(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	ops := 0
	h.fail = func(*Op) error { ops++; return nil }
	h.ahead = int64(time.Millisecond)
	r := &Request{Op: ReqRead, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize)}
	r.Attrs, r.Results = withDeadline(time.Millisecond)
	if err := h.do(r); !late(err) || ops != 0 || r.Results.For(attrs.IDDeadline).Reason != attrs.ReasonLate ||
		r.Results.Origin != attrs.OriginNone {
		t.Errorf("%v, %d operations, %v", err, ops, r.Results)
	}
	h.fail, h.ahead = nil, 0
}

// A read that no device will serve in time fails at once; after a while one tries again.
func TestDeadlineWithoutHope(t *testing.T) {
	h := small(t)
	h.write(0, blocks(1, 4))
	read := func(off int64, in time.Duration) error {
		r := &Request{Op: ReqRead, Off: off, Len: 2 * BlockSize, Data: make([]byte, 2*BlockSize)}
		r.Attrs, r.Results = withDeadline(in)
		before := h.now
		err := h.do(r)
		if late(err) && (h.now != before || r.Results.Origin != attrs.OriginNone) {
			t.Errorf("late after %d ns, origin %v", h.now-before, r.Results.Origin)
		}
		h.wantNoneHeld()
		return err
	}
	const miss = 1 << 20
	h.lapse = int64(10 * time.Millisecond)
	for _, far := range []int64{1 << 17, 0} { // misses, then hits
		for i := range int64(sampleMin) {
			in := time.Second
			if i == sampleMin-1 {
				in = 4 * time.Millisecond // too few are measured to give it up
			}
			if err := read(far/(1<<17)*miss+(i+1)*far, in); err != nil {
				t.Fatalf("after %d reads: %v", i, err)
			}
		}
	}
	for _, off := range []int64{0, miss} {
		if err := read(off, 4*time.Millisecond); !late(err) {
			t.Errorf("at %d: %v", off, err)
		}
		if err := read(off, 6*time.Millisecond); err != nil {
			t.Errorf("at %d, with a chance: %v", off, err)
		}
	}
	h.now += 2 * sampleAge
	if err := read(0, 4*time.Millisecond); err != nil {
		t.Errorf("after a while: %v", err)
	}
	for dev, off := range map[BackingID]int64{SSD: 3 << 20, h.b.ID(): 0} { // the other one is needed
		h.l.latency[SSD], h.l.latency[h.b.ID()] = latency{}, latency{}
		h.l.latency[dev] = latency{mean: int64(time.Second), n: sampleMin, at: h.now}
		if err := read(off, 4*time.Millisecond); err != nil {
			t.Errorf("device %d is slow: %v", dev, err)
		}
	}
	h.lapse = 0
	h.drain()
	h.wantUnpinned()
}

// A request whose I/O is under way at its deadline is done, and says that it is late.
func TestDeadlineOverUnderWay(t *testing.T) {
	h := small(t)
	for _, op := range []ReqOp{ReqWrite, ReqRead, ReqFlush} {
		r := &Request{Op: op, Len: BlockSize, Data: fill(1, 1)}
		r.Attrs, r.Results = withDeadline(10 * time.Microsecond)
		h.lapse = int64(time.Millisecond)
		err := h.do(r)
		h.lapse = 0
		if a := r.Results.For(attrs.IDDeadline); err != nil || a.Status != attrs.Handled || a.Reason != attrs.ReasonOverdue {
			t.Errorf("%v: %v, %v", op, a, err)
		}
	}
	h.wantRead(0, fill(1, 1))
}

// A write of which one part has begun is not given up when another is late.
func TestDeadlineOfHalfAWrite(t *testing.T) {
	h := small(t)
	h.lapse = int64(time.Millisecond)
	const off = regionBytes - BlockSize
	a := &Request{Op: ReqWrite, Off: regionBytes + 512, Len: 512, Data: fill(1, 1)[:512]}
	b := &Request{Op: ReqWrite, Off: off, Len: 2 * BlockSize, Data: blocks(2, 2)}
	b.Attrs, b.Results = withDeadline(time.Millisecond / 2)
	h.both(a, b)
	h.lapse = 0
	if b.Err != nil || b.Results.For(attrs.IDDeadline).Reason != attrs.ReasonOverdue {
		t.Errorf("%v, %v", b.Err, b.Results.For(attrs.IDDeadline))
	}
	h.wantRead(off, blocks(2, 2))
}

// With the SSD slower than the deadline allows, clean blocks come from the backing device, dirty
// ones all the same from the SSD.
func TestDeadlineTakesTheFasterCopy(t *testing.T) {
	h := small(t)
	h.write(0, blocks(1, 4))
	h.drain()
	h.write(3*BlockSize, fill(9, 1))
	want := append(blocks(1, 3), fill(9, 1)...)
	read := func(d time.Duration) *attrs.Results {
		r := &Request{Op: ReqRead, Len: 4 * BlockSize, Data: make([]byte, 4*BlockSize)}
		r.Attrs, r.Results = withDeadline(d)
		if err := h.do(r); err != nil {
			t.Fatal(err)
		}
		if string(r.Data) != string(want) {
			t.Error("wrong data")
		}
		return r.Results
	}
	slow := BackingID(0)
	h.fail = func(op *Op) error { // is told of each operation before it ends
		if op.Dev == slow {
			h.now += int64(20 * time.Millisecond)
		} else {
			h.now += int64(100 * time.Microsecond)
		}
		return nil
	}
	if o := read(time.Second).Origin; o != attrs.OriginSSD {
		t.Errorf("nothing is known: %v", o)
	}
	if o := read(time.Second).Origin; o != attrs.OriginSSD {
		t.Errorf("there is time enough: %v", o)
	}
	if o := read(15 * time.Millisecond).Origin; o != attrs.OriginMixed {
		t.Errorf("SSD slow: %v", o)
	}
	h.now += 2 * sampleAge
	if o := read(15 * time.Millisecond).Origin; o != attrs.OriginSSD {
		t.Errorf("what was measured is old: %v", o)
	}
	slow = h.b.ID()
	for range 40 {
		read(time.Second)
	}
	h.drop(0)
	read(time.Second) // tells that the backing device is slow
	slow = SSD
	read(time.Second)
	slow = h.b.ID()
	if o := read(10 * time.Millisecond).Origin; o != attrs.OriginSSD {
		t.Errorf("both slow: %v", o)
	}
	h.fail = nil
	if h.slotOf(1) < 0 {
		t.Error("what was avoided is not cached any more")
	}
}

// Of a read one part of which does not match, and another is late, the mismatch is reported.
func TestMismatchCountsMoreThanLate(t *testing.T) {
	h := small(t)
	const off = regionBytes - BlockSize
	h.write(off, fill(1, 1))
	for _, good := range []bool{true, false} {
		var set attrs.Set
		a, expect := attrs.XXH64, fill(1, 2)
		if !good {
			expect[0]++
		}
		set.SetChecksum(attrs.Checksum{Algorithm: a, Sums: a.AppendSums(nil, expect)})
		set.SetDeadline(time.Millisecond)
		h.l.latency = &latencies{}
		h.l.latency[h.b.ID()] = latency{mean: int64(time.Second), n: sampleMin, at: h.now}
		r := &Request{
			Op: ReqRead, Off: off, Len: 2 * BlockSize, Data: make([]byte, 2*BlockSize),
			Attrs: &set, Results: &attrs.Results{},
		}
		err := h.do(r)
		_, bad := r.Results.Mismatch()
		if late(err) != good || errors.Is(err, attrs.ErrnoMismatch) == good || bad == good ||
			r.Results.For(attrs.IDDeadline).Reason != attrs.ReasonLate {
			t.Errorf("good %t: %v, %v", good, err, r.Results)
		}
	}
}

// A device that is silent for long is expected to go on so.
func TestLatencyOfStall(t *testing.T) {
	var l latencies
	op := &Op{Kind: OpRead, Len: BlockSize}
	const ms = int64(time.Millisecond)
	for i := range int64(20) {
		l.begin(op, 1+2*i*ms)
		l.end(op, 1+(2*i+1)*ms, nil)
	}
	now := 1 + 100*ms
	if d := l.expect(SSD, now, sampleMin); d != ms {
		t.Errorf("%d, want %d", d, ms)
	}
	l.begin(op, now)
	if d := l.expect(SSD, now+50*ms, sampleMin); d != 50*ms {
		t.Errorf("stalled: %d", d)
	}
	l.end(op, now+60*ms, errMedium)
	if d := l.expect(SSD, now+60*ms, sampleMin); d != ms {
		t.Errorf("after an error: %d", d)
	}
	long := &Op{Kind: OpRead, Len: 1 << 20}
	l.begin(long, now)
	if long.begun != 0 {
		t.Error("a long read is measured")
	}
}

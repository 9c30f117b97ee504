package cache

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"ubcache/attrs"
)

// goneHarness is a harness whose backing device can go away, and has somebody who finds out.
type goneHarness struct {
	*harness
	gone     bool
	suspects int
	refused  int // operations that reached the device while it was gone
}

func newGone(t *testing.T) *goneHarness { return newGoneOn(small(t)) }

func newGoneOn(on *harness) *goneHarness {
	h := &goneHarness{harness: on}
	h.c.opts.Suspect = func(id BackingID) {
		if id != h.b.ID() {
			h.t.Errorf("device %d is suspected", id)
		}
		h.suspects++
	}
	h.fail = func(op *Op) error {
		if op.Dev != SSD && h.gone {
			h.refused++
			return syscall.EIO
		}
		return nil
	}
	return h
}

// leave makes the device go away, and known to have.
func (h *goneHarness) leave(p Presence) {
	h.gone = true
	h.c.SetPresence(h.b.ID(), p)
	h.l.Run()
}

// back makes it return. lossy says that it has lost what it was not flushed for.
func (h *goneHarness) comeBack(lossy bool) {
	h.t.Helper()
	if !h.l.Quiet(h.b.ID()) {
		h.t.Fatal("operations are under way on a device that is gone")
	}
	h.gone = false
	if lossy {
		h.c.Lost(h.b.ID())
	}
	h.c.SetPresence(h.b.ID(), Present)
	h.l.Run()
}

// begin submits a request and lets all go on that can, with time passing.
func (h *goneHarness) begin(r *Request) *Request {
	r.Backing, h.done = h.b.ID(), false
	h.l.Submit(r)
	h.run()
	return r
}

func (h *goneHarness) run() {
	for range 50 {
		for len(h.ops) > 0 {
			h.step()
		}
		h.l.Run()
		h.tick()
	}
}

func (h *goneHarness) wantWaiting(what string) {
	h.t.Helper()
	if h.done {
		h.t.Fatalf("%s did not wait", what)
	}
}

func (h *goneHarness) wantDone(what string, r *Request, err error) {
	h.t.Helper()
	h.run()
	if !h.done {
		h.t.Fatalf("%s does not end", what)
	}
	if !errors.Is(r.Err, err) || err == nil && r.Err != nil {
		h.t.Fatalf("%s ended with %v, want %v", what, r.Err, err)
	}
}

func readOf(off int64, n int) *Request {
	return &Request{Op: ReqRead, Off: off, Len: int64(n), Data: make([]byte, n)}
}

func writeOf(off int64, p []byte) *Request {
	return &Request{Op: ReqWrite, Off: off, Len: int64(len(p)), Data: p}
}

func TestAbsentServesHits(t *testing.T) {
	for _, p := range []Presence{Holding, Failing} {
		h := newGone(t)
		h.write(0, fill(1, 4))
		h.drain()
		h.write(8*BlockSize, fill(2, 2)) // dirty
		h.leave(p)
		h.wantRead(0, fill(1, 4))
		h.wantRead(8*BlockSize, fill(2, 2))
		h.write(0, fill(3, 4))
		h.write(512, fill(4, 1)[:512])
		h.flush()
		want := fill(3, 4)
		copy(want[512:], fill(4, 1)[:512])
		h.wantRead(0, want)
		if h.refused != 0 {
			t.Errorf("%v: %d operations went to the absent device", p, h.refused)
		}
		h.comeBack(true)
		h.drain()
		if !bytes.Equal(h.back[:4*BlockSize], want) || !bytes.Equal(h.back[8*BlockSize:][:2*BlockSize], fill(2, 2)) {
			t.Errorf("%v: not all was written back", p)
		}
	}
}

// needs are the requests that cannot do without the backing device.
var needs = map[string]func() *Request{
	"miss":          func() *Request { return readOf(0, BlockSize) },
	"partial miss":  func() *Request { return readOf(512, 512) },
	"over a hit":    func() *Request { return readOf(64*BlockSize-BlockSize, 2*BlockSize) },
	"discard":       func() *Request { return &Request{Op: ReqDiscard, Len: 8 * BlockSize} },
	"write zeroes":  func() *Request { return &Request{Op: ReqWriteZeroes, Len: 8 * BlockSize} },
	"through":       func() *Request { return asked(writeOf(0, fill(9, 1)), attrs.Writethrough) },
	"around":        func() *Request { return asked(writeOf(0, fill(9, 1)), attrs.Writearound) },
	"through 1 KiB": func() *Request { return asked(writeOf(1024, fill(9, 1)[:1024]), attrs.Writethrough) },
}

func asked(r *Request, m attrs.WriteMode) *Request {
	r.Attrs, r.Results = &attrs.Set{}, &attrs.Results{}
	r.Attrs.SetMode(m)
	return r
}

func TestAbsentHoldsAndFails(t *testing.T) {
	for name, need := range needs {
		for _, found := range []bool{false, true} { // whether the request is the one to find out
			t.Run(fmt.Sprint(name, found), func(t *testing.T) {
				h := newGone(t)
				h.write(64*BlockSize, fill(7, 1))
				h.drain()
				if h.gone = true; !found {
					h.leave(Holding)
				}
				r := h.begin(need())
				h.wantWaiting(name)
				if found {
					if h.suspects == 0 {
						t.Fatal("nobody was told of the error")
					}
					h.leave(Holding)
				}
				tries := h.refused
				h.run()
				h.wantWaiting(name)
				if h.refused != tries {
					t.Errorf("the absent device was tried %d times more", h.refused-tries)
				}
				h.wantHit()
				h.done = false
				h.comeBack(true)
				h.wantDone(name, r, nil)
				// And once more, without a return.
				h.leave(Holding)
				if r = need(); r.Op == ReqRead {
					r.Off += 128 * BlockSize // not filled meanwhile
				}
				h.begin(r)
				if name != "over a hit" {
					h.wantWaiting(name)
				}
				h.leave(Failing)
				h.wantDone(name, r, ErrAbsent)
				h.wantHit()
				h.done = false
				h.wantDone(name, h.begin(again(need)), ErrAbsent)
				h.comeBack(true)
				h.wantDone(name, h.begin(need()), nil)
			})
		}
	}
}

func again(need func() *Request) *Request {
	r := need()
	if r.Op == ReqRead {
		r.Off += 192 * BlockSize
	}
	return r
}

// wantHit reads a block that is cached.
func (h *goneHarness) wantHit() {
	h.t.Helper()
	h.wantRead(64*BlockSize, fill(7, 1))
}

func TestDeadlinesDoNotWaitForAbsentDevices(t *testing.T) {
	h := newGone(t)
	h.leave(Holding)
	for _, r := range []*Request{readOf(0, BlockSize), readOf(512, 512), asked(writeOf(0, fill(1, 1)), attrs.Writethrough)} {
		if r.Attrs == nil {
			r.Attrs = &attrs.Set{}
		}
		r.Attrs.SetDeadline(time.Second)
		h.wantDone("deadline", h.begin(r), ErrLate)
	}
}

func TestErrorsOfDevicesThatAreThere(t *testing.T) {
	h := newGone(t)
	bad := map[int64]int{}
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpRead && op.Off == 0 {
			bad[0]++
			return syscall.EIO
		}
		if op.Dev != SSD && op.Kind == OpRead && op.Off == 4*BlockSize && bad[4]%2 == 0 {
			bad[4]++
			return syscall.EIO
		}
		if op.Dev != SSD && op.Kind == OpRead && op.Off == 8*BlockSize {
			return syscall.ENODATA // a medium error
		}
		return nil
	}
	probe := func() { h.c.Alive(h.b.ID(), h.c.BeginProbe(h.b.ID())) }
	old := h.c.BeginProbe(h.b.ID())
	r := h.begin(readOf(0, BlockSize))
	h.wantWaiting("a read with an unclear error")
	h.c.Alive(h.b.ID(), old) // says nothing about what came after it had begun
	h.run()
	h.wantWaiting("a read with an unclear error")
	probe()
	h.run()
	h.wantWaiting("the second try")
	probe()
	h.wantDone("a bad sector", r, syscall.EIO)
	if bad[0] != 2 {
		t.Errorf("the bad sector was tried %d times", bad[0])
	}
	r = h.begin(readOf(4*BlockSize, BlockSize))
	probe()
	h.wantDone("a passing error", r, nil)
	h.wantDone("a medium error", h.begin(readOf(8*BlockSize, BlockSize)), syscall.ENODATA)
	if h.suspects != 3 {
		t.Errorf("suspected %d times", h.suspects)
	}
}

func TestAbsentDirtyLimit(t *testing.T) {
	h := newGone(t)
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.DirtyMax = 64<<10, 20
	if err := h.c.SetTunables(h.b.ID(), tun); err != nil {
		t.Fatal(err)
	}
	h.leave(Holding)
	max := h.b.dirtyMax.Load()
	// A stream that would bypass the cache, up to the limit.
	n := int64(0)
	for ; n < max; n++ {
		h.write(n*BlockSize, fill(byte(n+1), 1))
	}
	r := h.begin(writeOf(n*BlockSize, fill(byte(n+1), 1)))
	h.wantWaiting("a write beyond the limit")
	for i := range n {
		h.wantRead(i*BlockSize, fill(byte(i+1), 1))
	}
	h.done = false
	h.comeBack(true)
	h.wantDone("the write", r, nil)
	h.drain()
	for i := range n + 1 {
		if h.back[i*BlockSize] != byte(i+1) {
			t.Fatalf("block %d is not on the backing device", i)
		}
	}
}

func TestAbsentOverrulesBypass(t *testing.T) {
	h := newGone(t)
	h.leave(Holding)
	r := writeOf(0, fill(1, 1))
	r.Attrs, r.Results = &attrs.Set{}, &attrs.Results{}
	r.Attrs.SetHint(attrs.HintBypass)
	h.wantDone("a write with hint bypass", h.begin(r), nil)
	if a := r.Results.For(attrs.IDHint); a.Status != attrs.Ignored || a.Reason != attrs.ReasonDegraded {
		t.Errorf("the hint is answered with %v", a)
	}
	h.wantRead(0, fill(1, 1))
}

// What was written back and not flushed for is written back again after a loss.
func TestLossMakesPendingDirtyAgain(t *testing.T) {
	for _, lossy := range []bool{false, true} {
		h := newGone(t)
		h.write(0, fill(1, 4))
		_ = h.c.SetDrain(h.b.ID(), true)
		h.until("writeback", func() bool { return bytes.Equal(h.back[:4*BlockSize], fill(1, 4)) && h.b.dirty.Load() == 0 })
		_ = h.c.SetDrain(h.b.ID(), false)
		if h.c.Status().Backings[0].PendingBytes != 4*BlockSize {
			t.Fatal("the flush came first")
		}
		h.leave(Holding)
		for len(h.ops) > 0 { // the flush, if it had begun
			h.step()
		}
		clear(h.back[:4*BlockSize]) // the loss
		if !lossy {
			copy(h.back, fill(1, 4))
		}
		h.comeBack(lossy)
		h.drain()
		if !bytes.Equal(h.back[:4*BlockSize], fill(1, 4)) {
			t.Errorf("lossy %v: the loss was not healed", lossy)
		}
		h.wantRead(0, fill(1, 4))
	}
}

// A flush must not vouch for what the device has lost, and says so once.
func TestFlushAfterALoss(t *testing.T) {
	h := newGone(t)
	setMode := func(m Mode) {
		if err := h.c.SetMode(h.b.ID(), m); err != nil {
			t.Fatal(err)
		}
	}
	// With a copy on the SSD nothing is lost.
	setMode(Writethrough)
	h.write(0, fill(1, 4))
	r := &Request{Op: ReqFlush}
	h.gone = true
	h.begin(r)
	h.wantWaiting("a flush that needs the device")
	h.leave(Holding)
	clear(h.back[:4*BlockSize])
	h.comeBack(true)
	h.wantDone("the flush", r, nil)
	h.drain()
	if !bytes.Equal(h.back[:4*BlockSize], fill(1, 4)) {
		t.Error("a loss was not healed")
	}
	// Without one the next flush fails, and only that.
	setMode(Writearound)
	h.write(16*BlockSize, fill(2, 1))
	h.leave(Holding)
	r = h.begin(&Request{Op: ReqFlush})
	h.wantWaiting("a flush that needs the device")
	h.comeBack(true)
	h.wantDone("the flush", r, ErrLost)
	h.flush()
	h.write(16*BlockSize, fill(2, 1))
	h.leave(Holding)
	h.comeBack(true)
	h.wantDone("the first flush after the loss", h.begin(&Request{Op: ReqFlush}), ErrLost)
	h.flush()
	// Nor does a device without a volatile cache lose anything.
	h.write(16*BlockSize, fill(3, 1))
	h.leave(Holding)
	r = h.begin(&Request{Op: ReqFlush})
	h.comeBack(false)
	h.wantDone("the flush", r, nil)
}

// A flush that fails may have dropped data, so that the one after it does not vouch for that.
func TestFailedBackgroundFlushMakesPendingDirtyAgain(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	flushes := 0
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpFlush {
			if flushes++; flushes == 1 {
				clear(h.back[:4*BlockSize])
				return syscall.EIO
			}
		}
		return nil
	}
	h.drain()
	if flushes < 2 || !bytes.Equal(h.back[:4*BlockSize], fill(1, 4)) {
		t.Errorf("after %d flushes the data is gone", flushes)
	}
}

// A fill that read the device before a loss holds what the client has seen: that stays, also if the device has been
// flushed since.
func TestFillOverALoss(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		h := newGone(t)
		if err := h.c.SetMode(h.b.ID(), Writearound); err != nil {
			t.Fatal(err)
		}
		h.write(0, fill(5, 1)) // not flushed
		h.ops = h.ops[:0:0]
		r := readOf(0, BlockSize)
		r.Backing, h.done = h.b.ID(), false
		h.l.Submit(r)
		h.step() // the read; its fill is on the way to the SSD
		h.leave(Holding)
		clear(h.back[:BlockSize])
		h.comeBack(true)
		if flushed {
			filling := h.ops[0]
			h.stuck = func(op *Op) bool { return op == filling }
			for range 2 { // the first one tells of the loss
				_ = h.do(&Request{Op: ReqFlush})
			}
			h.stuck, h.done = nil, false
			if h.b.unflushed(0) != 0 {
				t.Fatal("the device is not flushed")
			}
		}
		h.settle()
		if r.Err != nil {
			t.Errorf("the read: %v", r.Err)
		}
		h.wantRead(0, fill(5, 1))
		h.drain()
		if h.back[0] != 5 {
			t.Errorf("flushed %v: what was read is not written there again", flushed)
		}
	}
}

func TestRecognise(t *testing.T) {
	for _, sums := range []bool{true, false} {
		h := smallWith(t, FormatOptions{BucketBytes: 64 << 10, NoChecksums: !sums})
		if n, err := h.c.Recognise(h.b.ID(), h.back, 100); n != 0 || err != nil {
			t.Errorf("an empty cache: %d compared, %v", n, err)
		}
		h.write(0, fill(1, 32))
		h.drain()
		h.write(64*BlockSize, fill(2, 8)) // dirty: not there yet
		if n, err := h.c.Recognise(h.b.ID(), h.back, 100); n < 8 || err != nil {
			t.Errorf("the same device: %d compared, %v", n, err)
		}
		other := make(memStorage, len(h.back))
		if _, err := h.c.Recognise(h.b.ID(), other, 100); !errors.Is(err, ErrIdentity) {
			t.Errorf("another device: %v", err)
		}
		if n, _ := h.c.Recognise(h.b.ID(), h.back, 3); n != 3 {
			t.Errorf("compared %d blocks, not 3", n)
		}
	}
}

func TestHoldOnRecord(t *testing.T) {
	for _, d := range []time.Duration{0, time.Second, 30 * time.Second, maxBackingHold, HoldForever} {
		if err := checkHold(d); err != nil {
			t.Error(err)
		}
		if got := decodeHold(encodeHold(d)); got != d {
			t.Errorf("%v comes back as %v", d, got)
		}
	}
	for _, d := range []time.Duration{-1, 1, maxBackingHold + time.Second, HoldForever - 1} {
		if checkHold(d) == nil {
			t.Errorf("%v is accepted", d)
		}
	}
	if got := decodeHold(0); got != defaultBackingHold {
		t.Errorf("a record without it means %v", got)
	}
}

// What fails because the device is gone has no effect: clean copies stay.
func TestAbsentKeepsCleanCopies(t *testing.T) {
	h := newGone(t)
	h.write(0, fill(1, 4))
	h.drain()
	h.leave(Failing)
	for _, r := range []*Request{
		asked(writeOf(0, fill(2, 4)), attrs.Writearound),
		asked(writeOf(512, fill(2, 1)[:512]), attrs.Writethrough),
		{Op: ReqDiscard, Len: 4 * BlockSize},
	} {
		h.wantDone(r.Op.String(), h.begin(r), ErrAbsent)
		h.wantRead(0, fill(1, 4))
	}
}

// The background leaves an absent device alone, whatever there is to do.
func TestAbsentPausesTheBackground(t *testing.T) {
	h := newGone(t)
	h.write(0, fill(1, 8))
	_ = h.c.SetDrain(h.b.ID(), true)
	h.until("writeback", func() bool { return h.b.dirty.Load() == 0 })
	h.write(16*BlockSize, fill(2, 8))
	h.leave(Holding)
	for len(h.ops) > 0 {
		h.step()
	}
	tries, reads := h.refused, h.count[OpRead] // what was under way
	h.run()
	h.run()
	if h.refused != tries || h.count[OpRead] != reads {
		t.Errorf("the absent device was tried %d times, and %d reads were made for it",
			h.refused-tries, h.count[OpRead]-reads)
	}
	h.settle() // and a stop does not wait for it
	h.comeBack(true)
	h.drain()
	if !bytes.Equal(h.back[:8*BlockSize], fill(1, 8)) || !bytes.Equal(h.back[16*BlockSize:][:8*BlockSize], fill(2, 8)) {
		t.Error("not all was written back")
	}
}

// The copy of a write through comes to the SSD after the device has lost what it had of it.
func TestLossBeforeTheCopy(t *testing.T) {
	h := newGone(t)
	r := asked(writeOf(0, fill(1, 4)), attrs.Writethrough)
	r.Backing, h.done = h.b.ID(), false
	h.l.Submit(r)
	var copies []*Op
	for len(h.ops) > 0 {
		if op := h.ops[0]; op.Dev == SSD {
			copies, h.ops = append(copies, op), h.ops[1:]
			continue
		}
		h.step()
	}
	if len(copies) == 0 || h.done {
		t.Fatal("there is no copy")
	}
	h.leave(Holding)
	clear(h.back[:4*BlockSize])
	h.comeBack(true)
	h.ops = append(h.ops, copies...)
	h.wantDone("the write", r, nil)
	h.flush()
	h.run()
	h.drain()
	if !bytes.Equal(h.back[:4*BlockSize], fill(1, 4)) {
		t.Error("the loss was not healed")
	}
}

// A change is lost while the device is flushed for it, so that dirty copies may go: it is made again.
func TestLossBeforeTheFlushOfAChange(t *testing.T) {
	h := newGone(t)
	copy(h.back, fill(7, 8))
	h.write(0, fill(1, 4))
	r := &Request{Backing: h.b.ID(), Op: ReqDiscard, Len: 8 * BlockSize}
	h.done = false
	h.l.Submit(r)
	for i := 0; len(h.ops) == 0 || h.ops[0].Dev == SSD || h.ops[0].Kind != OpFlush; i++ {
		if i > 1000 || h.done {
			t.Fatal("the device is not flushed")
		}
		h.step()
		h.tick()
	}
	h.gone = true
	h.step()
	h.leave(Holding)
	copy(h.back, fill(7, 8))
	h.comeBack(true)
	h.wantDone("the discard", r, nil)
	h.wantRead(0, fill(0, 8))
	if !bytes.Equal(h.back[:8*BlockSize], fill(0, 8)) {
		t.Error("the discard was not made again")
	}
}

// A flush does not vouch for what a loss has overtaken.
func TestFlushOvertakenByALoss(t *testing.T) {
	h := newGone(t)
	n, losses := h.b.wrote.Add(1), h.b.losses.Load()
	h.c.Lost(h.b.ID())
	if h.b.flushDone(n, losses); h.b.flushed.Load() >= n {
		t.Error("it counts")
	}
	if h.b.flushDone(n, h.b.losses.Load()); h.b.flushed.Load() < n {
		t.Error("a later one does not count")
	}
}

// TestAbsentOrdered: writes of an ordered device that wait for its queue wait on while the device is gone and
// held for, fail when it is not, and go on when it is back.
func TestAbsentOrdered(t *testing.T) {
	h := newGone(t)
	h.setTunables(func(tun *Tunables) { tun.Ordered, tun.OrderedMax, tun.OrderedAge = true, minOrderedMax, time.Hour })
	h.until("the order", func() bool { return h.c.Status().Backings[0].Ordered == "on" })
	id := h.b.ID()
	fill1 := func(at int) *Request {
		return &Request{Op: ReqWrite, Off: int64(at) * BlockSize, Len: 64 * BlockSize, Data: fill(byte(at/64+1), 64)}
	}
	h.gone = true // nobody knows yet
	var r *Request
	at := 0
	for ; at < 1024; at += 64 {
		if r = h.begin(fill1(at)); !h.done {
			break
		}
		if r.Err != nil {
			t.Fatalf("write %d: %v", at, r.Err)
		}
	}
	if h.done {
		t.Fatal("the queue has no limit")
	}
	if h.suspects == 0 {
		t.Error("nobody is told that writeback fails")
	}
	h.c.SetPresence(id, Holding)
	h.run()
	h.wantWaiting("a write that waits for the queue")
	h.c.SetPresence(id, Failing)
	h.run()
	h.wantDone("a write that waits for the queue", r, ErrAbsent)
	h.begin(fill1(at))
	h.c.SetPresence(id, Holding)
	r = h.begin(fill1(at))
	h.wantWaiting("a write that finds the queue full")
	h.comeBack(false)
	h.run()
	h.wantDone("a write that finds the queue full", r, nil)
	h.drain()
	if got := h.back[at*BlockSize]; got != byte(at/64+1) {
		t.Errorf("the backing device has %d", got)
	}
}

// TestLossBetweenParts: a write with FUA that spans two regions, of which the device loses the one while the
// other waits for it, is not durable when both have been written.
func TestLossBetweenParts(t *testing.T) {
	h := newGone(t)
	part := 0
	h.fail = func(op *Op) error { // the second part comes when the device is gone
		switch {
		case op.Kind != OpWrite:
			return nil
		case op.Dev == SSD && op.Off >= h.c.geo.DataOff:
			return errMedium // so that each region's part goes past the cache
		case op.Dev == SSD:
			return nil
		}
		if part++; part == 2 {
			return syscall.EIO
		}
		return nil
	}
	r := writeOf(regionBytes-BlockSize, fill(5, 2))
	r.FUA = true
	h.begin(r)
	h.wantWaiting("a write of which a part has failed")
	h.leave(Holding)
	h.comeBack(true)
	h.run()
	h.wantDone("a write that a loss has overtaken in part", r, ErrLost)
	if part != 3 {
		t.Errorf("%d parts were written", part)
	}
}

// TestLossOfAnEarlierLife: what was written past the cache before the daemon was killed, and is lost when the device
// comes back, is reported by the first FLUSH.
func TestLossOfAnEarlierLife(t *testing.T) {
	h := newGone(t)
	r := writeOf(0, fill(5, 1))
	asked(r, attrs.Writearound)
	h.begin(r)
	h.wantDone("a write past the cache", r, nil)
	h.c.Abandon()
	h.open()
	b, err := h.c.Backing(h.b.ID())
	if err != nil {
		t.Fatal(err)
	}
	h.b = b
	h.leave(Holding)
	h.comeBack(true)
	h.wantDone("the first flush after the loss", h.begin(&Request{Op: ReqFlush}), ErrLost)
	h.wantDone("the second", h.begin(&Request{Op: ReqFlush}), nil)
}

// TestLossOutlivesAStop: that the device has lost writes is said by the first FLUSH, also if the cache was stopped in
// between; and by one only.
func TestLossOutlivesAStop(t *testing.T) {
	h := newGone(t)
	r := writeOf(0, fill(5, 1))
	asked(r, attrs.Writearound)
	h.begin(r)
	h.wantDone("a write past the cache", r, nil)
	h.leave(Holding)
	h.comeBack(true)
	again := func() {
		t.Helper()
		h.stop()
		h.open()
		b, err := h.c.Backing(h.b.ID())
		if err != nil {
			t.Fatal(err)
		}
		h.b = b
	}
	again()
	h.wantDone("the first flush after the loss", h.begin(&Request{Op: ReqFlush}), ErrLost)
	again()
	h.wantDone("the second", h.begin(&Request{Op: ReqFlush}), nil)
}

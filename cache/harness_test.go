package cache

import (
	"bytes"
	"compress/gzip"
	"io"
	"slices"
	"testing"
	"time"
)

// harness drives one lane, which also does the background work, on devices in memory.
type harness struct {
	t     *testing.T
	c     *Cache
	l     *Lane
	b     *Backing
	ssd   memStorage
	back  memStorage
	ops   []*Op
	now   int64
	done  bool
	fail  func(op *Op) error // decides the outcome of an operation, if set
	then  func(op *Op)       // called when an operation has had its effect, if set
	stuck func(op *Op) bool  // says which operations do not end, if set
	opts  Options

	noSwap             bool
	swapped, reclaimed int
	count              map[OpKind]int // of completed SSD operations

	finish func(r *Request) // called by Driver.Finish, if set
	pick   func() int       // chooses the operation to complete next, if set; -1 for none
	hidden []byte           // memory of requests without visible data
	lapse  int64            // what each operation takes
	ahead  int64            // of Clock before Now
}

func newHarness(t *testing.T, ssd memStorage, backing int) *harness {
	h := &harness{
		t: t, ssd: ssd, back: make(memStorage, backing), now: 1, count: map[OpKind]int{},
	}
	h.open()
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.WritebackDelay = 0, time.Hour
	b, err := h.c.Attach(AttachOptions{
		Name: "disk", Mode: Writeback, LBS: 512, Identity: Identity{Size: int64(backing)},
		Tunables: tun, UUID: UUID{0xb},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.SetAbilities(true, true)
	h.b = b
	return h
}

func (h *harness) open() {
	c, err := Open(h.ssd, h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	h.c = c
	h.l = c.NewLane(h)
	c.StartBackground(h.l)
}

func (h *harness) Submit(op *Op)                                 { h.ops = append(h.ops, op) }
func (h *harness) CopyOut(r *Request, off int, dst []byte) error { copy(dst, r.Data[off:]); return nil }

func (h *harness) CopyIn(r *Request, off int, src []byte) error { copy(r.Data[off:], src); return nil }

func (h *harness) Finish(r *Request) {
	if h.finish != nil {
		h.finish(r)
	}
	h.done = true
}

func (h *harness) Wake() {}

// Swap and Reclaim make it a Swapper.
func (h *harness) Swap(r *Request) (int, bool) {
	if h.noSwap {
		return 0, false
	}
	h.swapped++
	r.Data = bytes.Clone(r.Data)
	return h.swapped, true
}

func (h *harness) Reclaim(int)  { h.reclaimed++ }
func (h *harness) Now() int64   { return h.now }
func (h *harness) Clock() int64 { return h.now + h.ahead }

// step completes the oldest operation, or the one that was picked, and runs what was woken.
func (h *harness) step() {
	i := h.runnable()
	if h.pick != nil && i >= 0 {
		i = h.pick()
	}
	if i >= 0 {
		op := h.ops[i]
		h.ops = slices.Delete(h.ops, i, i+1)
		h.now += h.lapse
		if op.Req != nil {
			op.Mem = h.hidden[op.ReqOff:][:op.Len]
		}
		var err error
		if h.fail != nil {
			err = h.fail(op)
		}
		dev := h.ssd
		if op.Dev != SSD {
			dev = h.back
		} else {
			h.count[op.Kind]++
		}
		switch {
		case err != nil:
		case op.Kind == OpRead:
			copy(op.Mem, dev[op.Off:op.Off+op.Len])
		case op.Kind == OpWrite:
			copy(dev[op.Off:], op.Mem)
		case op.Kind == OpDiscard, op.Kind == OpZero:
			clear(dev[op.Off : op.Off+op.Len])
		}
		if h.then != nil && err == nil {
			h.then(op)
		}
		h.l.Complete(op, err)
	}
	h.l.Run()
}

// runnable is the oldest operation that can end, -1 if there is none.
func (h *harness) runnable() int {
	return slices.IndexFunc(h.ops, func(op *Op) bool { return h.stuck == nil || !h.stuck(op) })
}

// do plays a request to its end.
func (h *harness) do(r *Request) error {
	h.t.Helper()
	r.Backing, h.done = h.b.ID(), false
	h.l.Submit(r)
	for i := 0; !h.done; i++ {
		if i > 100_000 {
			h.t.Fatal("the request does not end")
		}
		h.step()
		if h.runnable() < 0 && !h.done {
			h.tick()
		}
	}
	return r.Err
}

// tick lets some time pass for the background.
func (h *harness) tick() {
	h.now += int64(100 * time.Millisecond)
	h.l.Tick()
}

func (h *harness) write(off int64, data []byte) {
	h.t.Helper()
	if err := h.do(&Request{Op: ReqWrite, Off: off, Len: int64(len(data)), Data: data}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) read(off int64, n int) ([]byte, error) {
	h.t.Helper()
	p := make([]byte, n)
	err := h.do(&Request{Op: ReqRead, Off: off, Len: int64(n), Data: p})
	return p, err
}

func (h *harness) wantRead(off int64, want []byte) {
	h.t.Helper()
	got, err := h.read(off, len(want))
	if err != nil {
		h.t.Fatalf("read at %d: %v", off, err)
	}
	if !bytes.Equal(got, want) {
		h.t.Fatalf("read at %d has %x…, want %x…", off, got[:8], want[:8])
	}
}

func (h *harness) flush() {
	h.t.Helper()
	if err := h.do(&Request{Op: ReqFlush}); err != nil {
		h.t.Fatal(err)
	}
}

// until lets the background work until ok.
func (h *harness) until(what string, ok func() bool) {
	h.t.Helper()
	for i := 0; !ok(); i++ {
		if i > 100_000 {
			h.t.Fatalf("%s does not come", what)
		}
		h.tick()
		h.step()
	}
}

func (h *harness) settle() {
	h.t.Helper()
	h.c.StartSettle()
	h.until("settling", func() bool { return len(h.ops) == 0 && h.l.Settled() })
	h.c.closing.Store(false)
}

func (h *harness) drain() {
	h.t.Helper()
	if err := h.c.SetDrain(h.b.ID(), true); err != nil {
		h.t.Fatal(err)
	}
	h.until("the drain", func() bool { return h.b.Remaining() == 0 && len(h.ops) == 0 })
	_ = h.c.SetDrain(h.b.ID(), false)
}

// slotOf is where a block is on the SSD, in bytes, or -1.
func (h *harness) slotOf(blk Block) int64 {
	s := h.c.index.stripeOf(h.b.id, blk)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := h.c.index.find(makeKey(h.b.id, blk)); ok {
		return h.c.geo.slotOff(e.slot)
	}
	return -1
}

func compress(t *testing.T, p []byte) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func decompress(t *testing.T, z []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(z))
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

package cache

import (
	"testing"
	"time"

	"ubcache/attrs"
)

// timed plays a request for its times. Each operation takes a millisecond, one after the other.
func (h *harness) timed(r *Request) attrs.Timing {
	h.t.Helper()
	var set attrs.Set
	set.SetTiming()
	set.SetTrace(9)
	r.Attrs, r.Results = &set, &attrs.Results{}
	h.lapse = int64(time.Millisecond)
	if err := h.do(r); err != nil {
		h.t.Fatal(err)
	}
	h.lapse = 0
	got, ok := r.Results.Timing()
	if !ok {
		h.t.Fatalf("timing: %v", r.Results.For(attrs.IDTiming))
	}
	return got
}

func TestTiming(t *testing.T) {
	const ms = time.Millisecond
	h := small(t)
	h.b.mode.Store(uint32(Writearound))
	h.write(0, blocks(1, 64))
	data := func(n int) []byte { return make([]byte, n*BlockSize) }
	read := func(n int) *Request {
		return &Request{Op: ReqRead, Len: int64(n) * BlockSize, Data: data(n)}
	}
	mode := func(m Mode) { h.b.mode.Store(uint32(m)) }
	for _, c := range []struct {
		name string
		do   func() *Request
		want attrs.Timing
	}{
		{"miss without fill", func() *Request { mode(Writeonly); return read(4) }, attrs.Timing{Backing: ms, Total: ms}},
		{"miss and fill", func() *Request { mode(Writearound); return read(4) }, attrs.Timing{Backing: ms, SSD: ms, Total: 2 * ms}},
		{"hit", func() *Request { return read(4) }, attrs.Timing{SSD: ms, Total: ms}},
		// Backing and SSD at the same time, of which the backing is done first.
		{
			"both", func() *Request { h.drain(); h.drop(0); mode(Writeonly); return read(4) },
			attrs.Timing{Backing: ms, SSD: 2 * ms, Total: 2 * ms},
		},
		// Three runs on the SSD at the same time count once.
		{
			"three runs", func() *Request {
				mode(Writeback)
				for _, b := range []int64{9, 8, 7} {
					h.write(b*BlockSize, fill(3, 1))
				}
				r := read(3)
				r.Off = 7 * BlockSize
				return r
			}, attrs.Timing{SSD: 3 * ms, Total: 3 * ms},
		},
		{"part of a block", func() *Request {
			r := read(1)
			r.Off, r.Len, r.Data = 7*BlockSize+512, 512, make([]byte, 512)
			return r
		}, attrs.Timing{SSD: ms, Total: ms}},
		{"write", func() *Request {
			return &Request{Op: ReqWrite, Off: 20 * BlockSize, Len: BlockSize, Data: data(1)}
		}, attrs.Timing{SSD: ms, Total: ms}},
		// What left the cache has to be durable first: a commit is a flush and a page.
		{"write past the cache", func() *Request {
			mode(None)
			return &Request{Op: ReqWrite, Off: 30 * BlockSize, Len: BlockSize, Data: data(1)}
		}, attrs.Timing{SSD: 2 * ms, Backing: ms, Total: 3 * ms}},
		{"discard", func() *Request {
			return &Request{Op: ReqDiscard, Off: 30 * BlockSize, Len: BlockSize}
		}, attrs.Timing{Backing: ms, Total: ms}},
		// A flush of the backing device, and beside it a commit.
		{"flush", func() *Request {
			mode(Writeback)
			h.write(40*BlockSize, data(1))
			return &Request{Op: ReqFlush}
		}, attrs.Timing{Backing: ms, SSD: 3 * ms, Total: 3 * ms}},
		{"write with FUA", func() *Request {
			return &Request{Op: ReqWrite, Off: 20 * BlockSize, Len: BlockSize, Data: data(1), FUA: true}
		}, attrs.Timing{SSD: 3 * ms, Total: 3 * ms}},
	} {
		r := c.do()
		if got := h.timed(r); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if r.Op == ReqWrite && r.Results.Origin == attrs.OriginNone {
			t.Errorf("%s: no origin", c.name)
		}
	}
}

// A fill of a zero-copy read goes through the engine's memory and is the request's time all the same.
func TestTimingOfHiddenFill(t *testing.T) {
	h := unchecked(t)
	h.hidden = make([]byte, BlockSize)
	const ms = time.Millisecond
	want := attrs.Timing{Backing: ms, SSD: ms, Total: 2 * ms}
	if got := h.timed(&Request{Op: ReqRead, Len: BlockSize}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestStopwatch(t *testing.T) {
	var w stopwatch
	w.begin(10)
	w.begin(13)
	w.end(15)
	w.begin(16)
	w.end(17)
	w.end(20)
	w.begin(30)
	w.end(31)
	if w.total != 11 {
		t.Errorf("%d, want 11", w.total)
	}
}

// Time in which another request holds the blocks is time queued.
func TestTimeQueued(t *testing.T) {
	const ms = time.Millisecond
	h := small(t)
	h.b.mode.Store(uint32(None))
	var set attrs.Set
	set.SetTiming()
	a := &Request{Op: ReqWrite, Len: BlockSize, Data: fill(1, 1)}
	b := &Request{Op: ReqDiscard, Len: BlockSize, Attrs: &set, Results: &attrs.Results{}}
	h.lapse = int64(ms)
	h.both(a, b)
	h.lapse = 0
	want := attrs.Timing{Queued: ms, Backing: ms, Total: 2 * ms}
	if got, _ := b.Results.Timing(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// do of the harness ends with the first Finish; then what comes is the second's.
func (h *harness) both(a, b *Request) {
	h.t.Helper()
	left := 2
	h.finish = func(*Request) { left-- }
	a.Backing, b.Backing = h.b.ID(), h.b.ID()
	h.l.Submit(a)
	h.l.Submit(b)
	for i := 0; left > 0; i++ {
		if i > 100_000 {
			h.t.Fatal("the requests do not end")
		}
		if h.step(); len(h.ops) == 0 && left > 0 {
			h.tick()
		}
	}
	h.finish = nil
}

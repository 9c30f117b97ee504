package cache

import (
	"errors"
	"syscall"
	"testing"
)

// Without memory, what needs some of the engine's own fails or goes without, and all else goes on; with
// memory again nothing is left of it.
func TestNoMemory(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 8))
	h.drain()
	h.write(16*BlockSize, fill(2, 8))
	noMemory.Store(true)
	defer noMemory.Store(false)
	h.wantRead(0, fill(1, 8))
	h.write(4*BlockSize, fill(3, 4))
	h.wantRead(32*BlockSize, fill(0, 4))
	for _, r := range []*Request{
		{Op: ReqRead, Off: 512, Len: 512, Data: make([]byte, 512)},                // to be verified as a whole
		{Op: ReqWrite, Off: 512, Len: 512, Data: fill(9, 1)[:512]},                // to be merged
		{Op: ReqWrite, Off: 15*BlockSize + 512, Len: BlockSize, Data: fill(9, 1)}, // at both ends
	} {
		if err := h.do(r); !errors.Is(err, syscall.ENOMEM) {
			t.Errorf("%s at %d+%d without memory: %v", r.Op, r.Off, r.Len, err)
		}
	}
	h.flush()
	noMemory.Store(false)
	h.wantRead(0, append(fill(1, 4), fill(3, 4)...))
	h.wantRead(16*BlockSize, fill(2, 8))
	h.write(512, fill(9, 1)[:512])
	h.drain()
	h.wantRead(16*BlockSize, fill(2, 8))
}

// TestNoMemoryInThePlacesThatAsk: each place that asks for memory of its own does so for the first time when there is none. What waits
// for it waits, and goes on when there is some again; what fails says why, and keeps none.
func TestNoMemoryInThePlacesThatAsk(t *testing.T) {
	set := func(on bool) { noMemory.Store(on) }
	t.Cleanup(func() { set(false) })
	wantNone := func(h *harness, err error) {
		h.t.Helper()
		if !errors.Is(err, syscall.ENOMEM) {
			h.t.Errorf("without memory: %v", err)
		}
	}
	ticks := func(h *harness, n int) {
		for range n {
			h.tick()
			h.step()
		}
	}
	for name, play := range map[string]func(h *harness){
		"start": func(h *harness) {
			h.write(0, fill(1, 8))
			h.drain()
			h.stop()
			held := offHeapHeld.Load()
			set(true)
			_, err := Open(h.ssd, h.opts)
			wantNone(h, err)
			if n := offHeapHeld.Load() - held; n != 0 {
				h.t.Errorf("a start that failed keeps %d bytes", n)
			}
			set(false)
			h.start()
			h.wantRead(0, fill(1, 8))
		},
		"index loaded beside I/O": func(h *harness) {
			stopFilled(h, 200)
			h.start()
			set(true)
			h.wantRead(0, fill(1, 8))
			ticks(h, 100)
			if h.c.Loading().Percent == 100 {
				h.t.Error("loaded without memory: it is not asked for")
			}
			h.wantRead(8*BlockSize, fill(1, 192)) // what is not loaded comes from the backing device
			set(false)
			h.loaded()
			h.wantRead(0, fill(1, 200))
		},
		"writeback": func(h *harness) {
			h.write(0, fill(1, 8))
			set(true)
			if err := h.c.SetDrain(h.b.ID(), true); err != nil {
				h.t.Fatal(err)
			}
			ticks(h, 100)
			if n := h.b.Remaining(); n != 8 {
				h.t.Errorf("%d blocks remain: it is not asked for", n)
			}
			h.wantRead(0, fill(1, 8))
			set(false)
			h.drain()
		},
		"ordered writeback": func(h *harness) {
			tun := DefaultTunables()
			tun.Ordered, tun.SequentialCutoff = true, 0
			if err := h.c.SetTunables(h.b.ID(), tun); err != nil {
				h.t.Fatal(err)
			}
			h.until("the order", func() bool { return h.b.order.based.Load() })
			h.write(0, fill(1, 8))
			h.flush()
			set(true)
			if err := h.c.SetDrain(h.b.ID(), true); err != nil {
				h.t.Fatal(err)
			}
			ticks(h, 100)
			if n := h.b.Remaining(); n == 0 {
				h.t.Error("nothing remains: it is not asked for")
			}
			h.wantRead(0, fill(1, 8))
			set(false)
			h.drain()
		},
		"checkpoint": func(h *harness) {
			set(true)
			r := &Request{Op: ReqWrite, Len: BlockSize, Data: fill(1, 1), Backing: h.b.ID()}
			flush := &Request{Op: ReqFlush, Backing: h.b.ID()}
			waits := func(r *Request) bool {
				h.done = false
				h.l.Submit(r)
				for range 50 {
					if !h.done {
						h.step()
						h.tick()
					}
				}
				return !h.done
			}
			n := 0
			for ; n < 20_000 && !waits(r) && !waits(flush); n++ {
				if r.Err != nil || flush.Err != nil {
					h.t.Fatal(r.Err, flush.Err)
				}
			}
			if n == 20_000 {
				h.t.Fatal("the journal does not fill")
			}
			set(false)
			h.until("room in the journal", func() bool { return h.done })
			if r.Err != nil || flush.Err != nil {
				h.t.Error(r.Err, flush.Err)
			}
			h.wantRead(0, fill(1, 1))
		},
		"scrub": func(h *harness) {
			held := offHeapHeld.Load()
			set(true)
			_, err := h.l.bg.startScrub(h.b, ScrubOptions{})
			wantNone(h, err)
			if n := offHeapHeld.Load() - held; n != 0 {
				h.t.Errorf("a scrub that failed keeps %d bytes", n)
			}
			set(false)
			s, err := h.l.bg.startScrub(h.b, ScrubOptions{})
			if err != nil {
				h.t.Fatal(err)
			}
			h.until("the scrub", func() bool {
				select {
				case <-s.done:
					return true
				default:
					return false
				}
			})
		},
		"write zeroes": func(h *harness) {
			zeroMem.Lock()
			had := zeroMem.p
			zeroMem.p = nil
			zeroMem.Unlock()
			freeOffHeap(had)
			h.b.SetAbilities(false, false)
			if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
				h.t.Fatal(err)
			}
			h.write(0, fill(1, 8))
			set(true)
			wantNone(h, h.do(&Request{Op: ReqWriteZeroes, Len: 8 * BlockSize}))
			h.wantRead(0, fill(1, 8))
			set(false)
			if err := h.do(&Request{Op: ReqWriteZeroes, Len: 8 * BlockSize}); err != nil {
				h.t.Error(err)
			}
			h.wantRead(0, fill(0, 8))
		},
		"salvage": func(h *harness) {
			h.write(0, fill(1, 8))
			h.stop()
			held := offHeapHeld.Load()
			set(true)
			_, err := OpenSalvage(t.Context(), h.ssd, nil, nil)
			wantNone(h, err)
			if n := offHeapHeld.Load() - held; n != 0 {
				h.t.Errorf("a salvage that failed keeps %d bytes", n)
			}
			set(false)
			h.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer set(false)
			play(small(t))
		})
	}
}

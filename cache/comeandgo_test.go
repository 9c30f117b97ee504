package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestDevicesComeAndGo plays random histories of devices that are attached and detached, with crashes.
func TestDevicesComeAndGo(t *testing.T) {
	for seed := range uint64(40) {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { comeAndGo(t, seed) }) {
			return
		}
	}
}

const guestBlocks = 512

type guest struct {
	area  int64
	b     *Backing
	model [guestBlocks]byte
	uuid  UUID
	mode  Mode
}

func comeAndGo(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	dev := make(memStorage, 6<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10, NoChecksums: seed%4 == 0}); err != nil {
		t.Fatal(err)
	}
	const areas = 5
	h := &harness{t: t, ssd: dev, back: make(memStorage, (areas+1)*guestBlocks*BlockSize), now: 1, count: map[OpKind]int{}}
	h.opts = Options{Pending: make([]byte, PendingBytes), Discard: seed%3 == 0, Load: LoadOptions{Blocks: 1, Pages: 3}}
	h.open()
	log := []string{}
	defer func() {
		if t.Failed() {
			for _, s := range log[max(0, len(log)-40):] {
				t.Log(s)
			}
		}
		h.c.Abandon()
	}()
	say := func(f string, a ...any) { log = append(log, fmt.Sprintf(f, a...)) }
	var guests []*guest
	raw := [areas][guestBlocks]byte{}
	free := []int64{0, 1, 2, 3, 4}
	n := byte(0)
	attach := func() {
		if len(free) == 0 {
			return
		}
		i := r.IntN(len(free))
		a := free[i]
		free = append(free[:i], free[i+1:]...)
		tun := DefaultTunables()
		tun.SequentialCutoff, tun.WritebackDelay = 0, time.Hour
		tun.Ordered = r.IntN(3) == 0
		n++
		g := &guest{area: a, uuid: UUID{0xd, n, byte(len(log)), byte(len(log) >> 8)}, mode: Mode(r.IntN(5)), model: raw[a]}
		off := (a + 1) * guestBlocks * BlockSize // 0 would be in place
		b, err := h.c.Attach(AttachOptions{
			Name: fmt.Sprint("d", len(log), n), Mode: g.mode, LBS: 512, DataOff: off,
			Identity: Identity{Size: off + guestBlocks*BlockSize}, Tunables: tun, UUID: g.uuid,
		})
		if err != nil {
			t.Fatal(err)
		}
		b.SetAbilities(true, true)
		g.b = b
		guests = append(guests, g)
		say("attach %d as %d, %v, ordered %v", a, b.ID(), g.mode, tun.Ordered)
	}
	read := func(g *guest) {
		h.b = g.b
		at := r.IntN(guestBlocks - 8)
		got, err := h.read(int64(at)*BlockSize, 8*BlockSize)
		if err != nil {
			t.Fatalf("read of %d at %d: %v", g.area, at, err)
		}
		for i := range 8 {
			if got[i*BlockSize] != g.model[at+i] {
				t.Fatalf("area %d block %d has %d, want %d", g.area, at+i, got[i*BlockSize], g.model[at+i])
			}
		}
	}
	reopen := func() {
		h.ops = nil
		h.open()
		if s := h.c.Repaired(); s != "" {
			t.Fatalf("repaired: %s", s)
		}
		for _, g := range guests {
			found := false
			for _, b := range h.c.backings.Load() {
				if b != nil && b.uuid == g.uuid {
					g.b, found = b, true
					b.SetAbilities(true, true)
				}
			}
			if !found {
				t.Fatalf("device %d is gone", g.area)
			}
		}
		if len(h.c.Super().Backings) != len(guests) {
			t.Fatalf("%d devices, want %d", len(h.c.Super().Backings), len(guests))
		}
	}
	idle := func() { h.within(200*time.Millisecond, func() bool { return len(h.ops) == 0 }) }
	attach()
	for range 400 {
		if len(guests) == 0 {
			attach()
		}
		gi := r.IntN(len(guests))
		g := guests[gi]
		h.b = g.b
		switch k := r.IntN(100); {
		case k < 45:
			at, cnt := r.IntN(guestBlocks-16), 1+r.IntN(16)
			v := byte(r.IntN(255) + 1)
			say("write %d %d+%d %d", g.area, at, cnt, v)
			h.write(int64(at)*BlockSize, fill(v, cnt))
			for i := range cnt {
				g.model[at+i] = v
			}
		case k < 50:
			at, cnt := r.IntN(guestBlocks-16), 1+r.IntN(16)
			say("discard %d %d+%d", g.area, at, cnt)
			if err := h.do(&Request{Op: ReqDiscard, Off: int64(at) * BlockSize, Len: int64(cnt) * BlockSize}); err != nil {
				t.Fatal(err)
			}
			for i := range cnt {
				g.model[at+i] = 0
			}
		case k < 65:
			read(g)
		case k < 70:
			say("flush %d", g.area)
			h.flush()
		case k < 73:
			say("idle")
			idle()
		case k < 77:
			attach()
		case k < 79:
			m := Mode(r.IntN(5))
			say("mode %d %v", g.area, m)
			if err := h.c.SetMode(g.b.ID(), m); err != nil {
				t.Fatal(err)
			}
		case k < 83: // detach
			say("detach %d (%d)", g.area, g.b.ID())
			if err := h.c.BeginDetach(g.b.ID()); err != nil {
				t.Fatal(err)
			}
			if !h.within(2*time.Minute, func() bool { return g.b.Remaining() == 0 && len(h.ops) == 0 }) {
				t.Fatalf("the drain does not end: %d", g.b.Remaining())
			}
			if err := h.during(func(ctx context.Context) error { return h.c.FinishDetach(ctx, g.b.ID(), false) }); err != nil {
				t.Fatal(err)
			}
			for i := range guestBlocks {
				if p := h.back[((g.area+1)*guestBlocks+int64(i))*BlockSize]; p != g.model[i] {
					t.Fatalf("after the detach area %d block %d has %d, want %d", g.area, i, p, g.model[i])
				}
			}
			raw[g.area] = g.model
			free = append(free, g.area)
			guests = append(guests[:gi], guests[gi+1:]...)
		case k < 85: // by force
			say("force %d (%d)", g.area, g.b.ID())
			if err := h.c.BeginDetach(g.b.ID()); err != nil {
				t.Fatal(err)
			}
			if err := h.during(func(ctx context.Context) error { return h.c.FinishDetach(ctx, g.b.ID(), true) }); err != nil {
				t.Fatal(err)
			}
			h.within(time.Second, func() bool { return len(h.ops) == 0 })
			for i := range guestBlocks {
				raw[g.area][i] = h.back[((g.area+1)*guestBlocks+int64(i))*BlockSize]
			}
			free = append(free, g.area)
			guests = append(guests[:gi], guests[gi+1:]...)
		case k < 91:
			say("kill")
			h.c.Abandon()
			reopen()
		case k < 95:
			say("power")
			for _, g := range guests {
				h.b = g.b
				h.flush()
			}
			h.c.Abandon()
			clear(h.opts.Pending)
			reopen()
		case k < 97:
			say("restart")
			h.settle()
			h.c.closing.Store(true)
			h.l.Close()
			if err := h.c.Close(); err != nil {
				t.Fatal(err)
			}
			reopen()
		default:
			say("drain %d", g.area)
			h.drain()
		}
		if p := h.c.Verify(); len(p) > 0 && !h.c.loading.on.Load() {
			t.Fatalf("inconsistent: %v", p)
		}
	}
	for _, g := range guests {
		for range 40 {
			read(g)
		}
	}
}

package cache

import (
	"flag"
	"maps"
	"math/rand/v2"
	"syscall"
	"testing"

	"ubcache/attrs"
)

var (
	presenceSeed  = flag.Uint64("presence-seed", 1, "first seed of TestPresenceHistories")
	presenceSeeds = flag.Int("presence-seeds", 60, "how many")
)

const areaBlocks = 64

// values are the contents that a block may have, each a byte.
type values map[byte]bool

// presenceHistory plays requests, several at a time, while the backing device goes away and comes back, each
// time losing any part of what it was not flushed for.
type presenceHistory struct {
	*goneHarness
	rng       *rand.Rand
	durable   memStorage
	suspected bool
	legal     [areaBlocks]values // what a block may be read as
	since     [areaBlocks]values // and as what after a loss, if the SSD has no copy of its last write
	bare      [areaBlocks]bool   // that is so
	busy      [areaBlocks]bool
	changes   [areaBlocks]int // begun
	flying    map[*Request]presenceOp
	next      byte
	held      int // times that the device was away
}

type presenceOp struct {
	first, n int
	value    byte
	bare     bool
	covers   *[areaBlocks]values // of a flush: what it makes durable; nil for blocks that are being written
	changes  [areaBlocks]int     // of a flush: the count of changes then
}

func newPresenceHistory(t *testing.T, seed uint64) *presenceHistory {
	h := &presenceHistory{
		goneHarness: newGone(t), rng: rand.New(rand.NewPCG(seed, 3)), flying: map[*Request]presenceOp{},
	}
	h.durable = make(memStorage, len(h.back))
	for i := range areaBlocks {
		h.legal[i], h.since[i] = values{0: true}, values{0: true}
	}
	h.c.opts.Suspect = func(BackingID) { h.suspected = true }
	h.finish = h.ended
	return h
}

// complete ends an operation, any of those under way.
func (h *presenceHistory) complete() {
	if len(h.ops) > 0 {
		i := h.rng.IntN(len(h.ops))
		h.ops[0], h.ops[i] = h.ops[i], h.ops[0]
		op := h.ops[0]
		if h.fail = nil; op.Dev != SSD && h.gone {
			if op.Kind == OpWrite && h.rng.IntN(2) == 0 {
				copy(h.back[op.Off:], op.Mem) // it came to the device
			}
			h.fail = func(*Op) error { return syscall.EIO }
		}
		flush := op.Dev != SSD && op.Kind == OpFlush && h.fail == nil
		if flush {
			copy(h.durable, h.back)
		}
	}
	h.step()
}

// begin submits a request on blocks that no other has.
func (h *presenceHistory) begin() {
	r := &Request{Backing: h.b.ID()}
	if h.rng.IntN(8) == 0 {
		r.Op = ReqFlush
		p := presenceOp{covers: &[areaBlocks]values{}, changes: h.changes}
		for i := range areaBlocks {
			if !h.busy[i] {
				p.covers[i] = maps.Clone(h.legal[i])
			}
		}
		h.flying[r] = p
		h.l.Submit(r)
		return
	}
	p := presenceOp{first: h.rng.IntN(areaBlocks), n: 1 + h.rng.IntN(4)}
	p.n = min(p.n, areaBlocks-p.first)
	for i := p.first; i < p.first+p.n; i++ {
		if h.busy[i] {
			return
		}
	}
	r.Off, r.Len = int64(p.first)*BlockSize, int64(p.n)*BlockSize
	h.next++
	switch p.value = h.next; h.rng.IntN(10) {
	case 0, 1, 2, 3:
		r.Op, r.Data = ReqRead, make([]byte, r.Len)
	case 4, 5:
		r.Op, r.Data = ReqWrite, fill(p.value, p.n)
	case 6:
		asked(r, attrs.Writethrough)
		r.Op, r.Data = ReqWrite, fill(p.value, p.n)
	case 7, 8:
		asked(r, attrs.Writearound)
		r.Op, r.Data, p.bare = ReqWrite, fill(p.value, p.n), true
	default:
		r.Op, p.value, p.bare = ReqWriteZeroes, 0, true
	}
	for i := p.first; i < p.first+p.n; i++ {
		h.busy[i] = true
		if r.Op != ReqRead {
			h.since[i][p.value] = true
			h.changes[i]++
		}
	}
	h.flying[r] = p
	h.l.Submit(r)
}

// ended compares, and learns what the device may hold.
func (h *presenceHistory) ended(r *Request) {
	p := h.flying[r]
	delete(h.flying, r)
	if r.Op == ReqFlush {
		for i := range areaBlocks {
			if r.Err != nil || p.covers[i] == nil || h.changes[i] != p.changes[i] {
				continue
			}
			// Whatever was lost meanwhile, the flush has vouched for this.
			maps.DeleteFunc(h.legal[i], func(v byte, _ bool) bool { return !p.covers[i][v] })
			h.since[i], h.bare[i] = maps.Clone(h.legal[i]), false
		}
		return
	}
	for i := p.first; i < p.first+p.n; i++ {
		h.busy[i] = false
		switch {
		case r.Op == ReqRead && r.Err == nil:
			v := r.Data[(i-p.first)*BlockSize]
			if !h.legal[i][v] {
				h.t.Fatalf("block %d reads as %d, not one of %v", i, v, h.legal[i])
			}
			h.legal[i] = values{v: true}
		case r.Op == ReqRead:
		case r.Err != nil:
			h.legal[i][p.value] = true
			h.bare[i] = true
			for v := range h.legal[i] {
				h.since[i][v] = true
			}
		default:
			h.legal[i] = values{p.value: true}
			if h.bare[i] = p.bare; !p.bare {
				h.since[i] = values{p.value: true}
			}
		}
	}
}

// lose takes any of the sectors that were not flushed from the device.
func (h *presenceHistory) loseSome() {
	for off := 0; off < areaBlocks*BlockSize; off += BlockSize {
		if h.rng.IntN(2) == 0 {
			copy(h.back[off:off+BlockSize], h.durable[off:])
		}
	}
	copy(h.durable, h.back)
	for i := range areaBlocks {
		if h.bare[i] || h.busy[i] {
			for v := range h.since[i] {
				h.legal[i][v] = true
			}
		}
	}
}

// presence lets the device come and go.
func (h *presenceHistory) presence() {
	id := h.b.ID()
	switch now := h.b.Presence(); {
	case !h.gone && now == Present && h.suspected: // it was away for a moment
		h.suspected = false
		h.c.Alive(id, h.c.BeginProbe(id))
	case !h.gone:
		h.gone = h.rng.IntN(60) == 0
	case now == Present && h.suspected && h.rng.IntN(4) == 0:
		if h.suspected = false; h.rng.IntN(4) == 0 {
			h.gone = false
			h.c.Alive(id, h.c.BeginProbe(id))
			return
		}
		h.held++
		h.c.SetPresence(id, Holding)
	case now == Holding && h.rng.IntN(40) == 0:
		h.c.SetPresence(id, Failing)
	case now != Present && h.rng.IntN(60) == 0 && h.l.Quiet(id):
		h.gone = false
		h.loseSome()
		h.c.Lost(id)
		h.c.SetPresence(id, Present)
	}
}

func (h *presenceHistory) play(steps int) {
	for range steps {
		if h.rng.IntN(3) == 0 && len(h.flying) < 6 {
			h.begin()
		}
		h.presence()
		h.complete()
		if h.rng.IntN(4) == 0 {
			h.tick()
		}
	}
	// In the end all is there, and the backing device has everything.
	if h.b.Presence() != Present {
		for !h.l.Quiet(h.b.ID()) {
			h.complete()
		}
		h.loseSome()
		h.c.Lost(h.b.ID())
		h.c.SetPresence(h.b.ID(), Present)
	}
	h.gone, h.suspected, h.fail = false, false, nil
	h.c.Alive(h.b.ID(), h.c.BeginProbe(h.b.ID()))
	h.until("the end", func() bool { return len(h.flying) == 0 })
	h.finish = nil
	h.drain()
	for i := range areaBlocks {
		got, err := h.read(int64(i)*BlockSize, BlockSize)
		if err != nil || !h.legal[i][got[0]] {
			h.t.Fatalf("in the end block %d reads as %d (%v), not one of %v", i, got[0], err, h.legal[i])
		}
		if h.back[i*BlockSize] != got[0] {
			h.t.Fatalf("in the end the backing device has %d in block %d, the cache %d",
				h.back[i*BlockSize], i, got[0])
		}
	}
}

// TestPresenceHistories: what the SSD had is never lost, and nothing is read that was not written, whenever
// the backing device goes away and whatever it loses.
func TestPresenceHistories(t *testing.T) {
	away := 0
	for seed := *presenceSeed; seed < *presenceSeed+uint64(*presenceSeeds); seed++ {
		h := newPresenceHistory(t, seed)
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("replay with -presence-seed %d -presence-seeds 1", seed)
				}
			}()
			h.play(1500)
		}()
		away += h.held
	}
	if away < *presenceSeeds {
		t.Errorf("the device was away %d times in %d histories", away, *presenceSeeds)
	}
	t.Logf("the device was away %d times in %d histories", away, *presenceSeeds)
}

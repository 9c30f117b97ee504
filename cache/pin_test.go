package cache

import (
	"bytes"
	"syscall"
	"testing"

	"ubcache/attrs"
)

// pressed is a harness whose backing device is larger than its cache of about 1000 blocks, and
// holds in every block its number.
func pressed(t *testing.T) *harness { return pressedBy(t, 6<<20) }

func pressedBy(t *testing.T, ssdBytes int) *harness {
	const blocks = 4096
	dev := make(memStorage, ssdBytes)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, blocks*BlockSize)
	for i := range blocks {
		copy(h.back[i*BlockSize:], numbered(Block(i)))
	}
	t.Cleanup(func() {
		if n := h.c.journal.mu.reserved; n != 0 && len(h.ops) == 0 && !h.l.bg.evict.move.busy {
			t.Errorf("room for %d records is promised, and nothing is under way", n)
		}
		if p := h.c.Verify(); len(p) > 0 {
			t.Errorf("the index is inconsistent: %v", p)
		}
		h.c.Abandon()
	})
	return h
}

func numbered(b Block) []byte {
	return bytes.Repeat([]byte{byte(b), byte(b >> 8), 0x5a, byte(b * 7)}, BlockSize/4)
}

// flood reads blocks from first on, four at a time, so that eviction has to make room.
func (h *harness) flood(first, n Block) {
	h.t.Helper()
	for b := first; b < first+n; b += 4 {
		h.wantRead(int64(b)*BlockSize, h.back[b*BlockSize:][:4*BlockSize])
		h.tick()
		for len(h.ops) > 0 {
			h.step()
		}
	}
}

func (h *harness) setTunables(change func(*Tunables)) {
	h.t.Helper()
	r, err := h.c.record(h.b.ID())
	if err != nil {
		h.t.Fatal(err)
	}
	tun := r.Tunables
	change(&tun)
	if err := h.c.SetTunables(h.b.ID(), tun); err != nil {
		h.t.Fatal(err)
	}
}

// Pinned blocks, scattered among others, stay while several times the cache is read, and are
// served from the SSD.
func TestPinsOutliveEviction(t *testing.T) {
	h := pressed(t)
	h.flood(0, 320)
	for b := Block(0); b < 320; b += 5 {
		want(t, "pin", h.hint(ReqRead, b, 1, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	}
	h.flood(512, 3584)
	h.flood(512, 3584)
	for b := Block(0); b < 320; b += 5 {
		if r := h.resident(b, 1); r.Pinned != 1 {
			t.Fatalf("block %d: %+v", b, r)
		}
		r := request(t, ReqRead, b, 1, "hint=bypass")
		if err := h.do(r); err != nil || r.Results.Origin != attrs.OriginSSD {
			t.Errorf("block %d comes from %v, %v", b, r.Results.Origin, err)
		}
		if !bytes.Equal(r.Data, numbered(b)) {
			t.Errorf("block %d has other data after it was moved", b)
		}
	}
	if r := h.resident(0, 320); r.Cached != r.Pinned {
		t.Errorf("eviction left others, too: %+v", r)
	}
	if s := h.c.Stats(); s.MovedBlocks == 0 || s.EvictedBlocks < 4000 {
		t.Errorf("%d blocks were moved, %d evicted", s.MovedBlocks, s.EvictedBlocks)
	}
	if got := h.c.Status().Backings[0].PinnedBytes; got != 64*BlockSize {
		t.Errorf("%d bytes are pinned", got)
	}
}

// A pin that was ended does not keep the block.
func TestUnpin(t *testing.T) {
	h := pressed(t)
	want(t, "pin", h.hint(ReqRead, 0, 8, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	want(t, "unpin", h.hint(ReqRead, 0, 4, "hint=unpin"), attrs.Handled, attrs.ReasonNone)
	want(t, "unpin again", h.hint(ReqRead, 0, 4, "hint=unpin"), attrs.Ignored, attrs.ReasonNotCached)
	if r := h.resident(0, 8); r.Pinned != 4 || r.Cached != 8 {
		t.Fatalf("%+v", r)
	}
	h.l.closeBucket(streamPinned) // an open one is not evicted
	h.flood(512, 3584)
	if r := h.resident(0, 8); r.Pinned != 4 || r.Cached != 4 {
		t.Errorf("after eviction %+v", r)
	}
}

func TestPinQuota(t *testing.T) {
	h := pressed(t)
	h.setTunables(func(t *Tunables) { t.PinQuota = 1 })
	quota := h.c.geo.slots() / 100 // a little above 10
	want(t, "too many", h.hint(ReqRead, 0, int(quota)+1, "hint=pin"), attrs.Ignored, attrs.ReasonQuota)
	if r := h.resident(0, 16); r.Pinned != 0 {
		t.Errorf("pinned all the same: %+v", r)
	}
	want(t, "all", h.hint(ReqRead, 0, int(quota), "hint=pin"), attrs.Handled, attrs.ReasonNone)
	want(t, "the same", h.hint(ReqRead, 0, int(quota), "hint=pin"), attrs.Handled, attrs.ReasonNone)
	want(t, "one more", h.hint(ReqWrite, 100, 1, "hint=pin"), attrs.Ignored, attrs.ReasonQuota)
	want(t, "one less", h.hint(ReqRead, 0, 1, "hint=unpin"), attrs.Handled, attrs.ReasonNone)
	want(t, "another", h.hint(ReqWrite, 100, 1, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	if got := h.b.pinned.Load(); got != quota {
		t.Errorf("%d blocks are pinned, quota %d", got, quota)
	}
	set, _ := attrs.ParseSet("hint=pin,required:hint")
	err := h.do(&Request{Op: ReqWrite, Off: 0, Len: BlockSize, Data: fill(1, 1), Attrs: &set})
	if err == nil {
		t.Error("a required pin beyond the quota is no error")
	}
	h.wantRead(0, numbered(0))
}

// Pins that were promised while there was room for one of them only: the quota holds.
func TestPinQuotaOfParallelRequests(t *testing.T) {
	h := pressed(t)
	h.flood(0, 32)
	h.setTunables(func(t *Tunables) { t.PinQuota = 1 })
	h.settle()
	n := 0
	for ; h.c.journal.reserve(8); n++ {
		continue
	}
	rs := []*Request{request(t, ReqRead, 0, 8, "hint=pin"), request(t, ReqRead, 8, 8, "hint=pin")}
	h.done = false
	for _, r := range rs {
		r.Backing = h.b.ID()
		h.l.Submit(r)
	}
	for range 20 {
		h.step()
	}
	if h.done || h.b.pinned.Load() != 0 {
		t.Fatal("they did not wait")
	}
	left := len(rs)
	h.finish = func(*Request) { left-- }
	h.c.journal.unreserve(8 * n)
	h.until("the answers", func() bool { return left == 0 })
	if quota := h.c.geo.slots() / 100; h.b.pinned.Load() > quota {
		t.Errorf("%d blocks are pinned, quota %d", h.b.pinned.Load(), quota)
	}
	want(t, "the first", rs[0].Results.For(attrs.IDHint), attrs.Handled, attrs.ReasonNone)
	want(t, "the second", rs[1].Results.For(attrs.IDHint), attrs.Ignored, attrs.ReasonQuota)
}

// A block of a bucket that eviction has chosen cannot be pinned any more.
func TestPinOfAChosenBucket(t *testing.T) {
	h := pressed(t)
	h.flood(0, 4)
	at := h.c.bucketOf(Slot((h.slotOf(0) - h.c.geo.DataOff) / BlockSize))
	h.c.buckets[at].emptying.Store(true)
	want(t, "chosen", h.hint(ReqRead, 0, 4, "hint=pin"), attrs.Ignored, attrs.ReasonNotCached)
	if h.b.pinned.Load() != 0 || h.c.buckets[at].pinned.Load() != 0 {
		t.Error("it is pinned")
	}
	h.c.buckets[at].emptying.Store(false)
	want(t, "spared", h.hint(ReqRead, 0, 4, "hint=pin"), attrs.Handled, attrs.ReasonNone)
}

// With as many pins as there may be, in every bucket some, the cache goes on: reads enter it, writes
// are cached, and no pin is lost.
func TestEvictionBesideManyPins(t *testing.T) {
	h := pressed(t)
	h.setTunables(func(t *Tunables) { t.PinQuota = 50 })
	most := Block(h.c.maxPins())
	for first := Block(0); first < 2*most; first += 16 {
		h.flood(first, 16)
		for b := first; b < first+16; b += 2 {
			h.hint(ReqRead, b, 1, "hint=pin")
		}
	}
	pinned := h.b.pinned.Load()
	if pinned < int64(most)*9/10 {
		t.Fatalf("%d blocks are pinned, want nearly %d", pinned, most)
	}
	before := h.stats()
	h.flood(2048, 2048)
	filled := h.stats().FillBlocks - before.FillBlocks
	if filled < 1500 {
		t.Errorf("of 2048 blocks %d were cached", filled)
	}
	for b := Block(2048); b < 3000; b += 8 {
		h.write(int64(b)*BlockSize, fill(byte(b), 8))
		h.tick()
	}
	h.drain()
	h.flood(3000, 1000)
	if now := h.b.pinned.Load(); now != pinned {
		t.Errorf("%d blocks are pinned, were %d", now, pinned)
	}
}

// Should there be no free bucket to move pinned blocks to, and nothing else to evict, pins go.
func TestPinsNeverStopTheCache(t *testing.T) {
	h := pressed(t)
	h.setTunables(func(t *Tunables) { t.PinQuota = 50 })
	for first := Block(0); h.c.alloc.freeCount.Load() > 4; first += 16 {
		for b := first; b < first+16; b += 4 {
			h.hint(ReqRead, b, 4, "hint=cache")
			h.hint(ReqRead, b, 1, "hint=pin")
		}
	}
	h.l.closeBucket(streamPinned)
	h.c.alloc.mu.free = nil // others have taken them
	h.c.alloc.freeCount.Store(0)
	h.until("a free bucket", func() bool { return h.c.alloc.freeCount.Load() > 0 })
	h.flood(2048, 512)
	if h.b.pinned.Load() == 0 {
		t.Error("all pins are gone")
	}
}

// Pins are there again after an orderly stop, and after a crash if a flush came before it.
func TestPinsOutliveRestarts(t *testing.T) {
	h := pressed(t)
	h.flush() // what an earlier process may have left unflushed
	h.hint(ReqRead, 0, 8, "hint=pin")
	h.hint(ReqWrite, 8, 8, "hint=pin")
	h.hint(ReqRead, 0, 2, "hint=unpin")
	h.flush()
	reopen := func(what string) {
		t.Helper()
		h.c.Abandon()
		h.ops = nil
		h.open()
		h.b = h.c.backing(h.b.ID())
		h.b.SetAbilities(true, true)
		if r := h.resident(0, 16); r.Pinned != 14 || r.Dirty != 8 || r.Cached != 16 {
			t.Fatalf("%s: %+v", what, r)
		}
	}
	reopen("after a crash")
	h.settle()
	reopen("after settling")
	h.drain()
	h.settle()
	h.flood(512, 3584)
	if r := h.resident(0, 16); r.Pinned != 14 {
		t.Errorf("after eviction: %+v", r)
	}
}

// A write takes the pin along in every mode that leaves a copy, also where it covers a block in
// part; the data is right before and after the block was evicted and moved.
func TestWritesKeepPins(t *testing.T) {
	for _, mode := range []Mode{Writeback, Writethrough, Writearound, Writeonly} {
		for _, c := range []struct {
			name   string
			off, n int64 // bytes
			dirty  bool
		}{
			{"whole blocks", 0, 4 * BlockSize, false},
			{"a part", 512, 1024, false},
			{"parts at both ends", 1024, 2 * BlockSize, false},
			{"past pinned ones", 3 * BlockSize, 4 * BlockSize, false},
			{"whole dirty blocks", 0, 4 * BlockSize, true},
			{"a part of a dirty block", 512, 1024, true},
		} {
			t.Run(mode.String()+"/"+c.name, func(t *testing.T) {
				h := pressed(t)
				h.flush() // else what is filled begins as dirty
				h.hint(ReqRead, 0, 4, "hint=pin")
				if c.dirty {
					h.write(0, h.back[:4*BlockSize])
				}
				h.b.mode.Store(uint32(mode))
				h.b.cutoff.Store(512) // nothing is admitted but for the pins
				expect := bytes.Clone(h.back[:8*BlockSize])
				data := bytes.Repeat([]byte{0xee}, int(c.n))
				copy(expect[c.off:], data)
				for range 2 {
					h.write(c.off, data)
					if r := h.resident(0, 4); r.Pinned != 4 {
						t.Fatalf("%+v", r)
					}
					h.wantRead(0, expect)
				}
				h.drain()
				h.b.mode.Store(uint32(Writeback))
				h.b.cutoff.Store(0)
				h.flood(512, 3584)
				if r := h.resident(0, 4); r.Pinned != 4 {
					t.Errorf("after eviction %+v", r)
				}
				h.wantRead(0, expect)
				if !bytes.Equal(h.back[:8*BlockSize], expect) {
					t.Error("the backing device has other data")
				}
			})
		}
	}
}

// Requests that would take a pinned block out of the cache are told so.
func TestPinsOverrule(t *testing.T) {
	h := pressed(t)
	h.hint(ReqRead, 0, 4, "hint=pin")
	for _, text := range []string{"hint=bypass", "hint=evict", "hint=once"} {
		want(t, text, h.hint(ReqWrite, 0, 4, text), attrs.Ignored, attrs.ReasonOverruled)
	}
	want(t, "evicting read", h.hint(ReqRead, 0, 4, "hint=evict"), attrs.Ignored, attrs.ReasonOverruled)
	want(t, "another's eviction", h.hint(ReqRead, 4, 4, "hint=evict"), attrs.Handled, attrs.ReasonNone)
	res, err := h.ask(ReqWrite, "mode=writearound")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "writearound", res.For(attrs.IDMode), attrs.Ignored, attrs.ReasonOverruled)
	if r := h.resident(0, 4); r.Pinned != 4 {
		t.Errorf("%+v", r)
	}
}

func TestDiscardDropsPins(t *testing.T) {
	for _, able := range []bool{true, false} {
		for _, op := range []ReqOp{ReqDiscard, ReqWriteZeroes} {
			h := pressed(t)
			h.b.SetAbilities(able, able)
			h.hint(ReqRead, 0, 4, "hint=pin")
			h.hint(ReqWrite, 4, 4, "hint=pin")
			if err := h.do(&Request{Op: op, Len: 6 * BlockSize}); err != nil {
				t.Fatal(err)
			}
			if r := h.resident(0, 8); r.Pinned != 2 || h.b.pinned.Load() != 2 {
				t.Errorf("%v, able %v: %+v", op, able, r)
			}
		}
	}
}

// A pinned block whose copy the SSD damages is dropped when it is to be moved, and heals.
func TestMoveOfADamagedBlock(t *testing.T) {
	h := pressed(t)
	h.flood(0, 64)
	h.hint(ReqRead, 8, 2, "hint=pin")
	h.ssd[h.slotOf(8)+7] ^= 0xff
	h.flood(512, 3584)
	if r := h.resident(8, 2); r.Pinned != 1 || h.stats().HealedBlocks != 1 {
		t.Errorf("%+v, healed %d", r, h.stats().HealedBlocks)
	}
	h.wantRead(8*BlockSize, append(numbered(8), numbered(9)...))
}

// A write, or its failure, during a move: the newest data counts.
func TestWriteDuringAMove(t *testing.T) {
	for _, mode := range []Mode{Writeback, Writethrough} {
		h := pressed(t)
		h.flood(0, 64)
		h.hint(ReqRead, 8, 2, "hint=pin")
		h.b.mode.Store(uint32(mode))
		wrote := false
		h.fail = func(*Op) error {
			if m := &h.l.bg.evict.move; m.busy && m.step == moveWrite && !wrote {
				wrote = true
				h.l.Submit(&Request{
					Backing: h.b.ID(), Op: ReqWrite, Off: 8 * BlockSize, Len: BlockSize, Data: fill(0xdd, 1),
				})
			}
			return nil
		}
		h.flood(512, 1024)
		h.fail = nil
		if !wrote {
			t.Fatal("nothing was moved")
		}
		if r := h.resident(8, 2); r.Pinned != 2 {
			t.Errorf("%v: %+v", mode, r)
		}
		h.wantRead(8*BlockSize, append(fill(0xdd, 1), numbered(9)...))
	}
}

// Errors of the SSD during moves lose nothing.
func TestMoveBesideSSDErrors(t *testing.T) {
	h := pressed(t)
	h.flood(0, 64)
	h.hint(ReqRead, 8, 8, "hint=pin")
	failed := 0
	h.fail = func(op *Op) error {
		m := &h.l.bg.evict.move
		if m.busy && m.step == moveWrite && op.Dev == SSD && op.Kind == OpWrite && !op.FUA && failed < 3 {
			failed++
			return errMedium
		}
		return nil
	}
	h.flood(512, 3584)
	h.fail = nil
	if failed != 3 {
		t.Fatalf("%d writes failed", failed)
	}
	if r := h.resident(8, 8); r.Pinned != 8 {
		t.Errorf("%+v", r)
	}
	h.flood(0, 16)
}

// Buckets full of pinned blocks are passed over, not moved about.
func TestFullBucketsAreNotMoved(t *testing.T) {
	h := pressed(t)
	h.flush()
	want(t, "pin", h.hint(ReqRead, 0, 64, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	h.flood(512, 3584)
	if s := h.c.Stats(); s.MovedBlocks != 0 || h.b.pinned.Load() != 64 {
		t.Errorf("%d blocks were moved, %d are pinned", s.MovedBlocks, h.b.pinned.Load())
	}
}

// A copy is dropped if the block is elsewhere by the time it is written, clean again or not.
func TestMoveOfABlockThatIsElsewhere(t *testing.T) {
	h := pressed(t)
	h.flush()
	h.hint(ReqRead, 0, 1, "hint=pin")
	m := &h.l.bg.evict.move
	k := makeKey(h.b.id, 0)
	e, _ := h.c.index.find(k)
	to, _ := h.l.alloc(streamPinned, 1)
	defer h.l.dropRuns([]slotRun{{to, 1}})
	m.keys = []dirtyKey{{k, e.slot + 7}}
	if m.insertOne(h.c, 0, to) {
		t.Error("a copy of what the block had before replaces what it has")
	}
	h.wantRead(0, numbered(0))
}

// The first block of the device is pinned, and a write past the SSD changes a part of it.
func TestPartialWriteToTheFirstBlock(t *testing.T) {
	h := pressed(t)
	h.flush() // else what is filled begins as dirty
	want(t, "pin", h.hint(ReqRead, 0, 1, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	page := numbered(7)
	r := &Request{Backing: h.b.ID(), Op: ReqWrite, Len: 3 * SectorSize, Data: page[:3*SectorSize]}
	if err := h.do(r); err != nil {
		t.Fatal(err)
	}
	h.wantRead(0, append(page[:3*SectorSize:3*SectorSize], numbered(0)[3*SectorSize:]...))
	if n := h.resident(0, 1); n.Pinned != 1 {
		t.Errorf("%+v after a write, want the block pinned", n)
	}
}

// The quota is kept in the superblock; one from before there were pins has the default.
func TestPinQuotaIsKept(t *testing.T) {
	h := pressed(t)
	for _, quota := range []int{0, 7, 50} {
		h.setTunables(func(t *Tunables) { t.PinQuota = quota })
		sb, err := ReadSuper(h.ssd)
		if err != nil || sb.Backings[0].Tunables.PinQuota != quota {
			t.Errorf("%+v, %v; want a quota of %d", sb.Backings[0].Tunables, err, quota)
		}
	}
	p := make([]byte, backingRecBytes)
	(&BackingRecord{ID: 1, LBS: 512, Size: 512}).encode(p)
	p[bakPins] = 0
	if r, ok := decodeBacking(p); !ok || r.Tunables.PinQuota != defaultPinQuota {
		t.Errorf("%+v", r.Tunables)
	}
	for _, quota := range []int{-1, 51} {
		tun := DefaultTunables()
		tun.PinQuota = quota
		if tun.Validate() == nil {
			t.Errorf("a quota of %d is taken", quota)
		}
	}
}

// A pin is for all blocks or for none: quota that others have taken since it was promised.
func TestPinIsForAllOrNone(t *testing.T) {
	h := pressed(t)
	h.setTunables(func(t *Tunables) { t.PinQuota = 1 })
	rs := []*Request{request(t, ReqRead, 0, 8, "hint=pin"), request(t, ReqRead, 8, 8, "hint=pin")}
	left := len(rs)
	h.finish = func(*Request) { left-- }
	for _, r := range rs {
		r.Backing = h.b.ID()
		h.l.Submit(r)
	}
	h.until("the answers", func() bool { return left == 0 })
	if got := h.b.pinned.Load(); got != 8 {
		t.Errorf("%d blocks are pinned, want 8", got)
	}
}

// Half of the cache is the limit for all devices together.
func TestPinsOfAllDevices(t *testing.T) {
	h := pressed(t)
	h.setTunables(func(t *Tunables) { t.PinQuota = 50 })
	h.c.pins.all.Add(h.c.maxPins() - 3) // another device's
	want(t, "four", h.hint(ReqRead, 0, 4, "hint=pin"), attrs.Ignored, attrs.ReasonQuota)
	want(t, "three", h.hint(ReqRead, 0, 3, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	h.c.pins.all.Add(3 - h.c.maxPins())
}

// Pins outlive writes that find no room for dirty data, too.
func TestPinsOutliveWritesToAFullCache(t *testing.T) {
	h := pressed(t)
	h.flush()
	h.hint(ReqRead, 0, 4, "hint=pin")
	h.b.dirtyMax.Store(0)
	h.write(0, fill(1, 4))
	if r := h.resident(0, 4); r.Pinned != 4 {
		t.Errorf("%+v", r)
	}
	h.wantRead(0, fill(1, 4))
}

// Pins are not given up while writeback could make room.
func TestLastResortIsTheLast(t *testing.T) {
	h := pressed(t)
	h.flush()
	h.flood(0, 64)
	h.hint(ReqRead, 8, 1, "hint=pin")
	v := &h.l.bg.evict
	v.stuck = h.c.bucketOf(Slot((h.slotOf(8) - h.c.geo.DataOff) / BlockSize))
	if v.lastResort(1) != noBucket {
		t.Error("a bucket goes though another is dirty")
	}
	v.trims++
	if v.lastResort(0) != noBucket {
		t.Error("a bucket goes though another is being discarded")
	}
	v.trims--
	at := v.lastResort(0)
	if at != v.stuck {
		t.Fatal("no bucket goes")
	}
	v.spare(at)
}

// lastBucket is a cache of which the SSD has failed all buckets but one. In that are 8 pinned blocks and 8 others, for
// which the backing device has not been flushed yet.
func lastBucket(t *testing.T) *harness {
	h := pressed(t)
	last := BucketID(h.c.geo.Buckets - 1)
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpWrite && op.Off >= h.c.geo.DataOff &&
			h.c.bucketOf(Slot((op.Off-h.c.geo.DataOff)/BlockSize)) != last {
			return syscall.ENOSPC
		}
		return nil
	}
	for i := 0; h.c.alloc.freeCount.Load() > 1; i++ {
		if i > int(last) {
			t.Fatal("failed buckets are used again")
		}
		h.write(1000*BlockSize, fill(1, 1))
	}
	h.until("the end of what has failed", func() bool { return len(h.ops) == 0 && h.c.buckets[last-1].state == bucketRetired })
	h.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	want(t, "pin", h.hint(ReqWrite, 0, 8, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	h.write(64*BlockSize, fill(2, 8))
	if r := h.resident(0, 72); r.Pinned != 8 || r.Dirty != 16 || h.c.buckets[last].state != bucketClosed {
		t.Fatalf("%+v", r)
	}
	return h
}

// Eviction may have nothing left but pinned blocks and no place to move them to. It gives them up so that the cache
// can go on, and counts them.
func TestPinsGivenUp(t *testing.T) {
	h := lastBucket(t)
	h.stuck = nil
	h.until("the last resort", func() bool { return h.c.alloc.freeCount.Load() == 1 })
	if n, r := h.c.Stats().PinsGivenUp, h.resident(0, 8); n != 8 || r.Cached != 0 {
		t.Errorf("%d pins were given up, %+v", n, r)
	}
	want(t, "another pin", h.hint(ReqWrite, 0, 8, "hint=pin"), attrs.Handled, attrs.ReasonNone)
}

// A cache that stops gives no pin up for room that nobody will ask for: the next start tries the failed buckets again.
func TestStopGivesNoPinUp(t *testing.T) {
	h := lastBucket(t)
	h.stuck = nil
	h.settle()
	if n, r := h.c.Stats().PinsGivenUp, h.resident(0, 8); n != 0 || r.Pinned != 8 || r.Dirty != 0 {
		t.Errorf("%d pins were given up by the stop, %+v", n, r)
	}
	h.c.closing.Store(true)
	if err := h.c.Close(); err != nil {
		t.Fatal(err)
	}
	h.fail = nil
	h.open()
	if r := h.resident(0, 8); r.Pinned != 8 {
		t.Errorf("after the next start: %+v", r)
	}
}

// TestPinOfAFailedCopy: a copy that the SSD fails has lost its pin, also while it stays on record because the
// backing device has not been flushed. Whoever reads it and asks for a pin is not told that it has one.
func TestPinOfAFailedCopy(t *testing.T) {
	h := small(t)
	if err := h.c.SetMode(h.b.ID(), Writethrough); err != nil {
		t.Fatal(err)
	}
	if a := h.hint(ReqWrite, 0, 1, "hint=pin"); a.Status != attrs.Handled || h.b.pinned.Load() != 1 {
		t.Fatalf("%v, %d blocks pinned", a, h.b.pinned.Load())
	}
	h.ssd[h.slotOf(0)] ^= 1
	for range 2 {
		if a := h.hint(ReqRead, 0, 1, "hint=pin"); a.Status == attrs.Handled {
			t.Errorf("a copy that the SSD has failed is said to be pinned: %v", a)
		}
		if n := h.b.pinned.Load(); n != 0 {
			t.Errorf("%d blocks are pinned", n)
		}
	}
	h.until("the flush", func() bool { return h.slotOf(0) < 0 })
	if a := h.hint(ReqRead, 0, 1, "hint=pin"); a.Status != attrs.Handled || h.b.pinned.Load() != 1 {
		t.Errorf("read anew: %v, %d blocks pinned", a, h.b.pinned.Load())
	}
}

// TestPinOfABlockThatWritebackSaves: a pinned dirty block that the SSD loses while writeback has it in hand loses its
// pin, too: it goes with the next flush, and nobody is told that it stays.
func TestPinOfABlockThatWritebackSaves(t *testing.T) {
	h := small(t)
	want(t, "pin", h.hint(ReqWrite, 0, 1, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	h.loseWhileWritten()
	h.until("the writeback", func() bool { return h.b.bad.Load() == 0 })
	if h.slotOf(0) == -1 {
		t.Fatal("the block was dropped before the backing device was flushed")
	}
	want(t, "pin again", h.hint(ReqRead, 0, 1, "hint=pin"), attrs.Ignored, attrs.ReasonNotCached)
	h.drain()
	if r := h.resident(0, 1); r.Cached != 0 {
		t.Errorf("after the flush %+v", r)
	}
	want(t, "pin of a new copy", h.hint(ReqRead, 0, 1, "hint=pin"), attrs.Handled, attrs.ReasonNone)
	if r := h.resident(0, 1); r.Pinned != 1 {
		t.Errorf("the new copy: %+v", r)
	}
}

package cache

import (
	"bytes"
	"errors"
	"testing"

	"ubcache/attrs"
)

var algorithms = []attrs.Algorithm{attrs.XXH64, attrs.CRC32C, attrs.CRC64NVMe}

// unchecked is a harness on a cache that keeps no checksums of its own, so that only those of the
// client find what is wrong on the SSD.
func unchecked(t *testing.T) *harness {
	return smallWith(t, FormatOptions{BucketBytes: 64 << 10, NoChecksums: true})
}

// summed plays a request with checksums: expect is what the client takes for the data, nil for
// nothing to verify. What Driver.Finish gets is copied, for the checksums are good until then only.
func (h *harness) summed(op ReqOp, off int64, data []byte, c attrs.Checksum, expect []byte) (*attrs.Results, error) {
	h.t.Helper()
	var set attrs.Set
	if expect != nil {
		c.Sums = c.Algorithm.AppendSums(nil, expect)
	}
	set.SetChecksum(c)
	res := &attrs.Results{}
	var sums []byte
	h.finish = func(r *Request) {
		_, s := r.Results.Checksums()
		sums = bytes.Clone(s)
	}
	err := h.do(&Request{
		Op: op, Off: off, Len: int64(len(data)), Data: data, Attrs: &set, Results: res,
	})
	h.finish = nil
	if a := res.For(attrs.IDChecksum); a.Status == attrs.Handled && err == nil {
		var want []byte
		if c.Return {
			want = c.Algorithm.AppendSums(nil, data)
		}
		if !bytes.Equal(sums, want) {
			h.t.Errorf("checksums %x, want %x", sums, want)
		}
	}
	return res, err
}

func blocks(first, n int) (p []byte) {
	for i := range n {
		p = append(p, fill(byte(first+i), 1)...)
	}
	return p
}

// A write is compared before it has any effect, whichever way it would go.
func TestWriteMismatchHasNoEffect(t *testing.T) {
	for _, mode := range []Mode{Writeback, Writethrough, Writearound, None} {
		for _, a := range algorithms {
			h := small(t)
			h.b.mode.Store(uint32(mode))
			h.write(0, blocks(1, 4))
			expect := blocks(20, 4)
			expect[2*BlockSize+5] ^= 1
			ops := 0
			h.fail = func(*Op) error { ops++; return nil }
			before := h.stats()
			res, err := h.summed(ReqWrite, 0, blocks(20, 4), attrs.Checksum{Algorithm: a}, expect)
			h.fail = nil
			if !errors.Is(err, attrs.ErrnoMismatch) {
				t.Errorf("%v, %v: %v", mode, a, err)
			}
			if b, bad := res.Mismatch(); !bad || b != 2 {
				t.Errorf("%v, %v: block %d, %t", mode, a, b, bad)
			}
			if ops != 0 || h.stats() != before || res.Origin != attrs.OriginNone {
				t.Errorf("%v, %v: %d operations, origin %v", mode, a, ops, res.Origin)
			}
			h.wantRead(0, blocks(1, 4))
		}
	}
}

func TestChecksumsOfGoodData(t *testing.T) {
	const off = regionBytes - 3*BlockSize // two pieces
	data := blocks(1, 8)
	for _, a := range algorithms {
		for _, c := range []attrs.Checksum{{Algorithm: a}, {Algorithm: a, Return: true}} {
			expect := data
			for range 2 {
				if expect == nil && !c.Return {
					continue
				}
				h := small(t)
				if res, err := h.summed(ReqWrite, off, bytes.Clone(data), c, expect); err != nil ||
					res.For(attrs.IDChecksum).Status != attrs.Handled {
					t.Errorf("write, %v: %v, %v", c, res.For(attrs.IDChecksum), err)
				}
				h.drain()
				h.wantRead(off, data)
				// From the SSD, both, and the backing device.
				for _, from := range []attrs.Origin{attrs.OriginSSD, attrs.OriginMixed, attrs.OriginBacking} {
					switch from {
					case attrs.OriginMixed:
						h.drop(Block(off/BlockSize) + 1)
					case attrs.OriginBacking:
						for i := range 8 {
							h.drop(Block(off/BlockSize + i))
						}
					}
					got := make([]byte, len(data))
					res, err := h.summed(ReqRead, off, got, c, expect)
					if err != nil || !bytes.Equal(got, data) || res.Origin != from ||
						res.For(attrs.IDChecksum).Status != attrs.Handled {
						t.Errorf("read from %v, %v: %v, %v", from, c, res, err)
					}
				}
				expect = nil
			}
		}
	}
}

// drop takes a clean block out of the cache.
func (h *harness) drop(blk Block) {
	h.t.Helper()
	k := makeKey(h.b.id, blk)
	if e, ok := h.c.index.find(k); !ok || e.st&stDirty != 0 {
		h.t.Fatalf("block %d is not cached and clean", blk)
	} else {
		h.l.dropClean(h.b, k, e.slot, uint8(e.st&stMask))
	}
}

// Wrong data of the SSD is found by the client's checksum, and the backing device's is given out.
func TestReadMismatchIsRetried(t *testing.T) {
	for _, partly := range []bool{false, true} {
		h := unchecked(t)
		data := blocks(1, 6)
		h.write(0, data)
		h.drain()
		bad := Block(4)
		if partly { // the block needs an edge
			bad = 5
			h.drop(bad)
			h.write(6*BlockSize-512, data[6*BlockSize-512:])
			h.drain()
			h.wantNotFull(bad)
		}
		h.ssd[h.slotOf(bad)+BlockSize-8] ^= 0xff
		before := h.stats().HealedBlocks
		got := make([]byte, len(data))
		res, err := h.summed(ReqRead, 0, got, attrs.Checksum{Algorithm: attrs.CRC32C, Return: true}, data)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%v, %v", res, err)
		}
		if res.Origin != attrs.OriginMixed || h.stats().HealedBlocks != before+1 {
			t.Errorf("origin %v, %d healed", res.Origin, h.stats().HealedBlocks-before)
		}
		if h.slotOf(bad) >= 0 {
			t.Error("the bad copy is cached still")
		}
		h.wantRead(0, data)
	}
}

// TestMismatchOfAnOlderCopy: a read that gets what was overwritten meanwhile says nothing about the new copy.
func TestMismatchOfAnOlderCopy(t *testing.T) {
	for _, partly := range []bool{false, true} {
		h := unchecked(t)
		h.write(0, fill(1, 1))
		h.drain()
		if partly { // the block needs an edge
			h.drop(0)
			h.write(512, fill(1, 1)[:512])
			h.drain()
			h.wantNotFull(0)
		}
		before := h.stats().HealedBlocks
		// The read takes so long that a write overtakes it, and is written back.
		r := request(t, ReqRead, 0, 1, "")
		r.Attrs.SetChecksum(attrs.Checksum{
			Algorithm: attrs.XXH64, Sums: attrs.XXH64.AppendSums(nil, fill(2, 1)),
		})
		r.Backing = h.b.ID()
		h.l.Submit(r)
		if len(h.ops) != 1 {
			t.Fatalf("%d operations", len(h.ops))
		}
		old := h.ops[0]
		h.stuck = func(op *Op) bool { return op == old }
		h.write(0, fill(2, 1))
		_ = h.c.SetDrain(h.b.ID(), true)
		h.until("the drain", func() bool { return h.b.Remaining() == 0 })
		slot := h.slotOf(0)
		if slot < 0 || slot == old.Off || h.c.health() != HealthOK {
			t.Fatalf("the write is at %d, the read is at %d, the SSD is %v", slot, old.Off, h.c.health())
		}
		h.stuck, h.done = nil, false
		h.until("the read", func() bool { return h.done })
		if r.Err != nil || !bytes.Equal(r.Data, fill(2, 1)) {
			t.Errorf("partly %t: %v", partly, r.Err)
		}
		if h.slotOf(0) != slot || h.stats().HealedBlocks != before {
			t.Errorf("partly %t: the new copy is at %d, was at %d", partly, h.slotOf(0), slot)
		}
	}
}

// TestMismatchBesideACopy: a write takes sectors of a pinned block while a read is under way. That the read had
// them as they were, from the slot or from the backing device, says nothing about those that the slot still has.
func TestMismatchBesideACopy(t *testing.T) {
	for _, partly := range []bool{false, true} {
		h := unchecked(t)
		h.write(0, fill(1, 2))
		h.drain()
		want(t, "pin", h.hint(ReqRead, 0, 1, "hint=pin"), attrs.Handled, attrs.ReasonNone)
		h.b.mode.Store(uint32(Writethrough))
		if partly { // the slot has not had the sector before either
			h.write(0, fill(3, 1)[:512])
			h.wantNotFull(0)
		}
		before := h.stats().HealedBlocks
		expect := fill(1, 2)
		copy(expect, fill(2, 1)[:512])
		r := request(t, ReqRead, 0, 2, "")
		r.Attrs.SetChecksum(attrs.Checksum{
			Algorithm: attrs.XXH64, Sums: attrs.XXH64.AppendSums(nil, expect),
		})
		r.Backing = h.b.ID()
		h.l.Submit(r)
		last := h.ops[0] // of block 1, if that is read by itself
		for _, op := range h.ops {
			if op.Off == h.slotOf(1) {
				last = op
			}
		}
		h.stuck = func(op *Op) bool { return op == last }
		for h.runnable() >= 0 {
			h.step()
		}
		h.write(0, expect[:512])
		h.wantNotFull(0)
		h.stuck, h.done = nil, false
		h.until("the read", func() bool { return h.done })
		if r.Err != nil || !bytes.Equal(r.Data, expect) {
			t.Errorf("partly %t: %v", partly, r.Err)
		}
		if n := h.resident(0, 1); n.Pinned != 1 || h.stats().HealedBlocks != before {
			t.Errorf("partly %t: %+v", partly, n)
		}
	}
}

func (h *harness) wantNotFull(blk Block) {
	h.t.Helper()
	if e, ok := h.c.index.find(makeKey(h.b.id, blk)); !ok || e.st.full() {
		h.t.Fatalf("block %d: cached %t, state %x", blk, ok, e.st)
	}
}

// A block that the backing device has, but may lose, is read from there and stays cached: it is not
// for a client to say that data is lost.
func TestPendingMismatchIsRetried(t *testing.T) {
	h := unchecked(t)
	h.b.mode.Store(uint32(Writethrough))
	data := blocks(1, 2)
	h.write(0, data)
	if e, _ := h.c.index.find(makeKey(h.b.ID(), 0)); e.st&stPending == 0 {
		t.Fatalf("state %x", e.st)
	}
	h.ssd[h.slotOf(0)] ^= 0xff
	got := make([]byte, len(data))
	if _, err := h.summed(ReqRead, 0, got, attrs.Checksum{Algorithm: attrs.XXH64}, data); err != nil ||
		!bytes.Equal(got, data) {
		t.Errorf("%v", err)
	}
	if h.stats().BadBlocks != 0 || h.slotOf(0) < 0 {
		t.Error("the block counts as lost")
	}
}

// What a client takes for wrong is not lost for others: dirty data stays, and good clean data too.
func TestReadMismatchOfOnlyCopy(t *testing.T) {
	h := small(t)
	data := blocks(1, 4)
	wrong := bytes.Clone(data)
	wrong[BlockSize+9]++
	wrong[3*BlockSize]++
	h.write(0, data)
	for _, dirty := range []bool{true, false} {
		if !dirty {
			h.drain()
		}
		slot := h.slotOf(1)
		res, err := h.summed(ReqRead, 0, make([]byte, len(data)), attrs.Checksum{Algorithm: attrs.XXH64, Return: true}, wrong)
		if b, bad := res.Mismatch(); !errors.Is(err, attrs.ErrnoMismatch) || !bad || b != 1 {
			t.Errorf("dirty %t: %v, block %d, %t", dirty, err, b, bad)
		}
		if _, d := h.cachedDirty(); d != dirty || h.slotOf(1) != slot || h.stats().BadBlocks+h.stats().HealedBlocks != 0 {
			t.Errorf("dirty %t: not left alone", dirty)
		}
		h.wantRead(0, data)
	}
}

// A wrong block of the backing device is neither given out nor stored.
func TestMismatchIsNotFilled(t *testing.T) {
	h := small(t)
	copy(h.back, blocks(1, 4))
	expect := blocks(1, 4)
	h.back[2*BlockSize] ^= 4
	res, err := h.summed(ReqRead, 0, make([]byte, 4*BlockSize), attrs.Checksum{Algorithm: attrs.XXH64}, expect)
	if b, _ := res.Mismatch(); !errors.Is(err, attrs.ErrnoMismatch) || b != 2 {
		t.Errorf("%v, block %d", err, b)
	}
	if h.slotOf(2) >= 0 {
		t.Error("a block that does not match is cached")
	}
	h.back[2*BlockSize] ^= 4
	if _, err := h.summed(ReqRead, 0, make([]byte, 4*BlockSize), attrs.Checksum{Algorithm: attrs.XXH64}, expect); err != nil {
		t.Error(err)
	}
	if h.slotOf(2) < 0 {
		t.Error("a block that matches is not cached")
	}
}

// The backing device fails the second try: the request fails for what is known of its data.
func TestRetryFails(t *testing.T) {
	h := unchecked(t)
	h.write(0, blocks(1, 2))
	h.drain()
	h.ssd[h.slotOf(1)] ^= 1
	h.fail = func(op *Op) error {
		if op.Dev != SSD {
			return errMedium
		}
		return nil
	}
	_, err := h.summed(ReqRead, 0, make([]byte, 2*BlockSize), attrs.Checksum{Algorithm: attrs.XXH64}, blocks(1, 2))
	h.fail = nil
	if !errors.Is(err, attrs.ErrnoMismatch) {
		t.Error(err)
	}
}

// A request that fails for another reason has not been verified.
func TestChecksumOfFailedRead(t *testing.T) {
	h := small(t)
	h.fail = func(*Op) error { return errMedium }
	res, err := h.summed(ReqRead, 0, make([]byte, BlockSize), attrs.Checksum{Algorithm: attrs.XXH64, Return: true}, nil)
	h.fail = nil
	if a := res.For(attrs.IDChecksum); !errors.Is(err, errMedium) || a.Status != attrs.NotHandled {
		t.Errorf("%v, %v", a, err)
	}
}

// Data that the engine does not see has no checksums.
func TestChecksumsOfHiddenData(t *testing.T) {
	h := unchecked(t)
	for _, op := range []ReqOp{ReqRead, ReqDiscard} {
		var set attrs.Set
		set.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Return: true})
		for _, required := range []bool{false, true} {
			if required {
				set.Require(attrs.IDChecksum)
			}
			r := &Request{Op: op, Len: BlockSize, Attrs: &set, Results: &attrs.Results{}}
			h.hidden = make([]byte, BlockSize)
			err := h.do(r)
			want := attrs.Answer{
				Status: attrs.Ignored, Reason: attrs.ReasonHidden,
				Source: attrs.SourceExplicit, Offered: 1 << attrs.SourceExplicit,
			}
			if op == ReqDiscard {
				want.Reason = attrs.ReasonDirection
			}
			if a := r.Results.For(attrs.IDChecksum); a != want || required != errors.Is(err, attrs.ErrnoRefused) {
				t.Errorf("%v, required %t: %v, %v", op, required, a, err)
			}
		}
	}
}

package cache

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// lossy is a harness whose SSD can vanish, and the host's markers.
type lossy struct {
	*harness
	gone    bool
	markers map[UUID]Missed
	refuse  error // of markers
	order   []string
	sent    int // operations that the vanished SSD got, probes not counted
}

func newLossy(t *testing.T, o FormatOptions, mode Mode) *lossy {
	t.Helper()
	return newLossyOn(t, o, mode, 4<<20)
}

// newLossyOn has a backing device of that size.
func newLossyOn(t *testing.T, o FormatOptions, mode Mode, backing int) *lossy {
	t.Helper()
	o.BucketBytes = 64 << 10
	dev := make(memStorage, 6<<20)
	if _, err := Format(dev, o); err != nil {
		t.Fatal(err)
	}
	v := &lossy{markers: map[UUID]Missed{}}
	h := &harness{t: t, ssd: dev, back: make(memStorage, backing), now: 1, count: map[OpKind]int{}}
	v.harness = h
	h.opts = Options{Pending: make([]byte, PendingBytes), Missed: v.mark}
	h.fail = v.outcome
	h.open()
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.WritebackDelay = 0, time.Hour
	b, err := h.c.Attach(AttachOptions{
		Name: "disk", Mode: mode, LBS: 512, Identity: Identity{Size: int64(len(h.back))},
		Tunables: tun, UUID: UUID{0xb},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.SetAbilities(true, true)
	h.b = b
	t.Cleanup(func() {
		if p := h.c.Verify(); len(p) > 0 {
			t.Errorf("the index is inconsistent: %v", p)
		}
		h.c.Abandon()
	})
	return v
}

func (v *lossy) outcome(op *Op) error {
	if op.Dev != SSD {
		v.order = append(v.order, "backing "+op.Kind.String())
		return nil
	}
	if !v.gone {
		return nil
	}
	if v.c.lost() && !op.probe {
		v.sent++
	}
	return syscall.ENODEV
}

func (v *lossy) mark(m Missed, done func(error)) {
	if v.refuse == nil {
		v.markers[m.Backing] = m
		v.order = append(v.order, "marker")
	}
	done(v.refuse)
}

// vanish takes the SSD away and waits until the cache has noticed.
func (v *lossy) vanish() {
	v.t.Helper()
	v.gone = true
	v.c.ssdFailed(syscall.ENODEV)
	v.until("the loss", v.c.ssdHealth.settled.Load)
	v.order = nil
}

// restart starts the cache again with the SSD as it is, as a daemon does.
func (v *lossy) restart(drop ...UUID) {
	v.t.Helper()
	v.c.Abandon()
	v.gone, v.ops = false, nil
	v.opts.Drop = drop
	v.open()
	b, err := v.c.Backing(v.b.id)
	if err != nil {
		v.t.Fatal(err)
	}
	b.SetAbilities(true, true)
	v.b = b
}

func (v *lossy) wantError(err, want error, what string) {
	v.t.Helper()
	if !errors.Is(err, want) {
		v.t.Errorf("%s: %v, expected %v", what, err, want)
	}
}

func (v *lossy) setLoss(p LossPolicy) {
	v.t.Helper()
	t := DefaultTunables()
	t.WritebackDelay, t.SequentialCutoff, t.Loss = time.Hour, 0, p
	if err := v.c.SetTunables(v.b.id, t); err != nil {
		v.t.Fatal(err)
	}
}

// TestLostCleanGoesOn: without dirty data the device goes on at backing speed, no request fails, and
// the marker is there before the first change that the SSD misses.
func TestLostCleanGoesOn(t *testing.T) {
	for _, mode := range []Mode{Writethrough, Writeback, Writearound, Writeonly} {
		t.Run(mode.String(), func(t *testing.T) {
			v := newLossy(t, FormatOptions{}, mode)
			v.write(0, fill(1, 8))
			v.wantRead(0, fill(1, 8))
			v.wantRead(0, fill(1, 8))
			v.drain()
			v.flush()
			v.vanish()
			v.wantRead(0, fill(1, 8))
			v.wantRead(64*BlockSize, fill(0, 4))
			if len(v.markers) != 0 {
				t.Fatal("a marker without a change")
			}
			cached := v.b.cached.Load() > 0
			v.order = nil
			v.write(2*BlockSize+512, fill(2, 1)[:1024])
			if want := "marker"; cached && !slices.Contains(v.order, want) {
				t.Fatalf("no marker before the change: %v", v.order)
			}
			if cached && slices.Index(v.order, "backing write") < slices.Index(v.order, "marker") {
				t.Fatalf("the change came first: %v", v.order)
			}
			if m := v.markers[UUID{0xb}]; m.Dirty != 0 || cached && m.Cache != v.c.sb.UUID {
				t.Errorf("marker is %+v", m)
			}
			want := fill(1, 8)
			copy(want[2*BlockSize+512:], fill(2, 1)[:1024])
			v.wantRead(0, want)
			v.write(4*BlockSize, fill(3, 2))
			copy(want[4*BlockSize:], fill(3, 2))
			v.wantRead(0, want)
			v.order = nil
			v.flush()
			if !slices.Equal(v.order, []string{"backing flush"}) {
				t.Errorf("a FLUSH was %v", v.order)
			}
			if v.sent != 0 {
				t.Errorf("the lost SSD got %d operations", v.sent)
			}
			if !bytes.Equal(v.back[:8*BlockSize], want) {
				t.Error("the backing device lacks changes")
			}
			v.restart(UUID{0xb})
			if n := v.b.cached.Load(); n != 0 {
				t.Errorf("%d blocks are cached of a device that the SSD has missed changes of", n)
			}
			v.wantRead(0, want)
		})
	}
}

// TestLostWithoutMarker: what cannot be recorded cannot be changed. Reads go on.
func TestLostWithoutMarker(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.write(0, fill(1, 2))
	v.drain()
	v.flush()
	v.refuse = errors.New("read-only filesystem")
	v.vanish()
	err := v.do(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(2, 1)})
	v.wantError(err, ErrSSDLost, "write")
	v.wantError(err, v.refuse, "write")
	v.wantRead(0, fill(1, 2))
	if !bytes.Equal(v.back[:BlockSize], fill(1, 1)) {
		t.Error("a write that failed was made")
	}
	v.write(64*BlockSize, fill(3, 1)) // the SSD knows nothing of it
	v.refuse = nil
	v.until("another try", func() bool { return v.b.marker.Load() == markerNone })
	v.write(0, fill(2, 1))
	v.wantRead(0, append(fill(2, 1), fill(1, 1)...))
}

// TestLostDirty: dirty sectors fail, those and no others, after the hold; overwritten or discarded they
// are served again, and never as they were before.
func TestLostDirty(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	copy(v.back, fill(7, 16))
	v.write(0, fill(1, 2))
	v.write(4*BlockSize+512, fill(2, 1)[:1024]) // two sectors of a block
	v.flush()
	v.vanish()
	lost := v.now
	_, err := v.read(BlockSize, BlockSize)
	v.wantError(err, ErrSSDLost, "read of a dirty block")
	if waited := time.Duration(v.now - lost); waited < DefaultLossHold-time.Second || waited > 2*DefaultLossHold {
		t.Errorf("the read waited for %s", waited)
	}
	v.wantRead(2*BlockSize, fill(7, 2))
	v.wantRead(4*BlockSize, fill(7, 1)[:512])
	v.wantRead(4*BlockSize+1536, fill(7, 1)[1536:])
	for at := 512; at < 1536; at += 512 {
		_, err := v.read(4*BlockSize+int64(at), 512)
		v.wantError(err, ErrSSDLost, fmt.Sprint("read of dirty sector at ", at))
	}
	v.write(4*BlockSize+512, fill(3, 1)[:512])
	v.wantRead(4*BlockSize, append(fill(7, 1)[:512], fill(3, 1)[:512]...))
	_, err = v.read(4*BlockSize+1024, 512)
	v.wantError(err, ErrSSDLost, "read of the other dirty sector")
	if m := v.markers[UUID{0xb}]; m.Dirty != 3 {
		t.Errorf("the marker tells of %d dirty blocks", m.Dirty)
	}
	v.write(4*BlockSize+1024, fill(4, 1)[:512])
	v.write(0, fill(5, 1))
	v.wantRead(0, fill(5, 1))
	if err := v.do(&Request{Op: ReqDiscard, Off: BlockSize, Len: BlockSize}); err != nil {
		t.Fatal(err)
	}
	v.wantRead(BlockSize, fill(0, 1))
	if n := v.b.dirty.Load(); n != 0 {
		t.Errorf("%d blocks are dirty", n)
	}
	v.flush()
}

// TestLostPolicies: what is not to go on without its dirty data does not.
func TestLostPolicies(t *testing.T) {
	for _, kind := range []LossKind{LossReadOnly, LossStop} {
		t.Run(kind.String(), func(t *testing.T) {
			v := newLossy(t, FormatOptions{}, Writeback)
			v.setLoss(LossPolicy{Kind: kind, Hold: time.Second})
			v.write(0, fill(1, 1))
			v.flush()
			v.vanish()
			v.wantRead(8*BlockSize, fill(0, 1)) // it may come back yet
			v.write(8*BlockSize, fill(2, 1))
			_, err := v.read(0, BlockSize)
			v.wantError(err, ErrSSDLost, "read of the dirty block")
			err = v.do(&Request{Op: ReqWrite, Off: 8 * BlockSize, Len: BlockSize, Data: fill(3, 1)})
			v.wantError(err, ErrSSDLost, "write")
			p, err := v.read(8*BlockSize, BlockSize)
			switch {
			case kind == LossStop:
				v.wantError(err, ErrSSDLost, "read")
			case err != nil || !bytes.Equal(p, fill(2, 1)):
				t.Errorf("read: %v", err)
			}
			if len(v.markers) != 0 {
				t.Error("the SSD has missed something")
			}
		})
	}
}

// TestLostNothingMissed: the SSD comes back as it was, and so does the cache, dirty data included.
func TestLostNothingMissed(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 4))
	v.drain()
	v.write(8*BlockSize, fill(2, 4))
	v.flush()
	v.write(12*BlockSize, fill(3, 1)) // its record is in the pending ring only
	cached, dirty := v.b.cached.Load(), v.b.dirty.Load()
	v.vanish()
	v.wantRead(0, fill(1, 4))
	v.write(64*BlockSize, fill(4, 1)) // not cached
	if len(v.markers) != 0 {
		t.Fatal("the SSD has missed something")
	}
	v.restart()
	if v.b.cached.Load() != cached || v.b.dirty.Load() != dirty {
		t.Errorf("%d blocks cached, %d dirty; before %d and %d", v.b.cached.Load(), v.b.dirty.Load(),
			cached, dirty)
	}
	v.wantRead(0, fill(1, 4))
	v.wantRead(8*BlockSize, append(fill(2, 4), fill(3, 1)...))
	v.wantRead(64*BlockSize, fill(4, 1))
}

// TestLostFlush: a FLUSH does not promise what only the lost SSD may have.
func TestLostFlush(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 1)) // no record on the SSD
	v.vanish()
	v.wantError(v.do(&Request{Op: ReqFlush}), ErrSSDLost, "FLUSH")
	v.wantError(v.do(&Request{Op: ReqFlush}), ErrSSDLost, "FLUSH once more")
	v.write(0, fill(2, 1))
	v.flush()
	if v.markers[UUID{0xb}].Dirty != 1 {
		t.Errorf("the marker tells of %d dirty blocks", v.markers[UUID{0xb}].Dirty)
	}
	// A record that says that dirty data is obsolete is as good as the data.
	v = newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 1))
	v.flush()
	if err := v.c.SetMode(v.b.id, None); err != nil {
		t.Fatal(err)
	}
	if err := v.do(&Request{Op: ReqDiscard, Len: BlockSize}); err != nil {
		t.Fatal(err)
	}
	v.vanish()
	v.flush()
	if _, ok := v.markers[UUID{0xb}]; !ok {
		t.Error("the block that was discarded would be back after a restart")
	}
}

// TestLostFUA: a write with FUA that the SSD has taken, without a record, is made again.
func TestLostFUA(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 1))
	v.flush()
	v.setLoss(LossPolicy{})
	fail := v.fail
	v.fail = func(op *Op) error {
		if op.Dev == SSD && (op.Kind == OpFlush || op.FUA) {
			v.gone = true
		}
		return fail(op)
	}
	if err := v.do(&Request{Op: ReqWrite, FUA: true, Len: BlockSize, Data: fill(2, 1)}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(v.back[:BlockSize], fill(2, 1)) || v.order[len(v.order)-1] != "backing flush" {
		t.Errorf("the write is not on the backing device: %v", v.order)
	}
	v.wantRead(0, fill(2, 1))
}

// TestLostVolatileData: an SSD that comes back without what it had not been flushed for is found out:
// what is lost is an error, not what was there before.
func TestLostVolatileData(t *testing.T) {
	for _, sums := range []bool{true, false} {
		t.Run(fmt.Sprint("checksums=", sums), func(t *testing.T) {
			v := newLossy(t, FormatOptions{NoChecksums: !sums}, Writeback)
			v.write(0, fill(1, 4))
			v.flush()
			before := bytes.Clone(v.ssd)
			v.write(BlockSize, fill(2, 2))
			kept := v.slotOf(2)
			data := bytes.Clone(v.ssd[kept : kept+BlockSize])
			v.vanish()
			copy(v.ssd, before)
			copy(v.ssd[kept:], data) // this one had reached the flash
			for range 2 {
				v.restart()
				v.wantRead(0, fill(1, 1))
				v.wantRead(3*BlockSize, fill(1, 1))
				_, err := v.read(BlockSize, BlockSize)
				v.wantError(err, ErrDirtyBad, "read of lost data")
				if sums {
					v.wantRead(2*BlockSize, fill(2, 1))
				} else {
					_, err := v.read(2*BlockSize, BlockSize)
					v.wantError(err, ErrDirtyBad, "read of what may be lost")
				}
				clear(v.opts.Pending) // the second time as after a power cut
			}
			v.write(BlockSize, fill(3, 2))
			v.wantRead(0, append(append(fill(1, 1), fill(3, 2)...), fill(1, 1)...))
		})
	}
}

// TestLostStaysLost: what was lost with the SSD's volatile cache stays an error after a crash, also where some
// sectors of the block have been replaced meanwhile, and these are not lost again.
func TestLostStaysLost(t *testing.T) {
	for _, sums := range []bool{true, false} {
		t.Run(fmt.Sprint("checksums=", sums), func(t *testing.T) {
			v := newLossy(t, FormatOptions{NoChecksums: !sums}, Writeback)
			before := bytes.Clone(v.ssd)
			v.write(0, fill(1, 1))
			v.vanish()
			copy(v.ssd, before)
			v.restart()
			if err := v.do(&Request{Op: ReqWriteZeroes, Off: 512, Len: 512}); err != nil {
				t.Fatal(err)
			}
			v.flush()
			for range 2 {
				clear(v.opts.Pending[:pageSize]) // as after a power cut
				v.restart()
				_, err := v.read(0, 512)
				v.wantError(err, ErrDirtyBad, "read of lost data")
				got, err := v.read(512, 512)
				if err != nil || !bytes.Equal(got, make([]byte, 512)) {
					t.Errorf("the sector that was replaced: %v", err)
				}
			}
			v.write(0, fill(3, 1))
			v.wantRead(0, fill(3, 1))
		})
	}
}

// TestLostVolatileCopies: in writethrough mode nothing is lost with the SSD's volatile cache.
func TestLostVolatileCopies(t *testing.T) {
	for _, sums := range []bool{true, false} {
		v := newLossy(t, FormatOptions{NoChecksums: !sums}, Writethrough)
		v.write(0, fill(1, 4))
		v.flush()
		before := bytes.Clone(v.ssd)
		v.write(0, fill(2, 4))
		v.wantRead(8*BlockSize, fill(0, 4)) // cached by a fill, as dirty: the device has unflushed writes
		v.vanish()
		v.until("the flush", func() bool { return len(v.b.mu.pending) == 0 })
		copy(v.ssd, before)
		v.restart()
		v.wantRead(0, fill(2, 4))
		v.wantRead(8*BlockSize, fill(0, 4))
	}
}

// TestLostLateChange: a change under way when the SSD is lost makes dirty data obsolete of which the SSD does
// not learn any more.
func TestLostLateChange(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{})
	v.write(0, fill(1, 2))
	v.flush()
	v.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpDiscard }
	var answered *Request
	v.finish = func(r *Request) { answered = r }
	r := &Request{Op: ReqDiscard, Len: BlockSize, Backing: v.b.id}
	v.l.Submit(r)
	v.vanish()
	if answered != nil || len(v.markers) != 0 {
		t.Fatal("the change was not under way")
	}
	v.stuck = nil
	v.until("the answer", func() bool { return answered == r })
	if r.Err != nil || len(v.markers) != 1 {
		t.Errorf("%d markers after a change that the SSD has missed: %v", len(v.markers), r.Err)
	}
	v.wantRead(0, fill(0, 1))
	if n := v.b.dirty.Load(); n != 1 {
		t.Errorf("%d blocks are dirty", n)
	}
}

// TestLostWrittenBack: what was written back just before the loss is not lost with the SSD's volatile cache,
// though no record says so but the one in the pending ring, which is put right.
func TestLostWrittenBack(t *testing.T) {
	for _, sums := range []bool{true, false} {
		v := newLossy(t, FormatOptions{NoChecksums: !sums}, Writeback)
		v.write(8*BlockSize, fill(9, 1))
		v.flush()
		before := bytes.Clone(v.ssd)
		v.write(0, fill(1, 1))
		v.stuck = func(op *Op) bool { return op.Kind == OpFlush }
		if err := v.c.SetDrain(v.b.id, true); err != nil {
			t.Fatal(err)
		}
		v.until("writeback", func() bool { return v.b.dirty.Load() == 0 })
		if n, _ := v.c.journal.pendingRecords(); n == 0 {
			t.Fatal("its record is on the SSD")
		}
		v.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpFlush }
		v.vanish()
		v.until("the flush of the backing device", func() bool { return len(v.b.mu.pending) == 0 })
		copy(v.ssd, before)
		v.stuck = nil
		v.restart()
		v.wantRead(0, fill(1, 1))
	}
}

// TestLostFUAOverDirty: a write with FUA has gone to the backing device, and the record that says that the SSD's dirty
// copy is obsolete has not gone to the SSD. It must not be acknowledged before a marker says so: the power may go.
func TestLostFUAOverDirty(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.setLoss(LossPolicy{})
	v.write(0, fill(1, 1))
	v.flush()
	fail := v.fail
	v.fail = func(op *Op) error {
		switch {
		case op.Dev == SSD && op.Kind == OpWrite && op.Off >= v.c.geo.DataOff:
			return errMedium
		case op.Dev == SSD && op.Kind == OpFlush:
			v.gone = true
		}
		return fail(op)
	}
	if err := v.do(&Request{Op: ReqWrite, FUA: true, Len: BlockSize, Data: fill(2, 1)}); err != nil {
		t.Fatal(err)
	}
	if !v.c.lost() || !bytes.Equal(v.back[:BlockSize], fill(2, 1)) {
		t.Fatal("the SSD was not lost at the right time")
	}
	if len(v.markers) != 1 {
		t.Error("after a power cut the SSD would have the older copy, dirty")
	}
}

// TestFailedChangeKept: a change over what was written through has failed, so the backing device has the old, the new, or some
// of both, and the block is dirty. It is dirty still when the SSD comes back with it, also if the backing device was flushed
// meanwhile. TestLostUnderFailedChange has the SSD that loses it.
func TestFailedChangeKept(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.write(0, fill(1, 1))
	v.write(8*BlockSize, fill(1, 1))
	v.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			copy(v.back[op.Off:], op.Mem)
			return errMedium
		}
		return v.outcome(op)
	}
	v.wantError(v.do(writeOf(0, fill(2, 1))), errMedium, "the change")
	v.fail = v.outcome
	v.wantRead(0, fill(1, 1))
	v.stuck = func(op *Op) bool { return op.Dev == SSD || op.Kind == OpFlush }
	v.start(&Request{Op: ReqFlush})
	v.pass(defaultLossLimit + 5*time.Second)
	v.stall()
	v.pass(5 * time.Second)
	if covered := v.b.flushed.Load(); v.c.health() != HealthLost || covered < v.b.wrote.Load() {
		t.Fatalf("the SSD is %v, and %d of %d changes are flushed", v.c.health(), covered, v.b.wrote.Load())
	}
	v.stuck = nil
	v.restart()
	v.wantRead(0, fill(1, 1))
	v.drain()
	if !bytes.Equal(v.back[v.b.dataOff:][:BlockSize], fill(1, 1)) {
		t.Error("it is not written back")
	}
}

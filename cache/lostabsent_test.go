package cache

import (
	"bytes"
	"errors"
	"syscall"
	"testing"
	"time"
)

// TestLostAbsentDevice: the SSD is lost, and the backing device goes away and comes back without what it was not flushed
// for. Until the guard says so, no flush of it may count.
func TestLostAbsentDevice(t *testing.T) {
	for _, marker := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writethrough)
		v.setLoss(LossPolicy{})
		copy(v.back, fill(7, 1))
		if marker {
			v.write(8*BlockSize, fill(3, 1))
			v.flush()
		}
		v.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpFlush }
		v.write(0, fill(1, 1)) // acknowledged, not flushed
		v.gone = true
		v.c.ssdFailed(errMedium)
		v.c.ssdHealth.gone.Store(true)
		v.until("the loss", v.c.lost)
		v.c.SetPresence(v.b.id, Holding)
		v.stuck = nil
		for _, op := range v.ops {
			if op.Dev != SSD {
				t.Fatal("something is under way")
			}
		}
		if marker {
			v.b.marker.Store(markerAsked) // somebody has, just before
			v.c.ssdHealth.mu.missed = true
		}
		if !v.l.Quiet(v.b.id) {
			t.Fatal("something is under way")
		}
		copy(v.back, fill(7, 1)) // it answers again, and has lost what it was not flushed for
		v.order = nil
		for range 30 { // 3 seconds
			v.tick()
			v.step()
		}
		v.c.Lost(v.b.id)
		v.c.SetPresence(v.b.id, Present)
		got, err := v.read(0, BlockSize)
		if err == nil && !bytes.Equal(got, fill(1, 1)) {
			t.Errorf("marker %v: the block that both have lost reads as %d, what it was before it was %d", marker, got[0], 1)
		}
		if err != nil && !errors.Is(err, ErrSSDLost) {
			t.Error(err)
		}
		err = v.do(&Request{Op: ReqFlush})
		if err == nil {
			t.Errorf("marker %v: a FLUSH succeeds", marker)
		}
	}
}

// TestLostBesideAnAbsentDevice: SSD and backing device go at the same time, as disks of one controller, and the backing
// device, which has no volatile cache, comes back. It has what was written through, so nothing fails.
func TestLostBesideAnAbsentDevice(t *testing.T) {
	for _, flushes := range []bool{false, true} {
		v := newLossy(t, FormatOptions{}, Writethrough)
		v.setLoss(LossPolicy{Hold: time.Second})
		v.write(0, fill(1, 4))
		if n := v.b.Remaining(); n != 4 {
			t.Fatalf("%d blocks are pending", n)
		}
		off := true
		fail := v.fail
		v.fail = func(op *Op) error {
			if op.Dev != SSD && off {
				return syscall.EIO
			}
			return fail(op)
		}
		v.c.SetPresence(v.b.id, Holding)
		v.vanish()
		if flushes {
			v.start(&Request{Op: ReqFlush})
		}
		v.pass(5 * time.Second)
		off = false
		v.c.SetPresence(v.b.id, Present)
		v.pass(2 * time.Second)
		if n := v.b.dirty.Load(); n != 0 {
			t.Errorf("FLUSH %v: %d blocks are said to be on the SSD only", flushes, n)
		}
		got, err := v.read(0, 4*BlockSize)
		if err != nil || got[0] != 1 {
			t.Errorf("FLUSH %v: a read of what the backing device has: %v", flushes, err)
		}
		if err := v.do(&Request{Op: ReqFlush}); err != nil {
			t.Errorf("FLUSH %v: the next one: %v", flushes, err)
		}
	}
}

// holdFailure makes block 0 pending, and the next write of it one that fails, once it is not stuck any more.
func (v *lossy) holdFailure() {
	v.write(0, fill(1, 1)) // pending
	v.write(8*BlockSize, fill(3, 1))
	v.stuck = func(op *Op) bool { return op.Dev != SSD && op.Kind == OpWrite && op.Off == 0 }
	fail := v.fail
	v.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite && op.Off == 0 && op.Len == BlockSize {
			return errMedium
		}
		return fail(op)
	}
}

// wantMarked wants the write to have failed, and the marker to tell of all that is dirty.
func (v *lossy) wantMarked(r *Request) {
	v.t.Helper()
	dirty := v.b.dirty.Load()
	if m := v.markers[v.b.uuid]; r.Err == nil || m.Dirty != dirty {
		v.t.Errorf("the write ended with %v; %d blocks are dirty, the marker tells of %d", r.Err, dirty, m.Dirty)
	}
}

// TestMarkerTellsOfWhatBecomesDirty: a change that the SSD's loss has overtaken fails on the backing device after the marker
// was made. What was there before is on the SSD only, as far as anybody knows, and the marker has to say so.
func TestMarkerTellsOfWhatBecomesDirty(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.holdFailure()
	r, ended := writeOf(0, fill(2, 1)), false
	v.finish = func(f *Request) { ended = ended || f == r }
	v.start(r)
	v.until("the write", func() bool { return len(v.ops) > 0 && v.stuck(v.ops[len(v.ops)-1]) })
	v.flush()
	v.vanish()
	v.write(8*BlockSize, fill(4, 1)) // wants the marker
	if _, ok := v.markers[v.b.uuid]; !ok {
		t.Fatal("no marker")
	}
	v.stuck = nil
	v.until("its end", func() bool { return ended })
	v.pass(2e9)
	v.wantMarked(r)
}

// TestMarkerUnderWay: as TestMarkerTellsOfWhatBecomesDirty, while the marker is being written.
func TestMarkerUnderWay(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	var made func()
	v.c.opts.Missed = func(m Missed, done func(error)) { made = func() { v.mark(m, done) } }
	v.holdFailure()
	r, ended := writeOf(0, fill(2, 1)), false
	other, otherEnded := writeOf(8*BlockSize, fill(4, 1)), false
	v.finish = func(f *Request) { ended = ended || f == r; otherEnded = otherEnded || f == other }
	v.start(r)
	v.until("the write", func() bool { return len(v.ops) > 0 && v.stuck(v.ops[len(v.ops)-1]) })
	v.flush()
	v.vanish()
	v.start(other) // wants the marker
	v.until("the marker", func() bool { return made != nil })
	v.stuck = nil
	v.until("its end", func() bool { return ended })
	for range 5 {
		if f := made; f != nil {
			made = nil
			f()
		}
		v.pass(1e9)
	}
	v.until("the other's end", func() bool { return otherEnded })
	v.wantMarked(r)
}

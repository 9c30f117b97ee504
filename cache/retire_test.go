package cache

import (
	"bytes"
	"syscall"
	"testing"
	"time"

	"ubcache/attrs"
)

// TestFailedBucketIsRetired: whatever write of data to the SSD fails, the request succeeds by way of the
// backing device, and the bucket gets no data any more, until the next start.
func TestFailedBucketIsRetired(t *testing.T) {
	for name, c := range map[string]struct {
		mode  Mode
		cause func(v *lossy)
	}{
		"write":           {Writeback, func(v *lossy) { v.write(0, fill(1, 2)) }},
		"part of a block": {Writeback, func(v *lossy) { v.write(512, fill(1, 1)[:512]) }},
		"fill":            {Writethrough, func(v *lossy) { v.wantRead(0, fill(7, 4)) }},
		"copy":            {Writethrough, func(v *lossy) { v.write(0, fill(1, 2)) }},
	} {
		t.Run(name, func(t *testing.T) {
			v := newLossyOn(t, FormatOptions{}, c.mode, 8<<20)
			copy(v.back, fill(7, 16))
			bad := noBucket
			v.fail = func(op *Op) error {
				if op.Dev != SSD || op.Kind != OpWrite || op.Off < v.c.geo.DataOff {
					return nil
				}
				b := v.c.bucketOf(Slot((op.Off - v.c.geo.DataOff) / BlockSize))
				switch {
				case bad == noBucket:
					bad = b
					return errMedium
				case b == bad:
					t.Errorf("the failed bucket %d was written again", b)
				}
				return nil
			}
			c.cause(v)
			if bad == noBucket {
				t.Fatal("no write failed")
			}
			want := bytes.Clone(v.back[:16*BlockSize])
			v.wantRead(0, want)
			for i := range 3 * len(v.back) / BlockSize { // every other bucket is used several times
				v.write(int64(i*5%(len(v.back)/BlockSize))*BlockSize, fill(byte(i), 1))
			}
			v.until("the bucket's end", func() bool {
				return v.c.buckets[bad].state == bucketRetired || v.c.buckets[bad].live.Load() == 0
			})
			if v.stats().SSDErrors != 1 {
				t.Errorf("%d errors were counted", v.stats().SSDErrors)
			}
		})
	}
}

// TestFailedMove: eviction that cannot write the copies of pinned blocks takes another bucket, and loses
// nothing.
func TestFailedMove(t *testing.T) {
	v := newLossyOn(t, FormatOptions{}, Writethrough, 8<<20)
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.PinQuota = 0, 50
	if err := v.c.SetTunables(v.b.id, tun); err != nil {
		t.Fatal(err)
	}
	var pin attrs.Set
	pin.SetHint(attrs.HintPin)
	failed := 0
	v.fail = func(op *Op) error {
		if _, ok := op.done.(*mover); ok && op.Kind == OpWrite && failed < 3 {
			failed++
			return errMedium
		}
		return nil
	}
	blocks := len(v.back) / BlockSize
	for i := range 3 * blocks {
		r := &Request{Op: ReqWrite, Off: int64(i%blocks) * BlockSize, Len: BlockSize, Data: fill(byte(i), 1)}
		if i%16 == 0 {
			r.Attrs = &pin
		}
		if err := v.do(r); err != nil {
			t.Fatal(err)
		}
	}
	if failed == 0 {
		t.Fatal("nothing was moved")
	}
	for i := 2 * blocks; i < 3*blocks; i++ {
		v.wantRead(int64(i%blocks)*BlockSize, fill(byte(i), 1))
	}
}

// TestBlipRetiresNothing: an SSD that is away for a moment fails everything, and no bucket is bad for it.
func TestBlipRetiresNothing(t *testing.T) {
	for name, away := range map[string]error{"errors": errMedium, "gone": syscall.ENODEV} {
		t.Run(name, func(t *testing.T) {
			v := newLossyOn(t, FormatOptions{}, Writethrough, 8<<20)
			for i := range int64(256) {
				v.write(i*BlockSize, fill(byte(i), 1))
			}
			v.flush()
			gone := false
			v.fail = func(op *Op) error {
				if op.Dev == SSD && gone {
					return away
				}
				return nil
			}
			failed := func() (n int) {
				for i := range v.c.buckets {
					if v.c.buckets[i].failed.Load() {
						n++
					}
				}
				return n
			}
			gone = true
			for i := range int64(16) {
				v.wantRead(i*16*BlockSize, fill(byte(i*16), 1))
				if i < 4 {
					v.tick() // soon the background finds out
				}
			}
			if n := v.b.cached.Load(); n < 254 {
				t.Errorf("%d blocks left the cache for an SSD that is away", 256-n)
			}
			v.write(1000*BlockSize, fill(9, 1)) // its copy fails
			for range 3 {
				v.tick()
				v.step()
			}
			gone = false
			if name == "errors" && v.c.lost() {
				t.Fatal("the SSD is lost after a moment")
			}
			v.until("a good probe, or the loss", func() bool {
				return v.c.lost() || v.c.ssdHealth.failures.Load() == v.l.bg.doctor.looked
			})
			if n := failed(); n != 0 {
				t.Errorf("%d buckets are out of use for an SSD that was away", n)
			}
			if v.c.lost() {
				return
			}
			bad := v.slotOf(17)
			v.fail = func(op *Op) error { // of one bucket only
				if op.Dev == SSD && op.Kind == OpRead && op.Off == bad {
					return errMedium
				}
				return nil
			}
			v.wantRead(17*BlockSize, fill(17, 1))
			v.until("the verdict", func() bool { return v.c.ssdHealth.retired() == 0 })
			if n := failed(); n != 1 {
				t.Errorf("%d buckets are out of use for a bad sector", n)
			}
		})
	}
}

// TestStallRetiresNothing: a copy that is not waited for any more is not one that has failed.
func TestStallRetiresNothing(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writethrough)
	v.stall()
	w := v.start(&Request{Op: ReqWrite, Len: 2 * BlockSize, Data: fill(1, 2)})
	v.pass(defaultStallLimit + time.Second)
	if w.Err != nil || v.c.health() != HealthSlow || v.stats().SSDErrors != 0 {
		t.Fatalf("the SSD is %v, %d errors", v.c.health(), v.stats().SSDErrors)
	}
	for i := range v.c.buckets {
		if v.c.buckets[i].failed.Load() {
			t.Errorf("bucket %d is out of use after a stall", i)
		}
	}
	v.stuck = nil
	v.until("the end of the stall", func() bool { return v.c.health() == HealthOK })
}

// TestPinsOfASmallerSSD: of an SSD that has failed many buckets at most half of the rest is pinned, so that there is room
// for others.
func TestPinsOfASmallerSSD(t *testing.T) {
	h := pressed(t)
	h.flush()
	h.setTunables(func(t *Tunables) { t.PinQuota = 50 })
	good := BucketID(h.c.geo.Buckets * 2 / 5)
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpWrite && op.Off >= h.c.geo.DataOff &&
			h.c.bucketOf(Slot((op.Off-h.c.geo.DataOff)/BlockSize)) >= good {
			return syscall.EIO
		}
		return nil
	}
	retired := func() (n int) {
		for i := range h.c.buckets {
			if h.c.buckets[i].state == bucketRetired {
				n++
			}
		}
		return n
	}
	for b := Block(0); retired() < int(h.c.geo.Buckets-uint32(good)); b = (b + 4) % 2000 {
		h.write(int64(b)*BlockSize, fill(1, 4))
		h.within(100*time.Millisecond, func() bool { return false })
	}
	h.drain()
	h.fail = nil
	for b := Block(2000); b < 3000; b += 4 {
		if a := h.hint(ReqRead, b, 4, "hint=pin"); a.Status != attrs.Handled && a.Reason == attrs.ReasonQuota {
			break
		}
		h.within(100*time.Millisecond, func() bool { return false })
	}
	usable := int64(good) * h.c.geo.slotsPerBucket()
	if n := h.c.pins.all.Load(); n > usable/2 {
		t.Errorf("%d blocks are pinned, of %d for which there is room", n, usable)
	}
	for b := Block(3000); b < 3064; b += 4 {
		if _, err := h.read(int64(b)*BlockSize, 4*BlockSize); err != nil {
			t.Fatal(err)
		}
		h.within(100*time.Millisecond, func() bool { return false })
	}
	if r := h.resident(3000, 64); r.Cached == 0 {
		t.Errorf("nothing else enters the cache any more: %+v", r)
	}
}

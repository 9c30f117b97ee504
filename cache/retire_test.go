package cache

import (
	"bytes"
	"testing"

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

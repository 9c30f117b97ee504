package cache

import (
	"errors"
	"testing"
	"time"
)

// TestFullOfDirtyData fills the SSD with dirty data that cannot be written back for a long time. Writes go
// on at the speed of the backing device, without an error, and everything is there, then and after.
func TestFullOfDirtyData(t *testing.T) {
	v := newLossyOn(t, FormatOptions{}, Writeback, 8<<20)
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.WritebackDelay, tun.DirtyTarget, tun.DirtyMax = 0, time.Hour, 95, 95
	if err := v.c.SetTunables(v.b.id, tun); err != nil {
		t.Fatal(err)
	}
	back := len(v.back) / BlockSize
	broken, direct := true, 0
	fail := v.fail
	v.fail = func(op *Op) error {
		if broken && op.Dev != SSD && op.Kind == OpWrite {
			if _, ok := op.done.(*batch); ok {
				return errMedium
			}
			direct++
		}
		return fail(op)
	}
	want := make([]byte, back)
	for i := range 3 * back {
		blk := i * 7 % back // scattered
		want[blk] = byte(i)
		before := v.now
		v.write(int64(blk)*BlockSize, fill(byte(i), 1))
		if i%50 == 0 {
			v.flush()
		}
		if took := time.Duration(v.now - before); took > 10*time.Second {
			t.Fatalf("write %d took %s", i, took)
		}
	}
	if direct == 0 {
		t.Fatal("no write went past the full SSD")
	}
	if share := v.b.dirty.Load() * 100 / v.c.geo.slots(); share < 60 {
		t.Fatalf("only %d %% of the SSD is dirty", share)
	}
	for blk, b := range want {
		v.wantRead(int64(blk)*BlockSize, fill(b, 1))
	}
	broken = false
	v.drain()
	for blk, b := range want {
		if v.back[blk*BlockSize] != b {
			t.Fatalf("block %d was not written back", blk)
		}
	}
	// And with the SSD lost in this state.
	broken = true
	for i := range back {
		v.write(int64(i)*BlockSize, fill(0xaa, 1))
	}
	v.flush()
	v.vanish()
	for blk := range back {
		got, err := v.read(int64(blk)*BlockSize, BlockSize)
		if err != nil && !errors.Is(err, ErrSSDLost) || err == nil && got[0] != 0xaa {
			t.Fatalf("block %d: %v, %x", blk, err, got[0])
		}
	}
}

package cache

import (
	"bytes"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"ubcache/attrs"
)

// noted is an SSD that notes where a start writes before its first flush.
type noted struct {
	memStorage
	wrote  []int64
	synced bool
}

func (a *noted) WriteAt(p []byte, off int64) (int, error) {
	if !a.synced {
		a.wrote = append(a.wrote, off)
	}
	return a.memStorage.WriteAt(p, off)
}

func (a *noted) Sync() error {
	a.synced = true
	return a.memStorage.Sync()
}

// TestFailedFlushIsBelievedByNobody: after a flush of the SSD has failed, whoever asked for it, or a write with FUA, the next one
// counts for nothing: no FLUSH is acknowledged. The next start writes once more what had been written since the
// last good flush, and nothing else, before it flushes.
func TestFailedFlushIsBelievedByNobody(t *testing.T) {
	for name, fails := range map[string]func(op *Op) bool{
		"flush of a commit":     func(op *Op) bool { return op.Kind == OpFlush },
		"write with FUA":        func(op *Op) bool { return op.FUA },
		"flush of a superblock": nil, // of the control path
	} {
		t.Run(name, func(t *testing.T) {
			v := newLossy(t, FormatOptions{}, Writeback)
			v.setLoss(LossPolicy{Hold: time.Hour})
			v.write(0, fill(1, 1))
			v.flush()
			kept := v.slotOf(0)
			v.write(8*BlockSize, fill(2, 2))
			failed, pages := false, 0
			v.fail = func(op *Op) error {
				switch {
				case op.Dev != SSD:
				case !failed && fails != nil && fails(op):
					failed = true
					return syscall.EIO
				case op.FUA:
					pages++
				}
				return nil
			}
			if fails == nil {
				v.c.ssd = notedSSD{failingSync{v.ssd}, v.c}
				if err := v.c.SetMode(v.b.id, Writeback); err == nil {
					t.Fatal("a superblock that was not flushed")
				}
				failed = true
			}
			answered := false
			r := &Request{Op: ReqFlush}
			v.finish = func(f *Request) { answered = answered || f == r }
			v.start(r)
			v.pass(5 * time.Second)
			if !failed || answered || pages != 0 || v.c.health() != HealthLost {
				t.Fatalf("the FLUSH is answered: %v (%v), %d pages were written, the SSD is %v", answered, r.Err,
					pages, v.c.health())
			}
			slots := []int64{v.slotOf(8), v.slotOf(9)}
			v.c.Abandon()
			dev := &noted{memStorage: v.ssd}
			c, err := Open(dev, v.opts)
			if err != nil {
				t.Fatal(err)
			}
			c.Abandon()
			for _, off := range slots {
				if !slices.Contains(dev.wrote, off) {
					t.Errorf("the slot at %d is not written again: %v", off, dev.wrote)
				}
			}
			if slices.Contains(dev.wrote, kept) {
				t.Error("what had been flushed is written again, too")
			}
			v.ops, v.fail = nil, v.outcome
			v.open()
			b, err := v.c.Backing(v.b.id)
			if err != nil {
				t.Fatal(err)
			}
			v.b = b
			v.wantRead(0, fill(1, 1))
			v.wantRead(8*BlockSize, fill(2, 2))
			v.flush()
		})
	}
}

// TestBadBlockIsRightAfterALoss: a dirty block of which a read has failed is an error no more when the start after a loss of
// the SSD has read it right, and written it again. One that is still not right stays an error.
func TestBadBlockIsRightAfterALoss(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		for _, right := range []bool{false, true} {
			t.Run(fmt.Sprintf("flushed %v, right %v", flushed, right), func(t *testing.T) {
				v := newLossy(t, FormatOptions{}, Writeback)
				v.setLoss(LossPolicy{Hold: time.Hour})
				var pin, unpin attrs.Set
				pin.SetHint(attrs.HintPin)
				unpin.SetHint(attrs.HintUnpin)
				if err := v.do(&Request{Op: ReqWrite, Len: BlockSize, Data: fill(1, 1), Attrs: &pin}); err != nil {
					t.Fatal(err)
				}
				if flushed {
					v.flush()
				}
				sick := true
				slot := v.slotOf(0)
				v.fail = func(op *Op) error {
					if op.Dev == SSD && (op.Kind == OpFlush || sick && op.Kind == OpRead && op.Off == slot) {
						return syscall.EIO
					}
					return nil
				}
				_, err := v.read(0, BlockSize)
				v.wantError(err, ErrDirtyBad, "a read that the SSD fails")
				sick = false
				// Such a discard ends the pin and nothing else. Its record says that the block is bad.
				v.b.SetAbilities(false, false)
				if err := v.do(&Request{Op: ReqDiscard, Len: BlockSize, Attrs: &unpin}); err != nil {
					t.Fatal(err)
				}
				v.start(&Request{Op: ReqFlush})
				v.until("the loss", v.c.ssdHealth.settled.Load)
				v.fail = v.outcome
				if !right {
					v.ssd[slot] ^= 1
				}
				for _, start := range []string{"first", "second"} {
					v.restart()
					clear(v.opts.Pending[:pageSize]) // as after a power cut
					got, err := v.read(0, BlockSize)
					if right && (err != nil || !bytes.Equal(got, fill(1, 1))) {
						t.Errorf("%s start: it reads as %x, %v", start, got[:2], err)
					}
					if !right {
						v.wantError(err, ErrDirtyBad, start+" start")
					}
					if bad := v.b.bad.Load() != 0; bad == right {
						t.Errorf("%s start: it is bad: %v", start, bad)
					}
				}
			})
		}
	}
}

// failingSync is a device of which no flush succeeds.
type failingSync struct{ memStorage }

func (failingSync) Sync() error { return syscall.EIO }

// TestFailedFlushOfAStart: a start of which a flush fails has not made durable what it had read either: the next one writes it
// again.
func TestFailedFlushOfAStart(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(8*BlockSize, fill(2, 2))
	slot := v.slotOf(8)
	v.c.Abandon()
	v.ops = nil
	if _, err := Open(failingSync{v.ssd}, v.opts); err == nil {
		t.Fatal("a start without a flush")
	}
	dev := &noted{memStorage: v.ssd}
	c, err := Open(dev, v.opts)
	if err != nil {
		t.Fatal(err)
	}
	c.Abandon()
	if !slices.Contains(dev.wrote, slot) {
		t.Errorf("the slot at %d is not written again: %v", slot, dev.wrote)
	}
	v.open()
	if v.b, err = v.c.Backing(v.b.id); err != nil {
		t.Fatal(err)
	}
	v.wantRead(8*BlockSize, fill(2, 2))
}

// heldSync is a device whose flush ends when it is told to.
type heldSync struct {
	memStorage
	begun chan struct{}
	end   chan error
}

func (s heldSync) Sync() error {
	s.begun <- struct{}{}
	return <-s.end
}

// TestFlushOfAnother: while a flush of the SSD that is not of a commit is under way, none of what commits make durable is
// acknowledged: its failure may be heard of after their success.
func TestFlushOfAnother(t *testing.T) {
	for _, fails := range []bool{false, true} {
		for _, who := range []string{"checkpoint", "superblock"} {
			t.Run(fmt.Sprintf("%s fails %v", who, fails), func(t *testing.T) {
				v := newLossy(t, FormatOptions{}, Writeback)
				v.setLoss(LossPolicy{Hold: time.Hour})
				v.write(0, fill(1, 1))
				v.flush()
				end := v.beginFlush(who)
				v.write(8*BlockSize, fill(2, 1))
				pages, answered := v.count[OpWrite], false
				r := &Request{Op: ReqFlush}
				v.finish = func(f *Request) { answered = answered || f == r }
				v.start(r)
				v.pass(time.Second)
				if answered || v.count[OpWrite] == pages {
					t.Fatalf("the FLUSH is answered: %v, after %d writes of its commit", answered, v.count[OpWrite]-pages)
				}
				end(fails)
				v.pass(time.Second)
				if lost := v.c.health() == HealthLost; answered == fails || lost != fails {
					t.Errorf("the FLUSH is answered: %v (%v), the SSD is lost: %v", answered, r.Err, lost)
				}
			})
		}
	}
}

// beginFlush begins a flush of the SSD, and returns what ends it.
func (v *lossy) beginFlush(who string) (end func(fails bool)) {
	outcome := func(fails bool) error {
		if fails {
			return syscall.EIO
		}
		return nil
	}
	if who == "superblock" {
		dev := heldSync{v.ssd, make(chan struct{}), make(chan error)}
		v.c.ssd = notedSSD{dev, v.c}
		done := make(chan struct{})
		go func() {
			_ = v.c.SetMode(v.b.id, Writeback) // flushes each copy
			close(done)
		}()
		<-dev.begun
		return func(fails bool) {
			dev.end <- outcome(fails)
			for {
				select {
				case <-dev.begun:
					dev.end <- nil
				case <-done:
					return
				}
			}
		}
	}
	var held *Op
	v.stuck = func(op *Op) bool {
		if held == nil && op.Dev == SSD && op.Kind == OpFlush {
			held = op
		}
		return op == held
	}
	v.c.StartSettle()
	v.until("a checkpoint flushes", func() bool { return held != nil })
	return func(fails bool) {
		v.stuck, v.fail = nil, func(op *Op) error {
			if op == held {
				v.fail = v.outcome
				return outcome(fails)
			}
			return nil
		}
	}
}

// flaky fails one read of data.
type flaky struct {
	memStorage
	from int64
	left int // reads before it
}

func (f *flaky) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.from {
		if f.left--; f.left == -1 {
			return 0, syscall.EIO
		}
	}
	return f.memStorage.ReadAt(p, off)
}

// TestStartCondemnsNothingForOneError: the start after a loss looks at the data that the SSD may have lost. One read that
// fails says no more there than it does while the cache runs.
func TestStartCondemnsNothingForOneError(t *testing.T) {
	v := newLossy(t, FormatOptions{}, Writeback)
	v.write(0, fill(1, 4))
	v.vanish()
	v.c.Abandon()
	v.gone, v.ops = false, nil
	c, err := Open(&flaky{v.ssd, v.c.geo.DataOff, 4}, v.opts)
	if err != nil {
		t.Fatal(err)
	}
	v.c = c
	v.l = c.NewLane(v.harness)
	c.StartBackground(v.l)
	v.b, _ = c.Backing(v.b.id)
	v.b.SetAbilities(true, true)
	if n := v.b.bad.Load(); n != 0 {
		t.Errorf("%d blocks are given up for one error", n)
	}
	v.wantRead(0, fill(1, 4))
}

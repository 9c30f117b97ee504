package cache

import (
	"context"
	"testing"
	"time"
)

// failsWrites is a backing device that takes nothing.
func failsWrites(op *Op) error {
	if op.Dev != SSD && op.Kind == OpWrite {
		return errMedium
	}
	return nil
}

// waitDrained waits for the end of a drain with the background at work, for which so much time passes each millisecond.
func (h *harness) waitDrained(step time.Duration) error {
	h.t.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(h.t.Context())
	defer cancel()
	go func() { done <- h.c.WaitDrained(ctx, h.b.ID(), nil) }()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		h.now += int64(step)
		h.l.Tick()
		for len(h.ops) > 0 {
			h.step()
		}
		select {
		case err := <-done:
			return err
		default:
		}
	}
	h.t.Fatalf("the drain does not end: %d blocks are left", h.b.Remaining())
	return nil
}

// TestBackingSectorThatCannotBeWritten: one bad sector of the backing device keeps its own block dirty, and no other.
func TestBackingSectorThatCannotBeWritten(t *testing.T) {
	h := pressed(t)
	const bad = 5 * BlockSize
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite && op.Off <= bad && bad < op.Off+op.Len {
			return errMedium
		}
		return nil
	}
	h.write(0, fill(1, 64))
	h.write(300*BlockSize, fill(2, 8))
	_ = h.c.SetDrain(h.b.ID(), true)
	h.within(time.Minute, func() bool { return h.b.Remaining() <= 1 })
	if n := h.b.Remaining(); n != 1 {
		t.Errorf("%d of 72 blocks are not written back after a minute for the sake of one bad sector", n)
	}
	h.fail = nil
	h.drain()
	if string(h.back[:64*BlockSize]) != string(fill(1, 64)) {
		t.Error("the backing device lacks data")
	}
}

// TestDrainOfADeviceThatFailsItsWrites: it is there, and will never take what is dirty: who waits for the end of the drain
// is told, so that detach --force can go on.
func TestDrainOfADeviceThatFailsItsWrites(t *testing.T) {
	h := pressed(t)
	h.fail = failsWrites
	h.write(0, fill(1, 64))
	if err := h.c.BeginDetach(h.b.ID()); err != nil {
		t.Fatal(err)
	}
	if h.waitDrained(100*time.Millisecond) == nil {
		t.Error("it is said to be written back")
	}
}

// TestDrainOfADeviceThatFailsItsFlushes: what was written is lost each time as far as anybody knows. It is written again, but
// not as fast as the device can, and who waits is told.
func TestDrainOfADeviceThatFailsItsFlushes(t *testing.T) {
	h := pressed(t)
	wrote := 0
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpFlush {
			return errMedium
		}
		if op.Dev != SSD && op.Kind == OpWrite {
			wrote++
		}
		return nil
	}
	h.write(0, fill(1, 64))
	_ = h.c.SetDrain(h.b.ID(), true)
	begun := h.now
	if h.waitDrained(10*time.Millisecond) == nil {
		t.Error("it is said to be written back")
	}
	if most := 4 + int((h.now-begun)/errorPause); wrote > most {
		t.Errorf("64 blocks were written %d times in %s", wrote, time.Duration(h.now-begun))
	}
}

// TestDrainOutlivesAnOutage: a drain goes on after some seconds in which the device fails everything, however many batches
// that are.
func TestDrainOutlivesAnOutage(t *testing.T) {
	h := pressed(t)
	h.write(0, fill(1, 64))
	for i := range int64(8) {
		h.write(i*regionBytes, fill(1, 64))
	}
	if err := h.c.BeginDetach(h.b.ID()); err != nil {
		t.Fatal(err)
	}
	begun := h.now
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite && h.now < begun+int64(5*time.Second) {
			return errMedium
		}
		return nil
	}
	if err := h.waitDrained(10 * time.Millisecond); err != nil {
		t.Errorf("after %s: %v; %d left, %d fails", time.Duration(h.now-begun), err, h.b.Remaining(), h.b.fails.Load())
	}
}

// TestFailedBatchOfAnAbsentDevice: a write that fails since the device has gone is not tried block by block.
func TestFailedBatchOfAnAbsentDevice(t *testing.T) {
	h := pressed(t)
	h.write(0, fill(1, 64))
	absent, n := false, 0
	h.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpWrite {
			n++
			absent = true
			h.c.SetPresence(h.b.ID(), Holding)
			return errMedium
		}
		return nil
	}
	_ = h.c.SetDrain(h.b.ID(), true)
	for range 20 {
		h.tick()
		for len(h.ops) > 0 {
			h.step()
		}
	}
	if !absent || n != 1 {
		t.Errorf("%d writes were sent, one before the device was away", n)
	}
}

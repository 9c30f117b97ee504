package cache

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"
)

// scrubCall runs Cache.Scrub and plays the background for it for that long.
func (h *harness) scrubCall(ctx context.Context, patience time.Duration) (rep ScrubReport, err error, ended bool) {
	h.t.Helper()
	type answer struct {
		rep ScrubReport
		err error
	}
	done := make(chan answer, 1)
	go func() {
		rep, err := h.c.Scrub(ctx, h.b.ID(), ScrubOptions{}, nil)
		done <- answer{rep, err}
	}()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		select {
		case a := <-done:
			return a.rep, a.err, true
		default:
			h.tick()
			h.step()
			time.Sleep(time.Millisecond)
		}
	}
	return rep, nil, false
}

// TestScrubEndsWithTheSSD: a scrub of a cache whose SSD is lost ends and says why, whether the loss comes before it or
// meanwhile; and it is not in the way of another one.
func TestScrubEndsWithTheSSD(t *testing.T) {
	for _, before := range []bool{true, false} {
		v := newLossy(t, FormatOptions{}, Writeback)
		v.write(0, fill(1, 8))
		v.flush()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if before {
			v.vanish()
		} else {
			v.stuck = func(op *Op) bool { return op.Dev == SSD && op.Kind == OpRead }
			s, err := v.l.bg.startScrub(v.b, ScrubOptions{})
			if err != nil {
				t.Fatal(err)
			}
			v.tick()
			if !s.flying {
				t.Fatal("it does not read")
			}
			v.stuck = nil
			v.vanish()
			v.pass(2 * time.Second)
			if v.l.bg.scrub != nil {
				t.Error("the scrub goes on without the SSD")
			}
			continue
		}
		rep, err, ended := v.scrubCall(ctx, time.Minute)
		if !ended || !errors.Is(err, ErrSSDLost) || rep.Complete {
			t.Errorf("lost before %v: ended %v, %v, %+v", before, ended, err, rep)
		}
		if v.l.bg.scrub != nil {
			t.Error("the scrub is still there")
		}
	}
}

// TestScrubChecksWhatItCounts: the SSD fails all that it is asked for a moment, as one that is reset. What was not read
// then is not verified, and must not be counted, nor may the scrub say that all is right.
func TestScrubChecksWhatItCounts(t *testing.T) {
	h := newSalvageHarness(t, FormatOptions{})
	h.write(0, fill(1, 8))
	h.flush()
	h.ssd[h.slotOf(3)] ^= 1 // dirty, and silently damaged
	probes := 0
	h.fail = func(op *Op) error {
		if op.Dev != SSD || op.Kind != OpRead || probes == 4 {
			return nil
		}
		if op.probe {
			probes++
		}
		return syscall.EIO
	}
	rep := h.scrubbed(ScrubOptions{})
	if h.c.lost() {
		t.Fatal("lost")
	}
	if rep.Complete && len(rep.Bad) == 0 {
		t.Errorf("all is said to be right: %+v", rep)
	}
}

// TestScrubCondemnsNothingForABlip: the SSD fails reads for a moment, as one that is reset. Nothing of it is bad.
func TestScrubCondemnsNothingForABlip(t *testing.T) {
	h := newSalvageHarness(t, FormatOptions{})
	h.write(0, fill(1, 8))
	h.flush()
	failed := 0
	h.fail = func(op *Op) error {
		if op.Dev == SSD && op.Kind == OpRead && !op.probe && failed < 9 { // all at once, and each by itself
			failed++
			return syscall.EIO
		}
		return nil
	}
	rep := h.scrubbed(ScrubOptions{})
	if n := h.b.bad.Load(); n > 0 || len(rep.Bad) > 0 {
		t.Errorf("%d dirty blocks are given up for an error that has passed: %+v", n, rep)
	}
	h.wantRead(0, fill(1, 8))
}

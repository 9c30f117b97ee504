package cache

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"ubcache/attrs"
)

// newUntold is a device that goes away, of a cache whose pending ring outlives a kill, with a write past the cache
// that nobody has flushed.
func newUntold(t *testing.T) *goneHarness {
	h := newGone(t)
	h.stop()
	h.opts = h.c.opts
	h.opts.Pending = make([]byte, PendingBytes)
	h.start()
	r := writeOf(0, fill(5, 1))
	asked(r, attrs.Writearound)
	h.begin(r)
	h.wantDone("a write past the cache", r, nil)
	return h
}

// kill starts the cache again as if the daemon had been killed.
func (h *goneHarness) kill() {
	h.t.Helper()
	h.c.Abandon()
	h.ops, h.gone = nil, false
	h.start()
}

// flushes wants the next FLUSH to end so, and leaves no time after it.
func (h *goneHarness) flushes(what string, want error) {
	h.t.Helper()
	r := &Request{Op: ReqFlush}
	_ = h.do(r)
	h.wantErr(what, r.Err, want)
}

func (h *goneHarness) wantErr(what string, got, want error) {
	h.t.Helper()
	if !errors.Is(got, want) && got != want {
		h.t.Errorf("%s: %v, expected %v", what, got, want)
	}
}

// TestLossOutlivesAKill: that the device has lost writes is told by the first FLUSH, also if the daemon was killed in
// between, once or during the start that follows, and whether the loss was found at its return or by a flush
// that failed.
func TestLossOutlivesAKill(t *testing.T) {
	fails := func(h *goneHarness, on bool) {
		h.fail = func(op *Op) error {
			if on && op.Dev != SSD && op.Kind == OpFlush {
				return syscall.EIO
			}
			return nil
		}
	}
	for name, loses := range map[string]func(h *goneHarness){
		"return": func(h *goneHarness) {
			h.leave(Holding)
			h.comeBack(true)
		},
		"flush of the background": func(h *goneHarness) {
			h.write(64*BlockSize, fill(1, 1))
			fails(h, true)
			if err := h.c.SetDrain(h.b.ID(), true); err != nil {
				t.Fatal(err)
			}
			h.until("the failure", func() bool { return h.b.losses.Load() > 0 })
			fails(h, false)
		},
		"FLUSH that is not answered yet": func(h *goneHarness) {
			fails(h, true)
			h.begin(&Request{Op: ReqFlush})
			h.wantWaiting("a flush that has failed on a device that is perhaps gone")
			if h.b.losses.Load() == 0 {
				t.Fatal("it has not failed")
			}
			fails(h, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newUntold(t)
			loses(h)
			ring := bytes.Clone(h.opts.Pending)
			h.kill()
			copy(h.opts.Pending, ring) // the start came as far as the superblock
			h.kill()
			h.kill()
			h.flushes("the first flush", ErrLost)
			h.flushes("the second", nil)
			h.kill() // the answer has perhaps not got through
			h.flushes("the first after it", ErrLost)
			h.run()
			h.kill()
			h.flushes("a flush long after the loss was told of", nil)
		})
	}
}

// TestLossIsKeptWhileAFlushTells: a FLUSH that is to fail for a loss may take long for other reasons. Until it is answered the
// loss is not forgotten.
func TestLossIsKeptWhileAFlushTells(t *testing.T) {
	h := newUntold(t)
	h.leave(Holding)
	h.comeBack(true)
	h.write(64*BlockSize, fill(1, 1))
	h.stuck = func(op *Op) bool { return op.Dev == SSD }
	r := &Request{Op: ReqFlush, Backing: h.b.ID()}
	h.done = false
	h.l.Submit(r)
	for range 50 {
		h.step()
		h.l.Run()
		h.tick()
	}
	h.wantWaiting("a flush whose commit does not end")
	h.stuck = nil
	h.kill()
	h.flushes("the flush that is issued again", ErrLost)
}

// TestToldLossEndsWithAStop: a client that has its answer when the cache is stopped is not told again.
func TestToldLossEndsWithAStop(t *testing.T) {
	h := newUntold(t)
	h.leave(Holding)
	h.comeBack(true)
	h.flushes("the first flush", ErrLost)
	h.stop()
	h.start()
	h.flushes("a flush after the stop", nil)
}

// TestLossIsNotKeptForAPowerCut: whoever waits for an answer is gone then.
func TestLossIsNotKeptForAPowerCut(t *testing.T) {
	h := newUntold(t)
	h.leave(Holding)
	h.comeBack(true)
	clear(h.opts.Pending)
	h.kill()
	h.flushes("the first flush", nil)
}

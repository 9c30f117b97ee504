package cache

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"ubcache/attrs"
)

// lateOptions load everything late that can be, a page at a time.
var lateOptions = LoadOptions{Blocks: 1, Pages: 1, NoSamples: true}

// stoppedWith is a harness whose cache was stopped in order, with clean copies of the first n blocks.
func stoppedWith(t *testing.T, n int) *harness {
	t.Helper()
	return stopFilled(small(t), n)
}

func stopFilled(h *harness, n int) *harness {
	h.t.Helper()
	h.opts.Load, h.opts.StallLimit, h.opts.LossLimit = lateOptions, -1, -1
	h.c.opts.Load = lateOptions
	h.write(0, fill(1, n))
	h.drain()
	h.stop()
	return h
}

// stop stops the cache in order.
func (h *harness) stop() {
	h.t.Helper()
	h.c.StartSettle()
	h.until("the stop", func() bool { return len(h.ops) == 0 && h.l.Settled() })
	h.l.Close()
	if err := h.c.Close(); err != nil {
		h.t.Fatal(err)
	}
}

// start starts the cache again; nothing is loaded late before the first step.
func (h *harness) start() {
	h.t.Helper()
	h.open()
	b, err := h.c.Backing(1)
	if err != nil {
		h.t.Fatal(err)
	}
	b.SetAbilities(true, true)
	h.b = b
}

// noLoading lets no read of a summary end.
func (h *harness) noLoading() {
	h.stuck = func(op *Op) bool {
		return op.Kind == OpRead && op.Dev == SSD && op.Off >= h.c.geo.SummaryOff[0] && op.Off < h.c.geo.DataOff
	}
}

func (h *harness) loaded() {
	h.t.Helper()
	h.stuck = nil
	h.until("the index", func() bool { return h.c.Loading().Percent == 100 })
	if p := h.c.Verify(); len(p) > 0 {
		h.t.Fatal(p)
	}
}

// A clean copy that is not loaded is a miss at first and a hit later; all that was cached is again.
func TestLateLoad(t *testing.T) {
	h := stoppedWith(t, 64)
	h.start()
	h.noLoading()
	if l := h.c.Status().Loading; l.Percent >= 100 {
		t.Fatalf("loaded at once: %+v", l)
	}
	if n := h.c.Status().CachedBytes; n != 0 {
		t.Fatalf("%d bytes are loaded", n)
	}
	h.wantRead(0, fill(1, 8))
	if n := h.c.Stats().Backings[1].MissBlocks; n != 8 {
		t.Fatalf("%d misses", n)
	}
	h.loaded()
	if n := h.c.Status().CachedBytes; n != 64*BlockSize {
		t.Fatalf("%d bytes are cached", n)
	}
	l := h.c.Loading()
	if l.Percent != 100 || l.Took == 0 || l.LostPages != 0 {
		t.Fatalf("%+v", l)
	}
	h.wantRead(8*BlockSize, fill(1, 56))
	if n := h.c.Stats().Backings[1].HitBlocks; n != 56 {
		t.Fatalf("%d hits", n)
	}
}

// Dirty and pinned blocks are there before the first request.
func TestLateLoadOfDirty(t *testing.T) {
	h := stoppedWith(t, 256)
	h.start()
	h.loaded()
	h.write(100*BlockSize, fill(2, 4))
	want(t, "pin", h.hint(ReqRead, 200, 2, "hint=pin"), attrs.Handled, 0)
	h.stop()
	h.start()
	h.noLoading()
	if s := h.c.Status(); s.DirtyBytes != 4*BlockSize || s.Backings[0].PinnedBytes != 2*BlockSize {
		t.Fatalf("%d bytes dirty, %d pinned", s.DirtyBytes, s.Backings[0].PinnedBytes)
	}
	if h.c.Loading().Percent == 100 {
		t.Fatal("everything was loaded")
	}
	h.wantRead(99*BlockSize, slices.Concat(fill(1, 1), fill(2, 4), fill(1, 1)))
	h.loaded()
	if n := h.c.Status().CachedBytes; n != 256*BlockSize {
		t.Fatalf("%d bytes are cached", n)
	}
}

// What is changed while its copy is not loaded stays changed: past the cache, by a discard, by a write
// that is written back and evicted, all with a crash and without.
func TestLateLoadIsNeverStale(t *testing.T) {
	changes := map[string]struct {
		do   func(h *harness)
		want []byte
	}{
		"past the cache": {func(h *harness) {
			h.mode(None)
			h.write(8*BlockSize, fill(2, 4))
		}, fill(2, 4)},
		"writethrough": {func(h *harness) {
			h.mode(Writethrough)
			h.write(8*BlockSize, fill(3, 4))
		}, fill(3, 4)},
		"discard": {func(h *harness) {
			if err := h.do(&Request{Op: ReqDiscard, Off: 8 * BlockSize, Len: 4 * BlockSize}); err != nil {
				h.t.Fatal(err)
			}
		}, fill(0, 4)},
		"written back": {func(h *harness) {
			h.write(8*BlockSize, fill(4, 4))
			h.writeBack()
		}, fill(4, 4)},
		"written back, then past the cache": {func(h *harness) {
			h.write(8*BlockSize, fill(4, 4))
			h.writeBack()
			h.mode(None)
			h.write(8*BlockSize, fill(5, 4))
		}, fill(5, 4)},
	}
	for name, change := range changes {
		for _, crash := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				h := stoppedWith(t, 64)
				h.start()
				h.noLoading()
				change.do(h)
				h.wantRead(8*BlockSize, change.want)
				if crash { // without a flush: the removals must be durable by themselves
					h.ops = nil
					h.c.Abandon()
					h.stuck = nil
					h.start()
				} else {
					h.loaded()
					if n := h.c.Loading().Dropped; n == 0 {
						t.Fatal("no copy was left out")
					}
				}
				h.wantRead(0, slices.Concat(fill(1, 8), change.want, fill(1, 52)))
				if !crash {
					h.stop()
					h.start()
					h.loaded()
					h.wantRead(0, slices.Concat(fill(1, 8), change.want, fill(1, 52)))
				}
			})
		}
	}
}

// TestLateLoadEvicted: a copy that a hint takes out before it is loaded does not come back with a crash, if the backing
// device has been changed after all was loaded.
func TestLateLoadEvicted(t *testing.T) {
	h := stoppedWith(t, 64)
	h.start()
	h.noLoading()
	want(t, "evict", h.hint(ReqRead, 8, 4, "hint=evict"), attrs.Handled, 0)
	h.loaded()
	if n := h.c.Loading().Dropped; n != 4 {
		t.Fatalf("%d copies were left out", n)
	}
	h.mode(None)
	h.write(8*BlockSize, fill(2, 4))
	h.ops = nil
	h.c.Abandon()
	h.start()
	h.wantRead(0, slices.Concat(fill(1, 8), fill(2, 4), fill(1, 52)))
}

// TestLateLoadLeftOut: copies that were left out since there was no room to remember more, or that could not be loaded,
// do not come back with a crash either.
func TestLateLoadLeftOut(t *testing.T) {
	start := func(t *testing.T) *harness {
		h := stopFilled(smallOn(t, FormatOptions{BucketBytes: 64 << 10}, 64<<20), 64)
		h.opts.Load.Regions = 1
		h.start()
		return h
	}
	for name, load := range map[string]func(h *harness){
		"no room": func(h *harness) {
			h.noLoading()
			for i := range Block(63) {
				h.hint(ReqRead, (i+1)*regionBlocks, 1, "hint=evict")
			}
			h.loaded()
			if n := h.c.Loading().Dropped; n != 64 {
				t.Fatalf("%d copies were left out", n)
			}
		},
		"unreadable": func(h *harness) {
			g := &h.c.geo
			h.fail = func(op *Op) error {
				if op.Kind == OpRead && op.Dev == SSD && op.Off >= g.SummaryOff[0] && op.Off < g.DataOff {
					return errors.New("bad sector")
				}
				return nil
			}
			h.loaded()
			h.fail = nil
			if n := h.c.Loading().LostPages; n == 0 {
				t.Fatal("no page was lost")
			}
		},
	} {
		for _, m := range []Mode{None, Writeback} {
			t.Run(fmt.Sprint(name, ", ", m), func(t *testing.T) {
				h := start(t)
				load(h)
				h.mode(m)
				h.write(8*BlockSize, fill(2, 4))
				if m == Writeback {
					h.writeBack()
				}
				if !h.c.loading.unsure.Load() {
					t.Fatal("nothing is in doubt")
				}
				h.ops = nil
				h.c.Abandon()
				h.start()
				h.wantRead(0, slices.Concat(fill(1, 8), fill(2, 4), fill(1, 52)))
			})
		}
		t.Run(name+", saved", func(t *testing.T) {
			h := start(t)
			load(h)
			h.write(8*BlockSize, fill(2, 4))
			h.stop()
			if h.c.loading.unsure.Load() {
				t.Fatal("all was written anew, and is in doubt")
			}
			h.start()
			h.loaded()
			h.wantRead(0, slices.Concat(fill(1, 8), fill(2, 4), fill(1, 52)))
		})
	}
}

// writeBack is drain while summaries are not read.
func (h *harness) writeBack() {
	h.t.Helper()
	if err := h.c.SetDrain(h.b.ID(), true); err != nil {
		h.t.Fatal(err)
	}
	h.until("the writeback", func() bool { return h.b.Remaining() == 0 && h.runnable() < 0 })
	_ = h.c.SetDrain(h.b.ID(), false)
}

func (h *harness) mode(m Mode) {
	h.t.Helper()
	if err := h.c.SetMode(h.b.ID(), m); err != nil {
		h.t.Fatal(err)
	}
}

// The journal keeps the removals until the summaries that they are about are written, however much
// is written meanwhile.
func TestLateLoadHoldsTheJournal(t *testing.T) {
	h := stoppedWith(t, 64)
	h.start()
	h.noLoading()
	h.mode(None)
	h.write(8*BlockSize, fill(2, 4))
	h.mode(Writeback)
	j := &h.c.journal
	tail := j.mu.tailSeq
	for range 2 * j.pages {
		done := h.async(&Request{Op: ReqWrite, FUA: true, Off: 100 * BlockSize, Len: BlockSize, Data: fill(9, 1)})
		for range 50 {
			h.step()
			h.tick()
		}
		if !*done {
			break // no room any more
		}
	}
	if j.mu.tailSeq != tail || !j.hasNoRoom() {
		t.Fatalf("the tail moved from %d to %d", tail, j.mu.tailSeq)
	}
	h.stuck = nil
	h.until("room", func() bool { return h.c.Loading().Percent == 100 && !j.hasNoRoom() && len(h.ops) == 0 })
	if j.mu.tailSeq == tail {
		t.Fatal("the tail does not move")
	}
	h.wantRead(8*BlockSize, fill(2, 4))
}

// async sends a request and tells when it is answered.
func (h *harness) async(r *Request) *bool {
	done := new(bool)
	r.Backing = h.b.ID()
	h.finish = func(f *Request) { *done = *done || f == r }
	h.l.Submit(r)
	return done
}

// A change for which there is no room to remember it waits until everything is loaded.
func TestLateLoadRemembersSoMuch(t *testing.T) {
	h := stoppedWith(t, 64)
	h.opts.Load.Regions = 1
	h.start()
	h.noLoading()
	h.mode(None)
	h.write(8*BlockSize, fill(2, 4))
	h.write(0, fill(3, 1)) // the same region
	done := h.async(&Request{Op: ReqWrite, Off: regionBytes, Len: BlockSize, Data: fill(4, 1)})
	for range 100 {
		h.step()
		h.tick()
	}
	if *done {
		t.Fatal("the change did not wait")
	}
	h.wantRead(8*BlockSize, fill(2, 4)) // reads do not
	h.loaded()
	h.until("the change", func() bool { return *done && len(h.ops) == 0 })
	h.wantRead(regionBytes, fill(4, 1))
	h.wantRead(0, slices.Concat(fill(3, 1), fill(1, 7), fill(2, 4), fill(1, 4)))
}

// Nothing is loaded late if the journal has more than the stop knew, if the pending ring has records,
// if the last stop was none, or if what comes first is damaged.
func TestLateLoadOnlyIfCertain(t *testing.T) {
	late := func(h *harness) bool {
		h.start()
		defer h.loaded()
		return h.c.Loading().Percent < 100
	}
	for name, c := range map[string]struct {
		harm func(h *harness)
		want bool
	}{
		"as it was": {func(*harness) {}, true},
		"crash":     {func(h *harness) { h.start(); h.ops = nil; h.c.Abandon() }, false},
		"small":     {func(h *harness) { h.opts.Load.Blocks = 1 << 20 }, false},
		"off":       {func(h *harness) { h.opts.Load.Blocks = -1 }, false},
		"dropped":   {func(h *harness) { h.opts.Drop = []UUID{{0xb}} }, false},
		"given up":  {func(h *harness) { h.opts.GiveUp = []BackingID{1} }, false},
		"journal page": {func(h *harness) {
			sb, _ := ReadSuper(h.ssd)
			clear(h.ssd[sb.Geometry.journalPageOff(sb.stop.seq-1):][:pageSize])
		}, false},
		"one superblock": {func(h *harness) { h.ssd[superOffA+100] ^= 1 }, false},
		"copy of what comes first": {func(h *harness) {
			h.start()
			h.loaded()
			h.write(0, fill(7, 1))
			h.stop()
			sb, _ := ReadSuper(h.ssd)
			if len(sb.stop.first) != 1 {
				h.t.Fatalf("first: %v", sb.stop.first)
			}
			h.ssd[sb.Geometry.summaryOff(1, sb.stop.first[0])+500] ^= 1
		}, false},
		"confirmed": {func(h *harness) {
			h.opts.Confirm = func(*Cache) ([]BackingID, error) { return nil, nil }
		}, true},
		"refused": {func(h *harness) {
			h.opts.Confirm = func(*Cache) ([]BackingID, error) { return []BackingID{1}, nil }
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := stoppedWith(t, 64)
			c.harm(h)
			if got := late(h); got != c.want {
				t.Errorf("loaded late: %v, want %v", got, c.want)
			}
			if name == "refused" || name == "dropped" {
				if n := h.c.Status().CachedBytes; n != 0 {
					t.Errorf("%d bytes are cached", n)
				}
			} else if n := h.c.Status().CachedBytes; n != 64*BlockSize {
				t.Errorf("%d bytes are cached", n)
			}
		})
	}
}

// A page of the index of which one copy is bad comes from the other, and is written anew; of one that
// is lost as a whole the clean blocks are lost, and counted.
func TestLateLoadOfDamage(t *testing.T) {
	for _, copies := range []int{1, 2} {
		h := stoppedWith(t, 64)
		sb, err := ReadSuper(h.ssd)
		if err != nil {
			t.Fatal(err)
		}
		h.start()
		bucket := BucketID(0)
		for p := h.ssd[sb.Geometry.summaryOff(0, bucket)+summaryHeader:]; p[0] == 0; {
			bucket++
			p = h.ssd[sb.Geometry.summaryOff(0, bucket)+summaryHeader:]
		}
		// The first copy cannot be read, the second is torn.
		offs := [2]int64{sb.Geometry.summaryOff(0, bucket), sb.Geometry.summaryOff(1, bucket)}
		h.fail = func(op *Op) error {
			if op.Kind == OpRead && op.Dev == SSD && op.Off <= offs[0] && op.Off+op.Len > offs[0] {
				return errors.New("bad sector")
			}
			return nil
		}
		if copies == 2 {
			h.ssd[offs[1]+600] ^= 1
		}
		h.loaded()
		h.fail = nil
		l, want := h.c.Loading(), int64(copies-1)
		if l.LostPages != want {
			t.Fatalf("%d pages are lost, want %d", l.LostPages, want)
		}
		if n := h.c.Status().CachedBytes; (n == 64*BlockSize) != (copies == 1) {
			t.Fatalf("%d bytes are cached", n)
		}
		h.wantRead(0, fill(1, 64))
		h.stop()
		if !bytes.Equal(h.ssd[offs[0]+smLSN:][:8], h.ssd[offs[1]+smLSN:][:8]) {
			t.Fatal("the copies differ")
		}
		h.start()
		h.loaded()
		if n := h.c.Loading().LostPages; n != 0 {
			t.Fatalf("%d pages are lost after they were written anew", n)
		}
	}
}

// An SSD that fails everything loses nothing of the index: it is read when the SSD answers again.
func TestLateLoadWithoutSSD(t *testing.T) {
	h := stoppedWith(t, 64)
	h.start()
	h.noLoading()
	h.tick()
	h.stuck = nil
	h.fail = func(op *Op) error {
		if op.Dev == SSD {
			return errors.New("gone")
		}
		return nil
	}
	for range 30 {
		h.step()
		h.tick()
	}
	if l := h.c.Loading(); l.Percent == 100 || l.LostPages != 0 {
		t.Fatalf("%+v", l)
	}
	h.wantRead(0, fill(1, 8))
}

// TestLateLoadEndsWithTheSSD: what was read of the index when the SSD is lost is not used, since changes from there on have
// no records. A backing device that returns must not be compared with it.
func TestLateLoadEndsWithTheSSD(t *testing.T) {
	h := stoppedWith(t, 64)
	h.start()
	h.noLoading()
	h.opts.Missed = func(_ Missed, done func(error)) { done(nil) }
	h.c.opts.Missed = h.opts.Missed
	h.tick()
	if len(h.ops) == 0 {
		t.Fatal("nothing is loaded")
	}
	h.c.ssdForgot() // the SSD can be read
	h.until("the loss", h.c.ssdHealth.settled.Load)
	h.write(0, fill(2, 64))
	h.stuck = nil
	for range 100 {
		h.step()
		h.tick()
	}
	if n, err := h.c.Recognise(h.b.ID(), h.back, 100); err != nil {
		t.Errorf("%d blocks are compared: %v", n, err)
	}
}

// While a device is being loaded it is not detached, and nothing is scrubbed.
func TestLateLoadFirst(t *testing.T) {
	h := stoppedWith(t, 64)
	h.start()
	h.noLoading()
	done := make(chan error, 1)
	go func() { done <- h.c.FinishDetach(t.Context(), 1, true) }()
	deadline := time.Now().Add(10 * time.Second)
	for !h.c.tasks.some.Load() {
		if time.Now().After(deadline) {
			t.Fatal("no task")
		}
		time.Sleep(time.Millisecond)
	}
	for range 100 {
		h.step()
		h.tick()
	}
	select {
	case err := <-done:
		t.Fatalf("detached while loading: %v", err)
	default:
	}
	h.stuck = nil
	for len(done) == 0 && time.Now().Before(deadline) {
		h.step()
		h.tick()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := h.c.Status().CachedBytes; n != 0 {
		t.Fatalf("%d bytes are cached", n)
	}
}

// The record of a stop says the same when it is read again, however many buckets there are.
func TestStopRecord(t *testing.T) {
	for _, c := range []struct {
		buckets uint32
		free    int
		first   int
	}{
		{64, 0, 0},
		{64, 3, 7},
		{65536, maxStopFree, maxStopFirst},
		{65536, 10, maxStopFirst + 1},
		{16 << 20, 256, 5000},
	} {
		g := Geometry{Buckets: c.buckets}
		s := stopRecord{seq: 77}
		for i := range c.free {
			s.free = append(s.free, BucketID(i*2))
		}
		for i := range c.first {
			s.first = append(s.first, BucketID(uint64(i)*uint64(c.buckets)/uint64(c.first)))
		}
		p := make([]byte, pageSize)
		s.encode(p, &g)
		got := decodeStop(p, &g)
		if got == nil || got.seq != 77 || !slices.Equal(got.free, s.free) {
			t.Fatalf("%+v: %+v", c, got)
		}
		if c.first <= maxStopFirst && !slices.Equal(got.first, s.first) {
			t.Fatalf("%+v: %d of %d", c, len(got.first), c.first)
		}
		for _, b := range s.first {
			if _, ok := slices.BinarySearch(got.first, b); !ok {
				t.Fatalf("%+v: bucket %d is missing", c, b)
			}
		}
		if len(got.first) > max(1, g.stopGroup())*c.first {
			t.Fatalf("%+v: %d come first", c, len(got.first))
		}
	}
	if decodeStop(make([]byte, pageSize), &Geometry{Buckets: 64}) != nil {
		t.Error("a record of zeroes")
	}
}

// TestFirstCommitTorn: after a stop in order the journal's tail is at its end. A crash during the first commit from there
// leaves any of its pages, perhaps a later one without the first. The next start must not take that for damage.
func TestFirstCommitTorn(t *testing.T) {
	for _, killed := range []bool{false, true} {
		for first := range int64(3) { // the first page that is there
			t.Run(fmt.Sprintf("killed=%v,from page %d", killed, first), func(t *testing.T) {
				h := stoppedWith(t, 64)
				h.opts.Pending = make([]byte, PendingBytes)
				h.start()
				h.loaded()
				h.write(0, fill(2, 4))
				h.stop()
				h.start()
				h.loaded()
				const blocks = 2*pageRecords + 10
				h.write(100*BlockSize, fill(3, blocks))
				h.tearCommit(3, first*pageSize, 3*pageSize)
				died := h.c
				want := byte(3)
				if !killed {
					clear(h.opts.Pending)
					if first > 0 {
						want = 0
					}
				}
				h.start()
				died.Abandon()
				if s := h.c.Repaired(); s != "" {
					t.Errorf("repaired: %s", s)
				}
				h.wantRead(0, fill(2, 4))
				h.wantRead(4*BlockSize, fill(1, 60))
				h.wantRead(100*BlockSize, fill(want, blocks))
				// The next commit is shorter: behind it are pages of the torn one.
				h.write(100*BlockSize, fill(4, 20))
				h.flush()
				h.c.Abandon()
				h.ops = nil
				clear(h.opts.Pending)
				h.start()
				if s := h.c.Repaired(); s != "" {
					t.Errorf("repaired: %s", s)
				}
				h.wantRead(0, fill(2, 4))
				h.wantRead(100*BlockSize, fill(4, 20))
				h.wantRead(120*BlockSize, fill(want, blocks-20))
			})
		}
	}
}

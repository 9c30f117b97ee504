package cache

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// scrubbed runs a scrub to its end.
func (h *harness) scrubbed(o ScrubOptions) ScrubReport {
	h.t.Helper()
	s, err := h.l.bg.startScrub(h.b, o)
	if err != nil {
		h.t.Fatal(err)
	}
	h.until("the scrub", func() bool { return h.l.bg.scrub == nil && len(h.ops) == 0 })
	<-s.done
	return s.report()
}

func TestScrubFindsExactlyWhatIsWrong(t *testing.T) {
	d := newDamaged(t, Writeback, false)
	if rep := d.scrubbed(ScrubOptions{}); rep.Checked != 61 || rep.Compared != 20 || !rep.Complete ||
		len(rep.Bad)+len(rep.Differs)+len(rep.BackingErrors) != 0 || rep.Healed != 0 {
		t.Fatalf("of a sound cache: %+v", rep)
	}
	d.ssd[d.slotOf(61)] ^= 1 // a clean one
	d.ssd[d.slotOf(7)] ^= 1  // a dirty one
	d.back[62*BlockSize+600] ^= 1
	d.fail = func(op *Op) error {
		if op.Dev != SSD && op.Kind == OpRead && op.Off <= 75*BlockSize && op.Off+op.Len > 75*BlockSize {
			return errMedium
		}
		return nil
	}
	rep := d.scrubbed(ScrubOptions{})
	d.fail = nil
	if rep.Healed != 1 || rep.Checked != 61 {
		t.Errorf("%+v", rep)
	}
	if want := (Ranges{{7 * BlockSize, BlockSize}}); !slices.Equal(rep.Bad, want) {
		t.Errorf("bad: %v", rep.Bad)
	}
	if len(rep.BackingErrors) == 0 {
		t.Error("the backing device's error is not reported")
	}
	rep = d.scrubbed(ScrubOptions{})
	if want := (Ranges{{62*BlockSize + 512, 512}}); !slices.Equal(rep.Differs, want) || rep.Fixed != 0 {
		t.Errorf("differs: %+v", rep)
	}
	list, more, err := d.c.BadRanges(d.b.ID())
	if want := (Ranges{{7 * BlockSize, BlockSize}}); err != nil || more || !slices.Equal(list, want) {
		t.Errorf("bad ranges: %v %v %v", list, more, err)
	}
	// What differs stays until it is told to go; then the backing device is right.
	if _, err := d.read(7*BlockSize, BlockSize); err == nil {
		t.Error("a bad block is read")
	}
	d.wantRead(62*BlockSize, bytes.Repeat([]byte{162}, BlockSize))
	if rep = d.scrubbed(ScrubOptions{Fix: true}); rep.Fixed != 1 || len(rep.Differs) != 1 {
		t.Errorf("with Fix: %+v", rep)
	}
	got, err := d.read(62*BlockSize, BlockSize)
	if err != nil || !bytes.Equal(got, d.back[62*BlockSize:63*BlockSize]) {
		t.Error("after Fix the backing device is not read")
	}
	d.fill(7, 7)
	if list, _, _ := d.c.BadRanges(d.b.ID()); len(list) != 0 {
		t.Errorf("overwritten, and still bad: %v", list)
	}
}

// TestScrubOfWhatCannotBeRead: a bad sector is that of one block, and an SSD that is gone says nothing about any.
func TestScrubOfWhatCannotBeRead(t *testing.T) {
	for _, gone := range []bool{false, true} {
		h := newSalvageHarness(t, FormatOptions{})
		h.write(0, fill(1, 8))
		h.flush()
		bad := h.slotOf(3)
		h.fail = func(op *Op) error {
			if op.Dev == SSD && (gone || op.Kind == OpRead && op.Off <= bad && bad < op.Off+op.Len) {
				return errMedium
			}
			return nil
		}
		s, err := h.l.bg.startScrub(h.b, ScrubOptions{})
		if err != nil {
			t.Fatal(err)
		}
		h.until("the scrub", func() bool {
			return len(h.ops) == 0 && (h.l.bg.scrub == nil || h.c.lost() && !s.flying)
		})
		rep, want := s.report(), Ranges{{3 * BlockSize, BlockSize}}
		if gone {
			want = Ranges{}
		}
		if !slices.Equal(rep.Bad, want) || h.b.bad.Load() != int64(len(want)) || h.c.lost() != gone {
			t.Errorf("gone %v: bad are %v, %d blocks; the SSD is %v", gone, rep.Bad, h.b.bad.Load(), h.c.health())
		}
	}
}

// TestScrubListsOnlyTheSectorsThatAreLost: the mask of a partly valid block counts.
func TestScrubListsOnlyTheSectorsThatAreLost(t *testing.T) {
	h := newSalvageHarness(t, FormatOptions{})
	h.write(5*BlockSize+1024, bytes.Repeat([]byte{1}, 1024))
	h.flush()
	h.ssd[h.slotOf(5)+1024] ^= 1
	rep := h.scrubbed(ScrubOptions{})
	want := Ranges{{5*BlockSize + 1024, 1024}}
	if !slices.Equal(rep.Bad, want) {
		t.Errorf("bad: %v", rep.Bad)
	}
	if list, _, _ := h.c.BadRanges(h.b.ID()); !slices.Equal(list, want) {
		t.Errorf("bad ranges: %v", list)
	}
}

func TestScrubKeepsItsRateAndGoesOnWhereItWas(t *testing.T) {
	d := newDamaged(t, Writeback, false)
	begin := d.now
	if rep := d.scrubbed(ScrubOptions{Rate: 40 << 10}); rep.Checked != 61 {
		t.Errorf("%+v", rep)
	}
	if took := time.Duration(d.now - begin); took < 5*time.Second || took > 20*time.Second {
		t.Errorf("61 blocks at 10 a second took %v", took)
	}
	if rep := d.scrubbed(ScrubOptions{From: 70 * BlockSize}); rep.Checked != 11 {
		t.Errorf("from block 70 on: %+v", rep)
	}
	// A second one is refused while one runs, and a stop ends it.
	s, err := d.l.bg.startScrub(d.b, ScrubOptions{Rate: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.l.bg.startScrub(d.b, ScrubOptions{}); err == nil {
		t.Error("two scrubs at a time")
	}
	d.stop()
	select {
	case <-s.done:
	default:
		t.Error("the scrub outlives the cache")
	}
}

// TestScrubEndsWithItsCaller runs the blocking call against a lane that another goroutine drives.
func TestScrubEndsWithItsCaller(t *testing.T) {
	d := newDamaged(t, Writeback, false)
	ctx, cancel := context.WithCancel(t.Context())
	type answer struct {
		rep ScrubReport
		err error
	}
	done := make(chan answer)
	go func() {
		rep, err := d.c.Scrub(ctx, d.b.ID(), ScrubOptions{Rate: 1}, nil)
		done <- answer{rep, err}
	}()
	for d.l.bg.scrub == nil {
		d.tick()
		time.Sleep(time.Millisecond)
	}
	cancel()
	for {
		select {
		case a := <-done:
			if a.err == nil || a.rep.Complete {
				t.Errorf("%+v, %v", a.rep, a.err)
			}
			return
		default:
			d.tick()
			d.step()
			time.Sleep(time.Millisecond)
		}
	}
}

// TestScrubRaces lets scrubs and requests of all kinds and modes cross, with the devices answering in
// any order. There must be no false alarm.
func TestScrubRaces(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		h := newSalvageHarness(t, FormatOptions{})
		open := 0
		h.finish = func(q *Request) {
			if q.Err != nil {
				t.Fatal(q.Err)
			}
			open--
		}
		var scrubs []*scrub
		for i := range 3000 {
			if i%100 == 0 {
				if err := h.c.SetMode(h.b.ID(), Mode(r.IntN(4))); err != nil {
					t.Fatal(err)
				}
			}
			if h.l.bg.scrub == nil {
				s, err := h.l.bg.startScrub(h.b, ScrubOptions{})
				if err != nil {
					t.Fatal(err)
				}
				scrubs = append(scrubs, s)
			}
			if open < 6 {
				open++
				h.l.Submit(randomRequest(r, h.b.ID()))
			}
			if n := len(h.ops); n > 1 {
				j := r.IntN(n)
				h.ops[0], h.ops[j] = h.ops[j], h.ops[0]
			}
			h.step()
			if r.IntN(10) == 0 {
				h.tick()
			}
		}
		compared := int64(0)
		for _, s := range scrubs {
			rep := s.report()
			compared += rep.Compared
			if len(rep.Differs)+len(rep.Bad) > 0 || rep.Healed > 0 {
				t.Fatalf("seed %d: false alarm: %+v", seed, rep)
			}
		}
		if compared == 0 {
			t.Fatalf("seed %d: %d scrubs compared nothing", seed, len(scrubs))
		}
	}
}

// randomRequest is a request of any kind within the first 40 blocks, every other one of a whole block, as
// is cached.
func randomRequest(r *rand.Rand, id BackingID) *Request {
	const blocks = 40
	q := &Request{
		Backing: id, Op: ReqOp(r.IntN(5)), Off: r.Int64N(blocks*8-16) * SectorSize,
		Len: (1 + r.Int64N(16)) * SectorSize,
	}
	switch {
	case q.Op == ReqFlush:
		q.Off, q.Len = 0, 0
	case r.IntN(2) == 0:
		q.Off, q.Len = q.Off/BlockSize*BlockSize, BlockSize
	}
	q.Data = make([]byte, q.Len)
	for i := range q.Data {
		q.Data[i] = byte(r.Uint32())
	}
	return q
}

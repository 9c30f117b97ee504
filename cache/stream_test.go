package cache

import (
	"testing"

	"ubcache/attrs"
)

// lifetime writes blocks with a lifetime and returns the bucket of the first and the answer.
func (h *harness) lifetime(first Block, n int, text string) (BucketID, attrs.Answer) {
	h.t.Helper()
	r := request(h.t, ReqWrite, first, n, text)
	if err := h.do(r); err != nil {
		h.t.Fatal(err)
	}
	off := h.slotOf(first)
	if off < 0 {
		return noBucket, r.Results.For(attrs.IDLifetime)
	}
	return h.c.bucketOf(Slot((off - h.c.geo.DataOff) / BlockSize)), r.Results.For(attrs.IDLifetime)
}

// Data of one lifetime lies together, apart from that of others, in both modes that store it.
func TestLifetimesLieApart(t *testing.T) {
	for _, mode := range []Mode{Writeback, Writethrough} {
		h := pressed(t)
		h.b.mode.Store(uint32(mode))
		in := map[BucketID]string{}
		for round := range Block(3) {
			for i, text := range []string{"none", "short", "medium", "long", "extreme"} {
				b, a := h.lifetime(round*64+Block(i)*8, 2, "lifetime="+text)
				want(t, text, a, attrs.Handled, attrs.ReasonNone)
				if was, ok := in[b]; ok && was != text {
					t.Errorf("%v: bucket %d has %s and %s", mode, b, was, text)
				}
				in[b] = text
			}
			if b, _ := h.lifetime(round*64+48, 2, "hint=default"); in[b] != "none" && mode == Writeback {
				t.Errorf("without a lifetime it goes to %q", in[b])
			}
		}
		if len(in) != 5 {
			t.Errorf("%v: %v", mode, in)
		}
	}
}

// The answer is handled only if all of the data went to the lifetime's stream.
func TestLifetimeAnswers(t *testing.T) {
	for _, c := range []struct {
		name string
		mode Mode
		text string
		off  int64 // bytes
		with func(h *harness)
		st   attrs.Status
		why  attrs.Reason
	}{
		{"none", None, "lifetime=short", 0, nil, attrs.Ignored, attrs.ReasonMode},
		{"writearound", Writearound, "lifetime=short", 0, nil, attrs.Ignored, attrs.ReasonMode},
		{"writearound, cached", Writearound, "lifetime=short,hint=cache", 0, nil, attrs.Handled, 0},
		{"bypassed", Writeback, "lifetime=short,hint=bypass", 0, nil, attrs.Ignored, attrs.ReasonNotCached},
		{"pinned", Writeback, "lifetime=short,hint=pin", 0, nil, attrs.Ignored, attrs.ReasonOverruled},
		{"a part, written back", Writeback, "lifetime=short", 512, nil, attrs.Handled, 0},
		{"a part, written through", Writethrough, "lifetime=short", 512, nil, attrs.Ignored, attrs.ReasonNotCached},
		{"a full cache", Writeback, "lifetime=short", 0, func(h *harness) { h.b.dirtyMax.Store(0) }, attrs.Ignored, attrs.ReasonNotCached},
		{"no bucket to spare", Writeback, "lifetime=short", 0, func(h *harness) { h.c.alloc.extra.Store(100) }, attrs.Ignored, attrs.ReasonBusy},
		{"a failing SSD", Writeback, "lifetime=short", 0, func(h *harness) {
			h.fail = func(op *Op) error {
				if op.Dev == SSD && op.Kind == OpWrite {
					return errMedium
				}
				return nil
			}
		}, attrs.Ignored, attrs.ReasonBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := pressed(t)
			h.b.mode.Store(uint32(c.mode))
			if c.with != nil {
				c.with(h)
			}
			r := request(t, ReqWrite, 0, 4, c.text)
			r.Off += c.off
			if err := h.do(r); err != nil {
				t.Fatal(err)
			}
			want(t, c.name, r.Results.For(attrs.IDLifetime), c.st, c.why)
			h.fail = nil
			h.wantRead(c.off, fill(7, 4))
		})
	}
}

// Open buckets are bounded, given back by a lane that ends, and no stream starves while another has
// slots.
func TestStreamsAreBounded(t *testing.T) {
	h := pressed(t)
	var lanes []*Lane
	for range 8 {
		l := h.c.NewLane(h)
		lanes = append(lanes, l)
		for st := range numStreams {
			at := l.choose(st)
			if at == numStreams {
				t.Fatal("no slot")
			}
			l.dropRuns([]slotRun{{first: first(l.alloc(at, 1)), n: 1}})
		}
	}
	extra := 0
	for _, l := range lanes {
		for st := streamPinned; st < numStreams; st++ {
			if l.open[st].id != noBucket {
				extra++
			}
		}
	}
	if got := int(h.c.alloc.extra.Load()); got != extra || extra != int(h.c.maxExtra()) {
		t.Errorf("%d extra buckets are open, %d counted, limit %d", extra, got, h.c.maxExtra())
	}
	l := h.c.NewLane(h)
	lanes = append(lanes, l)
	for st, base := range map[stream]stream{streamShort: streamDirty, streamPinned: streamClean} {
		if at := l.choose(st); at != base {
			t.Errorf("without a bucket to spare stream %d goes to %d, want %d", st, at, base)
		}
	}
	for _, l := range lanes {
		l.Close()
	}
	if got := h.c.alloc.extra.Load(); got != 0 {
		t.Errorf("%d are counted after the lanes ended", got)
	}
	h.l.choose(streamLong)
	h.c.alloc.mu.free = nil
	if at := h.l.choose(streamClean); at != streamLong {
		t.Errorf("without a free bucket the stream is %d", at)
	}
}

func first(s Slot, _ int) Slot { return s }

// While anything is pinned the last free bucket is for eviction to move that to.
func TestLastBucketIsForPins(t *testing.T) {
	h := pressed(t)
	h.hint(ReqRead, 0, 1, "hint=pin")
	a := &h.c.alloc
	a.mu.free = a.mu.free[:1]
	a.freeCount.Store(1)
	if b := a.takeFree(false); b != noBucket {
		t.Error("somebody else gets it")
	}
	if b := a.takeFree(true); b == noBucket {
		t.Error("eviction does not get it")
	}
}

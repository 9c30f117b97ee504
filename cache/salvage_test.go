package cache

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// salvaged is what Walk finds, as text: "proved 0=1 1=2, uncertain 3=4".
func salvaged(t *testing.T, dev Storage, pending []byte) (string, *Salvage) {
	t.Helper()
	s, err := OpenSalvage(t.Context(), dev, pending, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	var list [Unreadable + 1][]string
	for _, b := range s.Backings() {
		err := s.Walk(t.Context(), b.ID, func(k *SalvageBlock) error {
			if k.Certainty != Unreadable && !bytes.Equal(k.Data, bytes.Repeat(k.Data[:1], len(k.Data))) {
				t.Errorf("block at %d is mixed", k.Off)
			}
			list[k.Certainty] = append(list[k.Certainty], fmt.Sprintf("%d=%d", k.Off/BlockSize, k.Data[0]))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var parts []string
	for i, l := range list {
		if len(l) > 0 {
			parts = append(parts, Certainty(i).String()+" "+strings.Join(l, " "))
		}
	}
	return strings.Join(parts, ", "), s
}

func newSalvageHarness(t *testing.T, o FormatOptions) *harness {
	dev := make(memStorage, 8<<20)
	o.BucketBytes = 64 << 10
	if _, err := Format(dev, o); err != nil {
		t.Fatal(err)
	}
	return newHarness(t, dev, 2<<20)
}

func (h *harness) fill(b Block, v byte) {
	h.t.Helper()
	h.write(int64(b)*BlockSize, bytes.Repeat([]byte{v}, BlockSize))
}

// quiet lets ten seconds pass.
func (h *harness) quiet() {
	for range 100 {
		h.tick()
		for len(h.ops) > 0 {
			h.step()
		}
	}
}

// TestSalvageTellsWhatIsCertain loses a page of the journal: what was recorded before it may have been
// overwritten by records in it, what came after it is certain.
func TestSalvageTellsWhatIsCertain(t *testing.T) {
	h := newSalvageHarness(t, FormatOptions{})
	h.fill(3, 1)
	h.fill(4, 2)
	h.flush() // page 1
	h.fill(3, 9)
	h.flush() // page 2
	h.fill(5, 3)
	h.fill(6, 4)
	h.flush() // page 3
	h.c.Abandon()
	if got, _ := salvaged(t, h.ssd, nil); got != "proved 3=9 4=2 5=3 6=4" {
		t.Errorf("of a whole cache: %s", got)
	}
	h.ssd[h.c.geo.journalPageOff(2)+100] ^= 1
	got, s := salvaged(t, h.ssd, nil)
	if got != "proved 5=3 6=4, uncertain 3=1 4=2" {
		t.Errorf("without page 2: %s", got)
	}
	if s.UnknownBlocks() != -1 {
		t.Errorf("unknown blocks: %d", s.UnknownBlocks())
	}
	if _, err := Open(h.ssd, Options{}); err == nil {
		t.Error("it opens, so there is nothing to salvage")
	}
}

// TestSalvageWithoutTheFirstPage: the page is lost with which the journal begins. What the summaries have may have been
// overwritten by a record in it.
func TestSalvageWithoutTheFirstPage(t *testing.T) {
	h := newSalvageHarness(t, FormatOptions{})
	h.opts.Load = lateOptions
	h.fill(3, 1)
	h.stop()
	h.start() // with nothing of the journal
	h.loaded()
	first := h.c.journal.mu.tailSeq
	h.fill(3, 9)
	h.flush()
	h.fill(5, 3)
	h.flush()
	h.c.Abandon()
	h.ssd[h.c.geo.journalPageOff(first)+100] ^= 1
	if got, _ := salvaged(t, h.ssd, nil); got != "proved 5=3, uncertain 3=1" {
		t.Errorf("without page %d: %s", first, got)
	}
}

func TestSalvageAfterDamage(t *testing.T) {
	for _, tt := range []struct {
		name   string
		format FormatOptions
		damage func(h *harness)
		want   string
	}{
		{name: "none", want: "proved 1=1 2=2 3=3", damage: func(*harness) {}},
		{
			name: "both superblocks", want: "proved 1=1 2=2 3=3", damage: func(h *harness) {
				clear(h.ssd[:journalOff])
			},
		},
		{
			name: "both superblocks, without checksums", want: "unverified 1=1 2=2 3=3",
			format: FormatOptions{NoChecksums: true}, damage: func(h *harness) { clear(h.ssd[:journalOff]) },
		},
		{
			name: "data", want: "proved 1=1 3=3, unreadable 2=3", damage: func(h *harness) {
				h.ssd[h.slotOf(2)] ^= 1
			},
		},
		{
			// The block that is 3 was only in the last page.
			name: "the newest journal page", want: "uncertain 1=1 2=2", damage: func(h *harness) {
				h.ssd[h.c.geo.journalPageOff(2)+100] ^= 1
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newSalvageHarness(t, tt.format)
			h.fill(1, 1)
			h.fill(2, 2)
			h.flush()
			h.fill(3, 3)
			h.flush()
			h.quiet()
			tt.damage(h)
			h.c.Abandon()
			before := bytes.Clone(h.ssd)
			if got, _ := salvaged(t, h.ssd, nil); got != tt.want {
				t.Errorf("found %s, want %s", got, tt.want)
			}
			if !bytes.Equal(before, h.ssd) {
				t.Error("salvage has changed the SSD")
			}
		})
	}
}

// TestSalvageUsesThePendingRing: what a killed daemon had acknowledged is salvaged, too.
func TestSalvageUsesThePendingRing(t *testing.T) {
	h := newSalvageHarness(t, FormatOptions{})
	h.fill(1, 1)
	h.flush()
	h.fill(2, 2) // in the ring only
	ring := bytes.Clone(h.c.opts.Pending)
	h.c.Abandon()
	if got, _ := salvaged(t, h.ssd, ring); got != "proved 1=1 2=2" {
		t.Error("with the ring: ", got)
	}
	if got, _ := salvaged(t, h.ssd, nil); got != "proved 1=1" {
		t.Error("without: ", got)
	}
}

// TestSalvageSamples: a backing device that was changed without the cache is not like its samples.
func TestSalvageSamples(t *testing.T) {
	d := newDamaged(t, Writeback, false)
	d.c.Abandon()
	_, s := salvaged(t, d.ssd, nil)
	list := s.Samples(1, 64)
	if len(list) != 20 {
		t.Fatalf("%d samples of 20 clean blocks", len(list))
	}
	for _, x := range list {
		if x.Differs(d.back[x.Off:]) {
			t.Errorf("the sample at %d differs", x.Off)
		}
	}
	d.back[70*BlockSize+5] ^= 1
	n := 0
	for _, x := range list {
		if x.Differs(d.back[x.Off:]) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d samples differ, want 1", n)
	}
}

// TestSalvageKnowsWhatTheJournalHas: of a summary page that is lost, what the journal still has is as
// certain as ever, and the rest is counted.
func TestSalvageKnowsWhatTheJournalHas(t *testing.T) {
	d := newDamaged(t, Writeback, true)
	for _, off := range d.summaryOf(90) {
		d.spoil(off)
	}
	d.forgetHistory()
	d.c.Abandon()
	got, s := salvaged(t, d.ssd, nil)
	if !strings.HasPrefix(got, "proved ") || !strings.Contains(got, " 90=90") {
		t.Errorf("found %s", got)
	}
	// The page has 16 slots, and block 90 is in one of them.
	if n := s.UnknownBlocks(); n != 15 {
		t.Errorf("%d blocks are unknown", n)
	}
}

// TestSalvageDoubts: without checksums nothing shows whether an SSD that has failed has what it had not been flushed
// for; also if a start has brought the records of it to the journal, and the pending ring is gone.
func TestSalvageDoubts(t *testing.T) {
	for _, mode := range []Mode{Writeback, Writethrough} {
		v := newLossy(t, FormatOptions{NoChecksums: true}, mode)
		v.write(9*BlockSize, fill(9, 1))
		v.flush()
		v.write(0, fill(1, 1))
		v.vanish()
		want := "unverified 9=9, uncertain 0=1"
		if mode == Writethrough { // the backing device has it
			want = "unverified 9=9"
		}
		if got, _ := salvaged(t, v.ssd, v.opts.Pending); got != want {
			t.Errorf("%v: %q, expected %q", mode, got, want)
		}
		left := 4
		if _, err := Open(shortLived{v.ssd, &left}, v.opts); err == nil {
			t.Fatal("the start lives on")
		}
		if got, _ := salvaged(t, v.ssd, nil); got != want {
			t.Errorf("%v, after a start that died: %q, expected %q", mode, got, want)
		}
	}
}

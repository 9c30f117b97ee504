package cache

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// faultyStorage fails reads of chosen pages.
type faultyStorage struct {
	memStorage
	bad map[int64]bool // places of pages
}

func (f faultyStorage) ReadAt(p []byte, off int64) (int, error) {
	for at := off &^ (pageSize - 1); at < off+int64(len(p)); at += pageSize {
		if f.bad[at] {
			return 0, errors.New("medium error")
		}
	}
	return f.memStorage.ReadAt(p, off)
}

// damaged is a cache with a known content, to be damaged.
type damaged struct {
	*harness
	want map[Block]byte // what the cached device has
}

// newDamaged fills a cache: blocks 0 … 39 by writes in the mode, and 60 … 79 by reads. With
// checkpoint all of it is in summaries, and the journal's tail is behind it.
func newDamaged(t *testing.T, mode Mode, checkpoint bool) *damaged {
	dev := make(memStorage, 8<<20)
	if _, err := Format(dev, FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	d := &damaged{newHarness(t, dev, 2<<20), map[Block]byte{}}
	for i := range Block(100) {
		d.put(i, byte(i+100))
	}
	if err := d.c.SetMode(d.b.ID(), mode); err != nil {
		t.Fatal(err)
	}
	for i := range Block(40) {
		d.write(int64(i)*BlockSize, bytes.Repeat([]byte{byte(i + 1)}, BlockSize))
		d.want[i] = byte(i + 1)
	}
	for i := Block(60); i < 80; i++ {
		if _, err := d.read(int64(i)*BlockSize, BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	d.flush()
	d.until("cleaning", func() bool {
		d.b.mu.Lock()
		defer d.b.mu.Unlock()
		return len(d.b.mu.pending) == 0 && len(d.ops) == 0
	})
	if checkpoint {
		d.settle()
	}
	// The next page of the journal says that the tail is behind all this. Then all is quiet.
	d.write(90*BlockSize, bytes.Repeat([]byte{90}, BlockSize))
	d.want[90] = 90
	d.flush()
	for range 100 {
		d.tick()
		for len(d.ops) > 0 {
			d.step()
		}
	}
	return d
}

// put changes a block of the backing device, behind the cache.
func (d *damaged) put(b Block, v byte) {
	copy(d.back[int64(b)*BlockSize:], bytes.Repeat([]byte{v}, BlockSize))
	d.want[b] = v
}

// stop ends it in order.
func (d *damaged) stop() {
	d.t.Helper()
	d.c.StartSettle()
	d.until("settling", func() bool { return len(d.ops) == 0 && d.l.Settled() })
	if err := d.c.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// reopen starts the cache again, if it can, and compares all that it has.
func (d *damaged) reopen() (*Cache, error) {
	d.t.Helper()
	c, err := Open(d.ssd, Options{})
	if err != nil {
		return nil, err
	}
	d.c, d.l = c, c.NewLane(d)
	c.StartBackground(d.l)
	if d.b, err = c.Backing(1); err != nil {
		d.t.Fatal(err)
	}
	for blk, v := range d.want {
		d.wantRead(int64(blk)*BlockSize, bytes.Repeat([]byte{v}, BlockSize))
	}
	if p := c.Verify(); len(p) > 0 {
		d.t.Fatal(p)
	}
	return c, nil
}

// summaryOf is the places of both copies of the summary page of a block.
func (d *damaged) summaryOf(blk Block) (off [2]int64) {
	page := d.c.geo.pageOf(Slot((d.slotOf(blk) - d.c.geo.DataOff) / BlockSize))
	return [2]int64{d.c.geo.SummaryOff[0] + page*pageSize, d.c.geo.SummaryOff[1] + page*pageSize}
}

func (d *damaged) spoil(off int64) { d.ssd[off+100] ^= 1 }

func check(t *testing.T, dev Storage) *Report {
	t.Helper()
	rep, err := Check(t.Context(), dev, CheckOptions{Data: true, Scan: true})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func kinds(r *Report) string {
	var list []string
	for _, p := range r.Problems {
		if p.Meaning == "" || p.Todo == "" {
			return fmt.Sprintf("%s has no advice", p.Kind)
		}
		list = append(list, fmt.Sprintf("%s %s", p.Kind, p.Severity))
	}
	return strings.Join(list, ", ")
}

// TestDamage is one row per thing that can be lost: what check says of it, whether the cache starts,
// and what the start then has.
func TestDamage(t *testing.T) {
	const all, cold = 61, 0
	for _, tt := range []struct {
		name       string
		mode       Mode
		checkpoint bool
		ordered    bool // it is stopped in order
		damage     func(d *damaged) Storage
		check      string // kinds and severities
		refused    string // words; empty: it starts
		cached     int    // blocks after the start
	}{
		{
			name: "one copy of the superblock", mode: Writeback, cached: all,
			damage: func(d *damaged) Storage { d.spoil(superOffB); return d.ssd },
			check:  "superblock-copy harmless",
		},
		{
			name: "both copies of the superblock", mode: Writeback,
			damage:  func(d *damaged) Storage { d.spoil(superOffA); d.spoil(superOffB); return d.ssd },
			check:   "superblocks dirty-lost",
			refused: "superblock",
		},
		{
			name: "one copy of a summary", mode: Writeback, checkpoint: true, cached: all,
			damage: func(d *damaged) Storage { d.spoil(d.summaryOf(3)[0]); return d.ssd },
			check:  "summary-copy harmless",
		},
		{
			name: "one copy of a summary cannot be read", mode: Writeback, checkpoint: true, cached: all,
			damage: func(d *damaged) Storage {
				return faultyStorage{d.ssd, map[int64]bool{d.summaryOf(3)[1]: true}}
			},
			check: "summary-copy harmless",
		},
		{
			name: "both copies of a summary, the journal has it", mode: Writeback, checkpoint: true, cached: all,
			damage: func(d *damaged) Storage {
				off := d.summaryOf(3)
				d.spoil(off[0])
				d.spoil(off[1])
				return d.ssd
			},
			check: "summary-rebuilt harmless",
		},
		{
			name: "both copies of a summary and the old journal, dirty", mode: Writeback, checkpoint: true,
			damage: func(d *damaged) Storage {
				off := d.summaryOf(3)
				d.spoil(off[0])
				d.spoil(off[1])
				d.forgetHistory()
				return d.ssd
			},
			check:   "summary dirty-lost",
			refused: "both copies of 1 summary pages are lost",
		},
		{
			name: "both copies of a summary and the old journal, clean", mode: Writethrough,
			checkpoint: true, cached: all - 16,
			damage: func(d *damaged) Storage {
				off := d.summaryOf(3)
				d.spoil(off[0])
				d.spoil(off[1])
				d.forgetHistory()
				return d.ssd
			},
			check: "summary clean-lost",
		},
		{
			name: "a journal page, dirty", mode: Writeback,
			damage:  func(d *damaged) Storage { d.spoilJournal(1); return d.ssd },
			check:   "journal dirty-lost",
			refused: "1 pages of the journal are lost",
		},
		{
			name: "a journal page, clean", mode: Writethrough, cached: cold,
			damage: func(d *damaged) Storage { d.spoilJournal(1); return d.ssd },
			check:  "journal clean-lost",
		},
		{
			name: "a journal page cannot be read, clean", mode: Writethrough, cached: cold,
			damage: func(d *damaged) Storage {
				return faultyStorage{d.ssd, map[int64]bool{d.c.geo.journalPageOff(1): true}}
			},
			check: "journal clean-lost",
		},
		{
			name: "the whole journal, dirty", mode: Writeback, checkpoint: true,
			damage: func(d *damaged) Storage {
				clear(d.ssd[journalOff : journalOff+int64(d.c.geo.JournalPages)*pageSize])
				return d.ssd
			},
			check:   "journal-end dirty-lost",
			refused: "newest pages of the journal",
		},
		{
			name: "the whole journal after a stop in order", mode: Writeback, ordered: true, cached: all,
			damage: func(d *damaged) Storage {
				clear(d.ssd[journalOff : journalOff+int64(d.c.geo.JournalPages)*pageSize])
				return d.ssd
			},
			check: "journal harmless",
		},
		{
			name: "summaries wiped after a stop in order, dirty", mode: Writeback, checkpoint: true, ordered: true,
			damage: func(d *damaged) Storage {
				g := &d.c.geo
				clear(d.ssd[g.SummaryOff[0]:g.DataOff])
				return d.ssd
			},
			check:   "dirty-count dirty-lost",
			refused: "had 41 dirty blocks when it was stopped",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDamaged(t, tt.mode, tt.checkpoint)
			if tt.ordered {
				d.stop()
			}
			dev := tt.damage(d)
			if !tt.ordered {
				d.c.Abandon() // as a power cut does
			}
			before := bytes.Clone(d.ssd)
			rep := check(t, dev)
			if got := kinds(rep); got != tt.check {
				t.Errorf("check finds %q, want %q: %v", got, tt.check, rep.Problems)
			}
			if rep.Startable != (tt.refused == "") {
				t.Errorf("check says startable %v: %s", rep.Startable, rep.Refusal)
			}
			if !bytes.Equal(before, d.ssd) {
				t.Error("check has changed the device")
			}
			f, faulty := dev.(faultyStorage)
			if faulty {
				d.ssd = f.memStorage
			}
			c, err := Open(dev, Options{})
			if tt.refused != "" {
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.refused) {
					t.Fatalf("opened with %v, want words %q", err, tt.refused)
				}
				if !bytes.Equal(before, d.ssd) {
					t.Error("a start that was refused has changed the device")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.Repaired() == "" {
				t.Error("nothing is said of the repair")
			}
			t.Log(c.Repaired())
			if got := c.Status().CachedBytes / BlockSize; got != int64(tt.cached) {
				t.Errorf("%d blocks are cached, want %d", got, tt.cached)
			}
			// It is as good as new, also when power fails at once, and with what was damaged good again.
			c.Abandon()
			if rep := check(t, d.ssd); len(rep.Problems) > 0 {
				t.Errorf("after the start: %v", rep.Problems)
			}
			if _, err := d.reopen(); err != nil {
				t.Fatal(err)
			}
			d.write(3*BlockSize, bytes.Repeat([]byte{0xaa}, BlockSize))
			d.want[3] = 0xaa
			d.stop()
			if _, err := d.reopen(); err != nil {
				t.Fatal(err)
			}
			d.stop()
			if rep := check(t, d.ssd); len(rep.Problems) > 0 {
				t.Errorf("in the end: %v", rep.Problems)
			}
		})
	}
}

// spoilJournal damages a page of the journal.
func (d *damaged) spoilJournal(seq uint64) { d.spoil(d.c.geo.journalPageOff(seq)) }

// forgetHistory takes the pages before the journal's tail away, as a turn of the ring does.
func (d *damaged) forgetHistory() {
	d.t.Helper()
	c, rec, err := inspect(d.t.Context(), d.ssd, nil, false, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.release()
	if rec.top.tail < 2 {
		d.t.Fatal("the tail is at the first page")
	}
	for seq := uint64(1); seq < rec.top.tail; seq++ {
		off := d.c.geo.journalPageOff(seq)
		clear(d.ssd[off : off+pageSize])
	}
}

// TestGiveUp starts a cache that is refused, by giving up what may be lost.
func TestGiveUp(t *testing.T) {
	d := newDamaged(t, Writeback, false)
	d.spoilJournal(1)
	d.c.Abandon()
	if _, err := Open(d.ssd, Options{GiveUp: []BackingID{2}}); !errors.Is(err, ErrDirtyDamage) {
		t.Fatalf("another device given up: %v", err)
	}
	c, err := Open(d.ssd, Options{GiveUp: []BackingID{1}})
	if err != nil {
		t.Fatal(err)
	}
	if n := c.Status().CachedBytes; n != 0 {
		t.Errorf("%d bytes are cached", n)
	}
	c.Abandon()
	for blk := range d.want {
		d.want[blk] = byte(blk + 100) // as the backing device has it
	}
	if _, err := d.reopen(); err != nil {
		t.Fatal(err)
	}
}

// TestConfirmDrops: what Options.Confirm names is gone, durably, before anything is served.
func TestConfirmDrops(t *testing.T) {
	d := newDamaged(t, Writeback, true)
	d.c.Abandon()
	seen := int64(0)
	c, err := Open(d.ssd, Options{Confirm: func(c *Cache) ([]BackingID, error) {
		seen = c.DirtyBlocks(1)
		return []BackingID{1}, nil
	}})
	if err != nil || seen != 41 {
		t.Fatalf("%v, %d dirty blocks", err, seen)
	}
	c.Abandon()
	if rep := check(t, d.ssd); len(rep.Problems) > 0 || rep.CachedBlocks != 0 {
		t.Errorf("%+v", rep)
	}
	before := bytes.Clone(d.ssd)
	if _, err := Open(d.ssd, Options{Confirm: func(*Cache) ([]BackingID, error) {
		return nil, ErrIdentity
	}}); !errors.Is(err, ErrIdentity) {
		t.Fatal(err)
	}
	if !bytes.Equal(before, d.ssd) {
		t.Error("a start that was refused has changed the SSD")
	}
}

package sim

import (
	"bytes"
	"context"
	"encoding/binary"

	"ubcache/cache"
)

// damage is what was done to a page of metadata before a start.
type damage struct {
	off       int64
	old       []byte
	mayRefuse bool
}

// undo brings the page back, as somebody with a backup would.
func (d *damage) undo(s *Sim) {
	s.ssd.writeFUA(d.old, d.off)
}

// The parts of metadata pages that differ between two copies or say what a page is; see FORMAT.md.
const (
	superA, superB   = 64 << 10, 128 << 10
	superAll         = pageBytes + cache.MaxBackings*512
	journalOff       = 1 << 20
	summaryMagic     = "UBSS"
	journalMagic     = "UBJL"
	jpSeq            = 24
	smEpoch          = 32
	ownPlace, ownSum = 40, 56 // of summary pages
	superIn          = 40     // after sequence, place and checksum
)

// damageMetadata hurts one page of which another copy is whole, or one page of the journal that later
// ones prove to have been written. nil if it has found none.
func (s *Sim) damageMetadata() *damage {
	var d *damage
	switch s.rng.IntN(3) {
	case 0:
		d = s.damageSuper()
	case 1:
		d = s.damageSummary()
	default:
		d = s.damageJournal()
	}
	return s.damagePage(d)
}

// damagePage hurts the page, if there is one that is whole.
func (s *Sim) damagePage(d *damage) *damage {
	if d == nil || s.ssd.marked(d.off, pageBytes, markUnreadable|markWrong) {
		return nil
	}
	at := d.off + int64(s.rng.IntN(pageBytes/sectorSize))*sectorSize
	s.trace("damaged metadata: sector at %d", at)
	s.happened(FaultMetadata)
	if s.rng.IntN(2) == 0 {
		s.ssd.marks[at/sectorSize] |= markUnreadable
	} else {
		s.corrupt(s.ssd, at)
	}
	return d
}

func (s *Sim) damageAt(off int64) *damage {
	return &damage{off: off, old: bytes.Clone(s.ssd.now[off : off+pageBytes])}
}

// damageSuper chooses a copy of the superblock. A crash may have come between the two.
func (s *Sim) damageSuper() *damage {
	a, b := s.ssd.now[superA:][:superAll], s.ssd.now[superB:][:superAll]
	if !bytes.Equal(a[superIn:], b[superIn:]) || s.ssd.marked(superA, superAll, markUnreadable|markWrong) ||
		s.ssd.marked(superB, superAll, markUnreadable|markWrong) {
		return nil
	}
	if s.rng.IntN(2) == 0 {
		return s.damageAt(superA)
	}
	return s.damageAt(superB)
}

// damageSummary chooses a copy of a summary page that both copies have alike.
func (s *Sim) damageSummary() *damage {
	pages := int((s.geo.SummaryOff[1] - s.geo.SummaryOff[0]) / pageBytes)
	for range 4 {
		at := int64(s.rng.IntN(pages)) * pageBytes
		offs := [2]int64{s.geo.SummaryOff[0] + at, s.geo.SummaryOff[1] + at}
		a, b := s.ssd.now[offs[0]:][:pageBytes], s.ssd.now[offs[1]:][:pageBytes]
		if string(a[:4]) != summaryMagic || !bytes.Equal(a[:ownPlace], b[:ownPlace]) ||
			!bytes.Equal(a[ownSum+8:], b[ownSum+8:]) ||
			s.ssd.marked(offs[0], pageBytes, markUnreadable|markWrong) ||
			s.ssd.marked(offs[1], pageBytes, markUnreadable|markWrong) {
			continue
		}
		return s.damageAt(offs[s.rng.IntN(2)])
	}
	return nil
}

// damageJournal chooses a page that the newest good one says is durable.
func (s *Sim) damageJournal() *damage {
	dump, err := cache.Dump(context.Background(), s.ssd, cache.DumpOptions{Journal: true, Pending: s.ring})
	if err != nil {
		return nil
	}
	var durable uint64
	for _, p := range dump.Journal {
		if !p.Lost {
			durable = p.Durable
		}
	}
	if durable == 0 {
		return nil
	}
	s.wishes.forget() // without dirty data the cache may start empty
	seq := durable - min(durable-1, uint64(s.rng.IntN(8)))
	d := s.damageAt(journalOff + int64(seq%uint64(s.geo.JournalPages))*pageBytes)
	if string(d.old[:4]) != journalMagic || binary.LittleEndian.Uint64(d.old[jpSeq:]) != seq {
		return nil
	}
	d.mayRefuse = true
	return d
}

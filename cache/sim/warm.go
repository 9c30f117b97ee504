package sim

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"ubcache/cache"
)

// warmth checks that a start after a crash is warm. What has to be there is known without the engine's recovery:
//   - after a kill all that was cached, as each record is in the pending ring or in the journal;
//   - after a power cut, or when an SSD is back, what was cached where the journal says. The pages of the journal are looked at
//     as they are written; records count once all pages of their commit are durable.
//
// What the SSD fails to return need not be there, nor what it has missed changes of, nor anything after one of its flushes
// has failed.
type warmth struct {
	// was is what the process that died had, durable what the journal has of it, and cut says that only that counts. nil if
	// nothing has died, or if anything may be lost.
	was     map[warmBlock]cache.Place
	durable map[warmBlock]int64
	cut     bool
	died    bool
	back    bool // the SSD was away
	empty   bool // the start may find nothing
	// next is the page of the journal that follows those that are in durable, 0 if it is not known, and pages are later ones
	// that are complete.
	next  uint64
	pages map[uint64][]byte
}

type warmBlock struct {
	id    cache.BackingID
	block uint64
}

// The parts of pages and records of the journal; see FORMAT.md.
const (
	jpCount, jpFlags, jpDurable, jpRecords = 6, 36, 56, 72
	jpEnds                                 = 1 << 1
	jrBytes                                = 24
	jrMap, jrUnmap, jrFree, jrDrop         = 1, 2, 4, 5
)

// ofJournal reports whether an operation writes pages of the journal.
func (s *Sim) ofJournal(op *cache.Op) bool {
	return op.Dev == cache.SSD && op.Kind == cache.OpWrite && op.Off >= journalOff &&
		op.Off < journalOff+int64(s.geo.JournalPages)*pageBytes
}

// journalBegins is for pages that are about to be written, once more perhaps.
func (s *Sim) journalBegins(op *cache.Op) {
	for at := int64(0); at < op.Len && s.ofJournal(op); at += pageBytes {
		delete(s.warm.pages, binary.LittleEndian.Uint64(op.Mem[at+jpSeq:]))
	}
}

// journalEnds is for an operation that has gone well.
func (s *Sim) journalEnds(op *cache.Op) {
	w, le := &s.warm, binary.LittleEndian
	for at := int64(0); at < op.Len && s.ofJournal(op); at += pageBytes {
		p := op.Mem[at:][:pageBytes]
		if w.next == 0 {
			w.next = le.Uint64(p[jpDurable:]) + 1
		}
		if op.FUA || le.Uint16(p[jpCount:]) == 0 {
			w.pages[le.Uint64(p[jpSeq:])] = slices.Clone(p)
		}
	}
	for end := w.next; w.pages[end] != nil; end++ {
		if le.Uint32(w.pages[end][jpFlags:])&jpEnds == 0 {
			continue
		}
		for ; w.next <= end; w.next++ {
			s.warmPage(w.pages[w.next])
			delete(w.pages, w.next)
		}
	}
}

// warmPage applies the records of a page.
func (s *Sim) warmPage(p []byte) {
	le, all := binary.LittleEndian, s.warm.durable
	for i := range int(le.Uint16(p[jpCount:])) {
		r := p[jpRecords+i*jrBytes:][:jrBytes]
		k := warmBlock{cache.BackingID(le.Uint16(r[4:])), le.Uint64(r[16:])}
		count, slot := uint64(le.Uint32(r[8:])), int64(le.Uint32(r[12:]))
		switch r[0] {
		case jrMap:
			all[k] = s.geo.DataOff + slot*cache.BlockSize
		case jrUnmap: // dirty ones may stay, and then they are not counted
			maps.DeleteFunc(all, func(o warmBlock, _ int64) bool { return o.id == k.id && o.block-k.block < count })
		case jrFree:
			if s.retired.buckets[slot] {
				s.res.Emptied++
			}
			from := s.geo.DataOff + slot*s.geo.BucketBytes
			maps.DeleteFunc(all, func(_ warmBlock, off int64) bool { return off >= from && off < from+s.geo.BucketBytes })
		case jrDrop:
			maps.DeleteFunc(all, func(o warmBlock, _ int64) bool { return o.id == k.id })
		}
	}
}

// cached is what the process has in its index.
func (s *Sim) cached() map[warmBlock]cache.Place {
	all := map[warmBlock]cache.Place{}
	for i, id := range s.ids {
		for at := int64(0); id != noID && at < s.models[i].bytes(); at += cache.BlockSize {
			if p, ok := s.c.Locate(id, at); ok {
				all[warmBlock{id, uint64(at / cache.BlockSize)}] = p
			}
		}
	}
	return all
}

// warmDies is for a process, or a start, that dies.
func (s *Sim) warmDies(how Crash) {
	w := &s.warm
	if !w.died {
		w.died, w.was, w.back = true, s.cached(), s.away()
		w.cut = w.back
	}
	w.cut = w.cut || !how.killed()
	if s.van.forgot {
		w.was = nil
	}
}

// warmStops is for a process that ends in order: all that it has is durable.
func (s *Sim) warmStops() {
	s.warm.durable = map[warmBlock]int64{}
	for k, p := range s.cached() {
		s.warm.durable[k] = p.Off
	}
}

// warmStarts compares what a start has found, and begins anew.
func (s *Sim) warmStarts() {
	w, now := &s.warm, s.cached()
	for i := range s.ids {
		s.compareWarm(i, now)
	}
	if s.c.Loading().Percent == 100 {
		clear(w.durable) // the start has committed all that it knows
	}
	for k, p := range now {
		w.durable[k] = p.Off
	}
	*w = warmth{durable: w.durable, pages: map[uint64][]byte{}}
}

func (s *Sim) compareWarm(i int, now map[warmBlock]cache.Place) {
	const bad = markUnreadable | markWrong | markDoubted
	w, id := &s.warm, s.ids[i]
	if w.empty || id == noID || s.leaves[i].tried || slices.Contains(s.van.drop, s.uuids[i]) {
		return
	}
	for block := range uint64(s.models[i].bytes()+cache.BlockSize-1) / cache.BlockSize {
		k := warmBlock{id, block}
		p, had := w.was[k]
		durable := w.durable[k] == p.Off
		if !had || w.cut && !durable || s.ssd.marked(p.Off, cache.BlockSize, bad) {
			continue
		}
		if is, ok := now[k]; !ok || is.Off == p.Off && p.Sectors&^is.Sectors != 0 {
			s.fail(fmt.Errorf("block %d of device %d is cold: it was %+v before, on record %v, and is %+v, %v", block, id, p,
				durable, is, ok))
			return
		}
		switch {
		case p.Dirty:
		case w.back:
			s.res.WarmBack++
		case w.cut:
			s.res.WarmCut++
		default:
			s.res.WarmKilled++
		}
	}
}

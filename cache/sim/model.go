package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// version is one content that a sector was given: number counts all writes, and stamp is what the
// content is made of (0 for zeroes).
type version struct{ number, stamp uint64 }

// versions is a set that is never changed in place: copies of it stay what they are.
type versions []version

// with is the set and v.
func (s versions) with(v version) versions { return append(s[:len(s):len(s)], v) }

// without is the set without those that gone names.
func (s versions) without(gone func(version) bool) versions {
	i := slices.IndexFunc(s, gone)
	if i < 0 {
		return s
	}
	rest := append(make(versions, 0, len(s)-1), s[:i]...)
	for _, v := range s[i+1:] {
		if !gone(v) {
			rest = append(rest, v)
		}
	}
	return rest
}

// same reports whether two sets are one and the same in memory.
func (s versions) same(o versions) bool {
	return len(s) == len(o) && len(s) > 0 && &s[0] == &o[0]
}

// sharing makes sets that come of one set by the same change one set again, as neighbouring sectors mostly
// have the same: the change is made once for all of them.
type sharing struct{ was, is [2]versions }

// change is what f makes of the set.
func (c *sharing) change(s versions, f func(versions) versions) versions {
	for i := range c.was {
		if c.was[i].same(s) {
			return c.is[i]
		}
	}
	c.was[1], c.is[1] = c.was[0], c.is[0]
	c.was[0], c.is[0] = s, f(s)
	return c.is[0]
}

func (s versions) has(v version) bool { return slices.Contains(s, v) }

// sector is what the model knows of one sector of a cached device.
type sector struct {
	// legal are the versions that a read may return now. More than one, while writes are in
	// flight, after concurrent ones, or after a crash until a read has shown which it is.
	legal versions
	// durable are those it may return after a power cut.
	durable versions
	flying  int    // writes in flight
	listed  bool   // in model.touched
	changed uint64 // clock of the last issue or acknowledgement of a write
}

// model is the content of one cached device.
type model struct {
	sectors []sector
	touched []int    // sectors with more than one durable version, and perhaps others
	acked   []uint64 // by version number: clock of the acknowledgement or the crash, 0 if in flight
	reads   []*modelRead
	clock   uint64
	cut     uint64      // clock of the last power cut
	order   *orderModel // nil unless devices are ordered
}

// modelRead is a read in flight: what each of its sectors may return.
type modelRead struct {
	first   int
	allowed []versions
	issued  uint64
	kept    []bool // sectors that the cache had then, if a loss is possible
}

// open reports whether the read may return different contents.
func (r *modelRead) open() bool {
	return slices.ContainsFunc(r.allowed, func(v versions) bool { return len(v) > 1 })
}

// modelFlush is a flush in flight: what was legal when it was issued.
type modelFlush struct {
	sectors []int
	legal   []versions
	number  uint64
	order   uint64 // orderModel.clock of its issue
}

func newModel(size int64) *model {
	m := &model{sectors: make([]sector, size/sectorSize), clock: 1}
	m.acked = []uint64{1}
	first := versions{{}}
	for i := range m.sectors {
		m.sectors[i].legal, m.sectors[i].durable = first, first
	}
	return m
}

func (m *model) bytes() int64 { return int64(len(m.sectors)) * sectorSize }

// fillSector makes the content of sector n of that stamp.
func fillSector(p []byte, n int, stamp uint64) {
	if stamp == 0 {
		clear(p[:sectorSize])
		return
	}
	v := stamp*0x9e3779b97f4a7c15 + uint64(n)
	for i := 0; i < sectorSize; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v+uint64(i))
	}
	binary.LittleEndian.PutUint64(p, stamp)
}

func matches(p []byte, n int, stamp uint64) bool {
	p = p[:sectorSize]
	v, first := stamp*0x9e3779b97f4a7c15+uint64(n), stamp
	if stamp == 0 {
		return string(p) == string(zeroes[:sectorSize])
	}
	if binary.LittleEndian.Uint64(p) != first {
		return false
	}
	for i := 8; i < sectorSize; i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != v+uint64(i) {
			return false
		}
	}
	return true
}

// write notes that a write was issued.
func (m *model) write(first, n int, zero bool) version {
	m.clock++
	v := version{number: uint64(len(m.acked)), stamp: uint64(len(m.acked))}
	m.acked = append(m.acked, 0)
	if zero {
		v.stamp = 0
	}
	var sets sharing
	with := func(s versions) versions { return s.with(v) }
	for i := first; i < first+n; i++ {
		s := &m.sectors[i]
		s.legal, s.durable = sets.change(s.legal, with), sets.change(s.durable, with)
		s.flying++
		s.changed = m.clock
		if !s.listed {
			s.listed = true
			m.touched = append(m.touched, i)
		}
	}
	m.order.write(v, first, n)
	for _, r := range m.reads {
		lo, hi := max(first, r.first), min(first+n, r.first+len(r.allowed))
		for i := lo; i < hi; i++ {
			r.allowed[i-r.first] = sets.change(r.allowed[i-r.first], with)
		}
	}
	return v
}

// writeDone notes the acknowledgement of a write that was issued at that clock. maybe says that
// the old content may have stayed, as for a discard; fua that it is durable.
func (m *model) writeDone(first, n int, v version, issued uint64, maybe, fua bool) {
	m.clock++
	m.acked[v.number] = m.clock
	m.order.done(v, maybe, fua)
	// What was acknowledged before this one was issued is gone; what was in flight beside it
	// may have come later.
	var sets sharing
	without := func(s versions) versions {
		return s.without(func(o version) bool {
			return o != v && m.acked[o.number] != 0 && m.acked[o.number] < issued
		})
	}
	for i := first; i < first+n; i++ {
		s := &m.sectors[i]
		s.flying--
		s.changed = m.clock
		if maybe {
			continue
		}
		s.legal = sets.change(s.legal, without)
		if fua {
			// Not by what is legal now: something newer, not durable itself, may have replaced one
			// that was in flight beside this write and came after it.
			s.durable = sets.change(s.durable, without)
		}
	}
}

// writeUndone notes that a write has failed without any effect, as it promises: nothing may have seen
// it, and nothing will.
func (m *model) writeUndone(first, n int, v version) {
	m.writeDead(first, n, v)
	m.order.undone(v)
	same := func(o version) bool { return o == v }
	for i := first; i < first+n; i++ {
		s := &m.sectors[i]
		s.legal, s.durable = s.legal.without(same), s.durable.without(same)
	}
	for _, r := range m.reads {
		for i := max(first, r.first); i < min(first+n, r.first+len(r.allowed)); i++ {
			r.allowed[i-r.first] = r.allowed[i-r.first].without(same)
		}
	}
}

// writeDead notes that a write will never be acknowledged.
func (m *model) writeDead(first, n int, v version) {
	m.clock++
	m.order.dead(v)
	m.acked[v.number] = m.clock
	for i := first; i < first+n; i++ {
		m.sectors[i].flying--
		m.sectors[i].changed = m.clock
	}
}

func (m *model) read(first, n int) *modelRead {
	m.clock++
	r := &modelRead{first: first, allowed: make([]versions, n), issued: m.clock}
	for i := range r.allowed {
		r.allowed[i] = m.sectors[first+i].legal
	}
	m.reads = append(m.reads, r)
	return r
}

func (m *model) forget(r *modelRead) {
	m.reads = slices.DeleteFunc(m.reads, func(o *modelRead) bool { return o == r })
}

// readDone compares what a read returned, and learns from it.
func (m *model) readDone(r *modelRead, data []byte) error {
	m.forget(r)
	for i, allowed := range r.allowed {
		n := r.first + i
		p := data[i*sectorSize:]
		if !slices.ContainsFunc(allowed, func(o version) bool { return matches(p, n, o.stamp) }) {
			return fmt.Errorf("sector %d reads as version %d, legal are %v (durable %v)",
				n, binary.LittleEndian.Uint64(p), allowed, m.sectors[n].durable)
		}
		s := &m.sectors[n]
		if s.flying > 0 || s.changed >= r.issued || len(s.legal) == 1 {
			continue
		}
		other := func(o version) bool { return !matches(p, n, o.stamp) }
		s.legal = s.legal.without(other)
		if s.changed < m.cut {
			// What a crash left and a read has shown, another crash does not change.
			if s.durable = s.durable.without(other); len(s.legal) == 1 {
				m.order.there(n, s.legal[0], true)
			}
		}
	}
	return nil
}

func (m *model) flush() *modelFlush {
	f := &modelFlush{number: uint64(len(m.acked)) - 1}
	f.order = m.order.flush()
	keep := m.touched[:0]
	for _, i := range m.touched {
		s := &m.sectors[i]
		if s.listed = len(s.durable) > 1; s.listed {
			keep = append(keep, i)
			f.sectors, f.legal = append(f.sectors, i), append(f.legal, s.legal)
		}
	}
	m.touched = keep
	return f
}

// flushDone notes that what was legal when the flush was issued, or newer, is durable; and that it is
// there, whatever the device may have lost meanwhile.
func (m *model) flushDone(f *modelFlush) {
	m.order.flushDone(f.order)
	var sets sharing
	var then versions
	without := func(s versions) versions {
		return s.without(func(o version) bool { return o.number <= f.number && !then.has(o) })
	}
	for i, n := range f.sectors {
		if !then.same(f.legal[i]) {
			sets, then = sharing{}, f.legal[i]
		}
		s := &m.sectors[n]
		s.durable, s.legal = sets.change(s.durable, without), sets.change(s.legal, without)
	}
}

// powerCut forgets what was not durable. Writes in flight have been declared dead before.
func (m *model) powerCut() {
	m.clock++
	m.cut = m.clock
	m.reads = nil
	m.order.powerCut()
	for _, i := range m.touched {
		m.sectors[i].legal = m.sectors[i].durable
	}
}

package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"ubcache/cache"
)

// Of some histories it is a part that backing devices go away and come back. The simulator plays the
// daemon's guard of each:
//   - operations that are under way when a device goes fail at some time, perhaps when it is back, and have
//     happened by then, or not, or in part; others fail while it is away, and have not happened;
//   - when the engine suspects a device it is probed, which takes time. One that does not answer is held
//     for, or not waited for any more, by turns;
//   - it comes back when no operation on its old file is under way; as it was, or without any part of
//     what it had not been flushed for. One that was not missed has lost nothing;
//   - who starts anew finds it there.
//
// While a device is held for nothing fails for it, but what is overtaken by two such failures of a
// device that is there in between. When it is not waited for, what needs it may fail, which the read of
// something that the SSD has does not. What the SSD has is not lost when the device loses it. What a
// client was told and is lost, the next FLUSH reports, also if the daemon is killed before. And what is clean on the SSD is what the device
// has when it comes back.

// absence is what is known of a backing device.
type absence struct {
	suspected bool   // the engine has asked since the last probe began
	probe     uint64 // under way, or 0
	owed      uint64 // clock of the model at the loss that a FLUSH has to report, or 0
}

var goneErrors = [...]error{syscall.EIO, syscall.ENODEV, syscall.ENXIO, syscall.ENOSPC}

// goneStep takes a backing device away, or brings it back.
func (s *Sim) goneStep() {
	i := s.rng.IntN(len(s.backs))
	d := s.backs[i]
	if d.gone != nil {
		s.revive(i)
		return
	}
	s.leave(i, goneErrors[s.rng.IntN(len(goneErrors))], s.rng.IntN(2) == 0)
}

// leave takes a backing device away.
func (s *Sim) leave(i int, err error, forgets bool) {
	d := s.backs[i]
	d.gone, d.forgets = err, forgets
	s.res.Gone++
	s.trace("device %d is gone: %v", s.ids[i], d.gone)
	for _, f := range s.ops {
		if s.disk(f.op.Dev) == d {
			f.hung = d.gone
		}
	}
}

// absent is the error of an operation on a backing device that is not there, or was not.
func (s *Sim) absent(f *flyingOp) error {
	op := f.op
	if op.Dev == cache.SSD {
		return nil
	}
	d := s.disk(op.Dev)
	err := d.gone
	if f.hung != nil {
		switch err = f.hung; s.rng.IntN(3) {
		case 0:
			s.effect(f)
		case 1:
			s.partly(op, d)
		}
	}
	if err != nil {
		s.trace("  op %s dev=%d off=%d len=%d: %v", op.Kind, op.Dev, op.Off, op.Len, err)
		s.excuseAbsent(op)
	}
	return err
}

// made notes for which requests a change of a backing device may have been that has ended.
func (s *Sim) made(op *cache.Op) {
	if op.Dev == cache.SSD || op.Kind == cache.OpRead || op.Kind == cache.OpFlush {
		return
	}
	for _, r := range s.reqs {
		if r.written && r.Backing == op.Dev && r.Off <= op.Off && op.Off+op.Len <= r.Off+r.Len {
			r.made = true
		}
	}
}

// excuseAbsent notes which requests may fail for an operation that the device's absence has failed: if
// it turns out to be there, those whose operations are tried again in vain, and those that flush.
func (s *Sim) excuseAbsent(op *cache.Op) {
	if op.Kind == cache.OpFlush {
		s.lossy |= 1 << op.Dev
	}
	s.unkept(op)
	for _, r := range s.reqs {
		over := r.Off < op.Off+op.Len && op.Off < r.Off+r.Len
		switch {
		case r.Backing != op.Dev:
		case op.Kind == cache.OpFlush && r.Op != cache.ReqRead:
			r.excuse |= excuseBacking
		case s.cfg.Ordered && op.Kind != cache.OpRead && r.Op != cache.ReqRead && s.presence(r.dev) == cache.Present:
			r.excuse |= excuseBacking // it may wait for that, which has been tried before
		case over && (op.Kind == cache.OpRead) == (r.Op == cache.ReqRead),
			over && op.Kind == cache.OpRead && r.excuse&restores != 0:
			if r.excuse&failedOnce != 0 {
				r.excuse |= excuseBacking
			}
			r.excuse |= failedOnce
		}
	}
}

// suspect is cache.Options.Suspect.
func (s *Sim) suspect(id cache.BackingID) {
	for i := range s.ids {
		if s.ids[i] == id {
			s.absences[i].suspected = true
		}
	}
}

// guard does what the daemon does about backing devices.
func (s *Sim) guard() {
	if s.cfg.Gone == 0 || s.err != nil {
		return
	}
	for i, id := range s.ids {
		d, a := s.backs[i], &s.absences[i]
		if d.gone != nil && (s.ending || s.rng.IntN(12) == 0) {
			s.revive(i)
		}
		switch p := s.presence(i); {
		case p == cache.Present && a.probe != 0 && d.gone == nil:
			s.trace("device %d answers", id)
			s.c.Alive(id, a.probe)
			a.probe = 0
		case p == cache.Present && a.probe != 0:
			a.probe = 0
			s.setPresence(i, cache.Holding+cache.Presence(s.rng.IntN(5)/4))
		case p == cache.Present && a.suspected:
			a.suspected, a.probe = false, s.c.BeginProbe(id)
		case p == cache.Present:
		case d.gone == nil && s.quiet(id):
			s.giveBack(i)
		case s.rng.IntN(8) == 0:
			s.setPresence(i, cache.Holding+cache.Failing-p)
		}
	}
}

// presence is what the engine takes device i for.
func (s *Sim) presence(i int) cache.Presence {
	b, err := s.c.Backing(s.ids[i])
	if err != nil {
		return cache.Present
	}
	return b.Presence()
}

func (s *Sim) setPresence(i int, p cache.Presence) {
	s.trace("device %d: %v", s.ids[i], p)
	for _, r := range s.reqs {
		if r.dev == i && p == cache.Failing {
			r.excuse |= excuseGone
			if r.written { // a change that waits fails now
				s.redirty(r.Backing, r.Off, r.Len)
			}
		}
	}
	s.c.SetPresence(s.ids[i], p)
}

// quiet reports whether no lane has an operation on the device under way.
func (s *Sim) quiet(id cache.BackingID) bool {
	for _, l := range s.lanes {
		if !l.l.Quiet(id) {
			return false
		}
	}
	return true
}

// allPresent reports whether every device is back.
func (s *Sim) allPresent() bool {
	for i := range s.ids {
		if s.presence(i) != cache.Present || s.backs[i].gone != nil {
			return false
		}
	}
	return true
}

// revive makes a device answer again. What it has lost is gone from then on, though the engine learns of it only when it is given the
// device back.
func (s *Sim) revive(i int) {
	d := s.backs[i]
	s.trace("device %d is there again", s.ids[i])
	d.gone = nil
	if d.forgets && s.presence(i) != cache.Present {
		d.forgot = true
		s.forget(i)
	}
}

// giveBack ends the absence of a device that is there again.
func (s *Sim) giveBack(i int) {
	id, d, a := s.ids[i], s.backs[i], &s.absences[i]
	*a = absence{owed: a.owed}
	s.res.GivenBack++
	if _, err := s.c.Recognise(id, d, 1<<30); errors.Is(err, cache.ErrIdentity) {
		s.fail(fmt.Errorf("device %d comes back: %w", id, err))
	}
	if d.forgot || s.rng.IntN(2) == 0 { // nobody may know that nothing is lost
		s.lose(i)
	}
	s.setPresence(i, cache.Present)
}

// lose says that the device may have lost something.
func (s *Sim) lose(i int) {
	id, d := s.ids[i], s.backs[i]
	s.lossy |= 1 << id
	s.redirty(id, 0, d.size)
	s.c.Lost(id)
	d.forgot = false
}

// loseAbsent does what the daemon does at a stop in order about devices that were not given back.
func (s *Sim) loseAbsent() {
	for i := range s.ids {
		if s.presence(i) != cache.Present {
			s.lose(i)
		}
	}
}

// forget makes a device lose part of what it had not been flushed for.
func (s *Sim) forget(i int) {
	d, m := s.backs[i], s.models[i]
	kept := func(sector int) bool {
		p, ok := s.c.Locate(s.ids[i], int64(sector)*sectorSize)
		return ok && p.Sectors>>(sector%blockSectors)&1 != 0
	}
	before := bytes.Clone(d.now)
	d.powerCut(s.rng, nil)
	real := m.loses(kept, before, d.now)
	s.trace("device %d has forgotten what it was not flushed for; something is lost: %v", s.ids[i], real)
	for _, r := range s.reqs {
		// What a change has made of the device before is lost, too, in part or as a whole, if it goes on: with other parts,
		// with the copy on the SSD. It is acknowledged all the same: to clients it is as if it had been lost afterwards,
		// unless it is to be durable.
		if r.dev == i && r.written && !r.FUA && (r.made || r.Attrs != nil) {
			r.doubted = true
		}
	}
	if real {
		s.res.Forgotten++
		s.absences[i].owed = m.clock
	}
}

// loses notes that the device itself has lost any part of what it was not flushed for, which the cache
// may have kept. It reports whether something that was acknowledged, and there, is gone for good.
func (m *model) loses(kept func(sector int) bool, before, after []byte) (real bool) {
	m.clock++
	m.order.powerCut()
	m.showLoss(before, after)
	for _, i := range m.touched {
		s := &m.sectors[i]
		if len(s.durable) == 1 {
			continue
		}
		if s.flying == 0 && kept(i) {
			if len(s.legal) == 1 {
				m.order.there(i, s.legal[0], false)
			}
			continue
		}
		if at := i * sectorSize; s.flying == 0 && s.legal.matches(before[at:], i) && !s.legal.matches(after[at:], i) {
			real = true
		}
		s.legal, s.changed = s.durable, m.clock
	}
	return real
}

// keep notes what the cache has when a read is issued.
func (s *Sim) keep(r *request) {
	if s.cfg.Gone == 0 {
		return
	}
	r.read.kept = make([]bool, r.n)
	for i := range r.n {
		sector := r.first + i
		p, ok := s.c.Locate(r.Backing, int64(sector)*sectorSize)
		r.read.kept[i] = ok && p.Sectors>>(sector%blockSectors)&1 != 0
	}
}

// certain reports whether the cache has had the sector, and nothing has been written there, for as long as the read
// is in flight. Then it does not matter what the device has lost.
func (r *modelRead) certain(i int, s *sector) bool {
	return r.kept != nil && r.kept[i] && s.flying == 0 && s.changed < r.issued
}

// showLoss lets reads in flight return what the device has after the loss: they may have been sent to it before what
// the cache keeps was written, were it durable by now.
func (m *model) showLoss(before, after []byte) {
	// A write of zeroes in flight may yet fail without any effect: then the zeroes were those of another one.
	mayGo := func(v version) bool { return v.stamp == 0 && m.acked[v.number] == 0 }
	for _, r := range m.reads {
		for i := range r.allowed {
			if r.certain(i, &m.sectors[r.first+i]) {
				continue
			}
			at := (r.first + i) * sectorSize
			is, was := after[at:at+sectorSize], before[at:at+sectorSize]
			if !bytes.Equal(is, was) && !r.allowed[i].without(mayGo).matches(is, r.first+i) {
				r.allowed[i] = r.allowed[i].with(version{stamp: binary.LittleEndian.Uint64(is)})
			}
		}
	}
}

// matches reports whether the content of a sector is one of the versions.
func (s versions) matches(p []byte, sector int) bool {
	for _, v := range s {
		if matches(p, sector, v.stamp) {
			return true
		}
	}
	return false
}

// flushed looks at a FLUSH that has ended: the first one that begins after a loss has to fail.
func (s *Sim) flushed(r *request) {
	a := &s.absences[r.dev]
	switch {
	case a.owed == 0:
	case r.Err != nil:
		if r.flush != nil {
			s.res.Reported++
			a.owed = 0
		}
	case r.flush != nil && r.issued > a.owed && !s.flushing(r.dev):
		s.fail(fmt.Errorf("a FLUSH of device %d succeeds, though what was acknowledged is lost, and nobody was told",
			r.Backing))
	}
}

// flushing reports whether another FLUSH of the device is under way, which may be the one that fails.
func (s *Sim) flushing(dev int) bool {
	for _, r := range s.reqs {
		if r.dev == dev && r.Op == cache.ReqFlush {
			return true
		}
	}
	return false
}

// hit reports whether all that a request reads is on the SSD, and whole, so that nothing else is needed.
func (s *Sim) hit(r *request) bool {
	if r.Op != cache.ReqRead || r.Attrs != nil || s.ssdFaults() {
		return false
	}
	for at := r.Off / cache.BlockSize * cache.BlockSize; at < r.Off+r.Len; at += cache.BlockSize {
		p, ok := s.c.Locate(r.Backing, at)
		if !ok || p.Bad || p.Sectors != 1<<blockSectors-1 {
			return false
		}
	}
	return true
}

// ssdFaults reports whether the SSD has failed an operation, or may soon be slow.
func (s *Sim) ssdFaults() bool {
	if s.van.health != cache.HealthOK || s.res.Vanished != 0 {
		return true
	}
	for _, f := range []Fault{
		FaultSSDSector, FaultSSDRead, FaultSSDWrite, FaultSSDFlush, FaultSSDFull, FaultSSDStall, FaultCorrupt,
		FaultLost, FaultMisdirected, FaultMetadata,
	} {
		if s.res.Faults[f] != 0 {
			return true
		}
	}
	return false
}

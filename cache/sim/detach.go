package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"ubcache/cache"
)

// Of some histories it is a part that backing devices are detached, and attached again with another number:
//   - a detach begins under load. It may be cancelled, and it goes on after a crash;
//   - when everything is written back no more requests come, and the device is forgotten; or that is done by force, and what
//     was not written back is lost;
//   - from then on nothing is written to it, and it has by itself, durably, what it had as a cached device;
//   - somebody may write to it before it is attached again, perhaps much later. What was cached of it is never seen again.

// leaving is how far the detach of a device is.
type leaving struct {
	stage leaveStage
	force bool
	tried bool                 // what it had on the SSD may be dropped
	step  func() (bool, error) // cache.Lane.StartDetach
}

type leaveStage uint8

const (
	staying    leaveStage = iota
	draining              // it is in service, and everything is written back
	closing               // it gets no requests any more
	forgetting            // the engine is at it
	detached
)

// noID is the number of a device that is not attached.
const noID cache.BackingID = cache.MaxBackings + 1

// detachStep begins to detach a device.
func (s *Sim) detachStep() {
	i := s.rng.IntN(len(s.backs))
	v := &s.leaves[i]
	if v.stage != staying || !s.well() || s.presence(i) != cache.Present || s.backs[i].gone != nil {
		return
	}
	err := s.c.BeginDetach(s.ids[i])
	s.trace("detach of device %d begins: %v", s.ids[i], err)
	if err == nil {
		v.stage = draining
	}
	s.wishes.forget()
}

// detach goes on with detaches.
func (s *Sim) detach() {
	for i := range s.leaves {
		if s.err != nil || s.van.over {
			return
		}
		v := &s.leaves[i]
		switch v.stage {
		case draining:
			s.drainToLeave(i)
		case closing:
			s.closeToLeave(i)
		case forgetting:
			if !v.force { // else forceOut is at it
				s.forgetStep(i)
			}
		case detached:
			if s.well() && (s.ending || s.rng.IntN(3) == 0) {
				s.attachAgain(i)
			}
		}
	}
}

func (s *Sim) drainToLeave(i int) {
	v := &s.leaves[i]
	b, err := s.c.Backing(s.ids[i])
	if err != nil {
		s.fail(err)
		return
	}
	switch x := s.rng.IntN(40); {
	case s.ending || x == 0:
		if !s.well() {
			return
		}
		err := s.c.CancelDetach(s.ids[i])
		s.trace("detach of device %d is cancelled: %v", s.ids[i], err)
		if err == nil {
			v.stage = staying
		}
	case x == 1:
		v.stage, v.force = closing, true
	case b.Remaining() == 0:
		v.stage, v.force = closing, false
	}
}

func (s *Sim) closeToLeave(i int) {
	v := &s.leaves[i]
	if s.ending {
		v.stage = draining
		return
	}
	if slices.ContainsFunc(s.sorted(), func(r *request) bool { return r.dev == i }) || !s.well() ||
		s.presence(i) != cache.Present || s.backs[i].gone != nil || s.c.Loading().Percent != 100 {
		return
	}
	var err error
	v.step, err = s.bg().l.StartDetach(s.ids[i], v.force)
	switch {
	case errors.Is(err, cache.ErrNotFinished) && !v.force:
		v.stage = draining
	case err != nil:
		s.fail(err)
	default:
		s.trace("device %d is to be forgotten, by force: %v", s.ids[i], v.force)
		v.stage, v.tried = forgetting, true
		if v.force {
			if s.orders.rng != nil {
				s.orders.sound[i] = false
			}
			s.forceOut(i)
		}
	}
}

// forceOut plays a forced detach to its end without a crash: nobody could say what is lost then.
func (s *Sim) forceOut(i int) {
	s.armed = nil
	for _, d := range append(s.backs, s.ssd) {
		d.full, d.dead = false, false
	}
	err := s.idle("a forced detach", func() bool {
		if s.leaves[i].stage == forgetting && s.rng.IntN(8) == 0 {
			s.bg().l.Tick()
			s.forgetStep(i)
		}
		return s.leaves[i].stage != forgetting || s.van.over
	})
	if err != nil && !errors.Is(err, errOver) {
		s.fail(err)
	}
}

// forgetStep makes a step of what forgets the device.
func (s *Sim) forgetStep(i int) {
	v := &s.leaves[i]
	ended, err := v.step()
	switch {
	case !ended:
	case err == nil:
		s.left(i)
	case s.well() && s.res.Faults[FaultSSDWrite]+s.res.Faults[FaultSSDFlush]+s.res.Faults[FaultSSDFull] == 0:
		s.fail(fmt.Errorf("device %d is not forgotten: %w", s.ids[i], err))
	case v.force:
		s.trace("device %d is not forgotten, and nobody knows what it has: %v", s.ids[i], err)
		s.van.over = true
		s.res.Over++
	default:
		s.trace("device %d is not forgotten: %v", s.ids[i], err)
		v.stage = draining
	}
}

// left is for a device that the cache has forgotten.
func (s *Sim) left(i int) {
	v, d, m, id := &s.leaves[i], s.backs[i], s.models[i], s.ids[i]
	s.trace("device %d is detached", id)
	for _, f := range s.ops {
		if f.op.Dev == id && f.op.Kind != cache.OpRead && f.op.Kind != cache.OpFlush {
			s.fail(fmt.Errorf("%s of device %d at %d+%d is under way after it was detached", f.op.Kind, id, f.op.Off, f.op.Len))
		}
	}
	if d.gone != nil && d.forgets {
		d.powerCut(s.rng, nil)
		d.forgot = true
	}
	if d.forgot {
		m.powerCut()
	}
	s.res.Detached++
	if v.force {
		s.res.Forced++
	}
	if err := m.alone(d, v.force, s.van.bad[i]); err != nil {
		s.fail(fmt.Errorf("device %d by itself, after it was detached: %w", id, err))
	}
	d.base += len(d.volatile)
	d.settled() // the daemon flushes it
	*v = leaving{stage: detached}
	d.gone, d.forgot, d.forgets = nil, false, false
	s.former[id], s.ids[i], s.absences[i] = i, noID, absence{}
	clear(s.van.bad[i])
	delete(s.van.markers, s.uuids[i])
	s.wishes.forget()
	if s.orders.rng != nil {
		s.orders.sound[i], s.orders.broken[i] = false, 0
	}
	if s.rng.IntN(2) == 0 {
		s.writeAlone(i)
	}
}

// alone makes the model one of what the device has by itself: one of the legal contents, unless what was not there is given
// up.
func (m *model) alone(d *Disk, any bool, bad map[int]bool) error {
	m.clock++
	for i := range m.sectors {
		s, p := &m.sectors[i], d.now[i*sectorSize:]
		is := s.legal.without(func(v version) bool { return !matches(p, i, v.stamp) })
		if len(is) == 0 || any {
			stamp := binary.LittleEndian.Uint64(p)
			if !any && !bad[i/blockSectors] || !matches(p, i, stamp) {
				return fmt.Errorf("sector %d has version %d, legal are %v (durable %v)", i, stamp, s.legal, s.durable)
			}
			is = versions{{number: stamp, stamp: stamp}}
		}
		s.legal, s.durable, s.changed = is, is, m.clock
	}
	if m.order != nil {
		old := m.order
		m.order = newOrderModel(len(m.sectors))
		m.order.clock = old.clock + 1
		for i := range m.sectors {
			for j, v := range m.sectors[i].legal {
				w := &orderWrite{version: v, ended: m.order.clock, acked: m.order.clock, stays: true}
				if j == 0 {
					m.order.sectors[i][0] = w
				} else {
					m.order.sectors[i] = append(m.order.sectors[i], w)
				}
			}
		}
	}
	return nil
}

// writeAlone writes to a device that is not attached.
func (s *Sim) writeAlone(i int) {
	d, m := s.backs[i], s.models[i]
	n := 1 + s.rng.IntN(64)
	first := s.rng.IntN(len(m.sectors) - n)
	v := m.write(first, n, false)
	issued := m.clock
	p := make([]byte, n*sectorSize)
	for j := range n {
		fillSector(p[j*sectorSize:], first+j, v.stamp)
	}
	d.writeFUA(p, int64(first)*sectorSize)
	m.writeDone(first, n, v, issued, false, true)
}

// attachAgain attaches a device.
func (s *Sim) attachAgain(i int) {
	if s.rng.IntN(2) == 0 {
		s.uuids[i][2]++
	}
	o := s.attachments[i]
	o.UUID, o.Mode = s.uuids[i], s.mode()
	if s.orders.rng != nil {
		o.Tunables = s.orders.tuns[i]
	}
	b, err := s.c.Attach(o)
	if err != nil {
		s.trace("device is not attached: %v", err)
		return
	}
	b.SetAbilities(s.cfg.Discards, s.cfg.Zeroes)
	s.ids[i] = b.ID()
	s.leaves[i] = leaving{}
	s.trace("device %d is attached, %v", s.ids[i], o.Mode)
}

// attached looks after a start which devices there are.
func (s *Sim) attached(c *cache.Cache) error {
	for i, id := range s.ids {
		v := &s.leaves[i]
		if id == noID {
			continue
		}
		b, err := c.Backing(id)
		switch {
		case err != nil && v.tried: // a detach that has failed, or was cut short, had its effect
			s.left(i)
		case err != nil:
			return err
		case v.stage >= closing:
			v.stage, v.step, v.force = draining, nil, false
		case s.cfg.Detaches > 0 && s.detaching(c, id): // on record, though that failed when it began
			v.stage = draining
		}
		if err == nil {
			b.SetAbilities(s.cfg.Discards, s.cfg.Zeroes)
		}
	}
	return nil
}

func (s *Sim) detaching(c *cache.Cache, id cache.BackingID) bool {
	all := c.Super().Backings
	i := slices.IndexFunc(all, func(r cache.BackingRecord) bool { return r.ID == id })
	return all[i].Detaching
}

// device is the index of a device by its number, or of the one that had it last.
func (s *Sim) device(id cache.BackingID) int {
	if i := slices.Index(s.ids, id); i >= 0 {
		return i
	}
	return s.former[id]
}

// allAttached reports whether no detach is under way.
func (s *Sim) allAttached() bool {
	return !slices.ContainsFunc(s.leaves, func(v leaving) bool { return v.stage != staying })
}

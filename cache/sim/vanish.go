package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"ubcache/cache"
)

// Of some histories it is a part that the SSD vanishes and comes back, or does not answer for so long that it
// is taken for lost, and then does:
//   - operations in flight fail, with an error that means gone or one that may mean anything, and may have
//     happened or not; later ones fail and have not happened;
//   - it comes back as it was, or without what it had not been flushed for;
//   - it stalls, so that it becomes slow, or is lost and taken back in place, or fails at last;
//   - the power of the whole machine may go while it is away;
//   - in some, the backing devices go away as well (see gone.go), and fail;
//   - the cache goes on meanwhile. Requests may fail only if their device has dirty data on the SSD;
//   - the cache is then started again as a daemon does that finds its SSD: with the pending ring, and told
//     to drop what the SSD has missed changes of. If it had dirty data of that, the history ends there:
//     the operator decides.

// vanishing is what a history has of that.
type vanishing struct {
	markers map[cache.UUID]cache.Missed
	made    []func(error) // markers that are being made
	dirty   []bool        // by device: something of it may have been on the SSD only
	needed  neededBlocks  // see needed.go
	bad     []map[int]bool
	over    bool         // the operator decides
	lost    bool         // it may lack what it was not flushed for, versions that ordered devices had to get included
	forgot  bool         // a flush of it has failed
	doubted uint64       // backing devices that had lost something as well, perhaps what had been read from them
	gone    error        // what the SSD answers while it is away, nil if it is there
	health  cache.Health // what the engine thinks of it
	drop    []cache.UUID // at the next start
}

// NewVanishConfig draws a configuration of a history in which the SSD vanishes.
func NewVanishConfig(seed uint64) Config {
	c := NewConfig(seed)
	c.vanish(rand.New(rand.NewPCG(seed, 3)))
	return c
}

// vanish makes the SSD vanish. In some histories it fails besides, and so do the backing devices.
func (c *Config) vanish(rng *rand.Rand) {
	c.Vanish, c.Pinning, c.Crashes = 20+rng.IntN(60), false, rng.IntN(8)
	c.Faults, c.FaultRate, c.Gone = 0, 0, 0
	more := rand.New(rand.NewPCG(c.Seed, 6))
	if more.IntN(3) == 0 {
		c.Gone = 10 + more.IntN(60) // and then the backing devices go away, too
	}
	c.Attributes = c.Attributes && more.IntN(2) == 0
	c.LossHold = time.Duration(rng.IntN(1500)) * time.Millisecond
	if c.Ordered = rng.IntN(4) == 0; !c.Ordered && more.IntN(3) == 0 {
		c.fail(more, 1<<numFaults-1)
	}
	c.StallLimit = time.Duration(50+rng.IntN(200)) * time.Millisecond
	c.LossLimit = c.StallLimit + time.Duration(100+rng.IntN(500))*time.Millisecond
	c.stalls()
}

func (s *Sim) loss() cache.LossPolicy {
	return cache.LossPolicy{
		Kind: cache.LossKind(max(0, int(s.cfg.Seed%8)-5)), Hold: s.cfg.LossHold.Truncate(time.Millisecond),
	}
}

// mark is cache.Options.Missed. The marker is durable at once, and that is known later.
func (s *Sim) mark(m cache.Missed, done func(error)) {
	s.trace("marker of %s: %d blocks are dirty", m.Name, m.Dirty)
	s.van.markers[m.Backing] = m
	s.van.made = append(s.van.made, done)
}

// vanishStep takes the SSD away, or brings it back.
func (s *Sim) vanishStep() {
	if s.van.gone != nil {
		s.comeBack()
		return
	}
	if s.ssd.stalled <= s.now && s.rng.IntN(2) == 0 {
		s.ssd.stalled = s.now + int64(s.rng.IntN(int(2*time.Second)))
		s.res.Stalls++
		s.trace("the SSD stalls until %d", s.ssd.stalled)
		return
	}
	err := syscall.EIO
	if s.rng.IntN(2) == 0 {
		err = syscall.ENODEV
	}
	s.vanish(err)
}

// vanish takes the SSD away.
func (s *Sim) vanish(err error) {
	s.ssd.stalled, s.van.gone = 0, err
	s.ssd.hook = func(kind cache.OpKind, _, _ int64) error {
		s.van.forgot = s.van.forgot || kind == cache.OpFlush
		return s.van.gone
	}
	s.res.Vanished++
	s.trace("the SSD vanishes: %v", s.van.gone)
	if s.van.health != cache.HealthLost { // else requests may have failed for what is dirty no more
		s.noteDirty()
	}
	for _, f := range s.ops {
		if f.op.Dev == cache.SSD && s.rng.IntN(2) == 0 {
			s.effect(f)
		}
	}
}

// noteDirty notes which devices may have dirty data when the SSD is lost.
func (s *Sim) noteDirty() {
	s.van.dirty = make([]bool, len(s.ids))
	for _, b := range s.c.Status().Backings {
		if i := slices.Index(s.ids, b.ID); i >= 0 {
			s.van.dirty[i] = b.DirtyBytes > 0
		}
	}
	for _, r := range s.reqs {
		s.van.dirty[r.dev] = s.van.dirty[r.dev] || r.written
	}
}

// healthTurned is cache.Options.Health. Faults may go on until the engine takes the SSD for lost.
func (s *Sim) healthTurned(e cache.HealthEvent) {
	s.trace("the SSD is %v: %s", e.Health, e.Why)
	if s.van.health == cache.HealthLost {
		s.res.InPlace++
	}
	s.van.health = e.Health
	for _, r := range s.reqs {
		r.without = r.without || e.Health == cache.HealthLost
	}
	if e.Health != cache.HealthLost {
		return
	}
	s.noteNeeded()
	s.retired = retirement{}
	if s.van.gone == nil {
		s.res.GivenUp++
		s.noteDirty()
	}
}

// errOver ends a history that only an operator can go on with.
var errOver = errors.New("sim: the SSD is refused")

// away reports whether the cache is without its SSD.
func (s *Sim) away() bool { return s.van.gone != nil || s.van.health == cache.HealthLost }

// failedFlush reports whether the SSD was there all the time, and is taken for lost for what it has failed.
func (s *Sim) failedFlush() bool {
	return s.van.gone == nil && s.van.health == cache.HealthLost && s.ssd.stalled <= s.now && s.cfg.Vanish == 0
}

// well reports whether the superblock can be written.
func (s *Sim) well() bool { return s.van.gone == nil && s.van.health == cache.HealthOK }

// vanished ends an operation on a vanished SSD.
func (s *Sim) vanished(f *flyingOp) bool {
	if f.op.Dev != cache.SSD || s.van.gone == nil {
		return false
	}
	s.trace("  op %s dev=%d off=%d len=%d: %v", f.op.Kind, f.op.Dev, f.op.Off, f.op.Len, s.van.gone)
	s.retired = retirement{}
	s.noteForgot(f.op, s.van.gone)
	f.l.l.Complete(f.op, s.van.gone)
	return true
}

// finishMarker tells the engine of a marker.
func (s *Sim) finishMarker() {
	if n := len(s.van.made); n > 0 {
		done := s.van.made[n-1]
		s.van.made = s.van.made[:n-1]
		done(nil)
	}
}

// comeBack starts the cache with the SSD that is back.
func (s *Sim) comeBack() {
	_, lost := s.c.Loss()
	how := CrashKill
	if !s.ending && s.rng.IntN(3) == 0 { // then nothing is left that could speak of data that is lost
		how = CrashPower
		s.res.CutsAway++
	}
	lostData := lost && how == CrashKill && !s.ending && s.rng.IntN(2) == 0
	doubt := !s.cfg.Checksums && how == CrashKill && (lost || s.van.gone == syscall.ENODEV)
	s.ssd.stalled = 0
	if s.van.gone != nil {
		s.ops = slices.DeleteFunc(s.ops, func(f *flyingOp) bool { return f.op.Dev == cache.SSD })
	} // else it stalls, and may have done them
	var drop []cache.UUID
	for id, m := range s.van.markers {
		if drop = append(drop, id); m.Dirty > 0 {
			s.trace("the SSD is refused")
			s.van.over = true
			s.res.Over++
			return
		}
	}
	s.countStats()
	dirty := s.dirtyAgain()
	s.die(how)
	s.c.Abandon()
	s.van.gone, s.van.health, s.ssd.hook = nil, cache.HealthOK, nil
	s.wishes.forget()
	if lostData {
		s.trace("the SSD is back, without what was not flushed")
		s.ssd.powerCut(s.rng, nil)
	}
	if lostData || doubt { // without checksums nothing shows what it has lost
		s.van.lost = true
		s.noteBad(dirty)
	}
	s.trace("the SSD is back: drop %v", drop)
	s.res.Returned++
	if len(drop) == 0 {
		s.res.ReturnedWarm++
	}
	s.van.markers, s.van.made, s.van.drop = map[cache.UUID]cache.Missed{}, nil, drop
	err := s.open()
	if s.van.drop = nil; err != nil {
		s.fail(fmt.Errorf("open with the SSD that is back: %w", err))
		return
	}
	if p := s.c.Verify(); len(p) > 0 {
		s.fail(fmt.Errorf("with the SSD back: %s", p[0]))
	}
	s.reissue()
}

// dirtyAgain lists the blocks that are dirty, if that may be for what a backing device is said to have lost:
// the engine cannot tell that it has not.
func (s *Sim) dirtyAgain() (all []wishBlock) {
	for dev := 0; dev < len(s.models) && s.backingFaults(); dev++ {
		for first := 0; first < len(s.models[dev].sectors); first += blockSectors {
			if p, ok := s.c.Locate(s.ids[dev], int64(first)*sectorSize); ok && p.Dirty {
				all = append(all, wishBlock{dev, int64(first / blockSectors)})
			}
		}
	}
	return all
}

// noteBad notes the blocks that the SSD may have lost: nothing that was flushed is among them, but for what
// a backing device may have lost besides.
func (s *Sim) noteBad(dirty []wishBlock) {
	for _, b := range dirty {
		s.van.bad[b.dev][int(b.block)] = true
	}
	for dev, m := range s.models {
		for _, i := range m.touched {
			s.van.bad[dev][i/blockSectors] = true
		}
	}
	s.van.doubted |= s.lossy
}

// mayBeBad reports whether the SSD may have lost a block that the request touches.
func (s *Sim) mayBeBad(r *request) bool {
	if s.van.doubted>>r.Backing&1 != 0 {
		return true
	}
	for b := r.first / blockSectors; b <= (r.first+r.n-1)/blockSectors && r.n > 0; b++ {
		if s.van.bad[r.dev][b] {
			return true
		}
	}
	return false
}

// excused deals with a request that has failed for lack of an SSD, and reports whether it may.
func (s *Sim) excused(r *request) bool {
	switch {
	case errors.Is(r.Err, cache.ErrSSDLost) && r.needing && (s.away() || r.without) &&
		(s.van.dirty[r.dev] || s.lossy>>r.Backing&1 != 0): // what the backing device had not lost until then
		s.res.FailedLost++
	case errors.Is(r.Err, cache.ErrDirtyBad) && s.mayBeBad(r):
		s.res.FailedBad++
	default:
		return false
	}
	switch {
	case r.read != nil:
		s.models[r.dev].forget(r.read)
	case r.written:
		s.models[r.dev].writeDead(r.first, r.n, r.v)
	}
	return true
}

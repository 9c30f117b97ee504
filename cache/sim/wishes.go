package sim

import (
	"fmt"

	"ubcache/attrs"
	"ubcache/cache"
)

// wishes checks that what requests asked for besides their data came true: pinned blocks stay, also
// when the daemon is killed; quotas are held; what was evicted is gone.
type wishes struct {
	clock  uint64
	forgot uint64 // clock of when all pins may have been lost
	given  int64  // how many pins the process had given up at the last look
	blocks map[wishBlock]*wishState
	latest []wishBlock // that were pinned lately
}

type wishBlock struct {
	dev   int
	block int64
}

type wishState struct {
	pinned bool
	// A write may end a pin if the cache has no room for a copy, so it counts as one that does.
	ending int    // requests in flight that may end a pin
	ended  uint64 // clock of the last such event
}

const (
	blockSectors = cache.BlockSize / sectorSize
	tenantQuota  = 60
	tenantShare  = 60
)

func (s *Sim) setQuotas() error {
	if !s.cfg.Attributes {
		return nil
	}
	if err := s.c.SetTenantQuota(attrs.Tenant{ID: 1}, cache.TenantQuota{Blocks: tenantQuota}); err != nil {
		return err
	}
	return s.c.SetTenantQuota(attrs.Tenant{ID: 2}, cache.TenantQuota{Share: tenantShare})
}

// wish gives a request more attributes, and notes what may end pins.
func (s *Sim) wish(r *request) {
	if s.rng.IntN(2) == 0 {
		r.attrs.SetHint(attrs.Hint(s.rng.IntN(8)))
	}
	if s.cfg.Pinning && s.rng.IntN(3) == 0 {
		r.attrs.SetHint(attrs.HintPin)
	}
	if s.rng.IntN(3) == 0 {
		r.attrs.SetPriority(attrs.Priority{Class: attrs.Class(1 + s.rng.IntN(3)), Level: uint8(s.rng.IntN(8))})
	}
	if s.rng.IntN(3) == 0 {
		r.attrs.SetLifetime(attrs.Lifetime(1 + s.rng.IntN(5)))
	}
	if s.rng.IntN(2) == 0 {
		r.attrs.SetTenant(attrs.Tenant{ID: uint64(1 + s.rng.IntN(3))})
	}
	a := &s.wishes
	a.clock++
	if r.wished == 0 {
		r.wished = a.clock
	}
	if r.written || r.attrs.Hint() == attrs.HintUnpin {
		a.end(r)
	}
}

// end notes that a request may end the pins of its blocks, from now on and until it is over.
func (a *wishes) end(r *request) {
	if !r.ends {
		r.ends = true
		a.each(r, func(b *wishState) { b.pinned, b.ended = false, a.clock; b.ending++ })
	}
}

// each calls f with the state of every block of a request.
func (a *wishes) each(r *request, f func(*wishState)) {
	if r.n == 0 {
		return
	}
	for b := r.first / blockSectors; b <= (r.first+r.n-1)/blockSectors; b++ {
		k := wishBlock{r.dev, int64(b)}
		if a.blocks[k] == nil {
			a.blocks[k] = &wishState{}
		}
		f(a.blocks[k])
	}
}

// gone notes that a request is over, answered or not.
func (a *wishes) gone(r *request) {
	a.clock++
	if r.ends {
		r.ends = false
		a.each(r, func(b *wishState) { b.pinned, b.ended = false, a.clock; b.ending-- })
	}
}

// answered checks what can be seen when a request has just been answered.
func (s *Sim) answered(r *request) {
	s.wishes.gone(r)
	if r.Attrs == nil || r.Err != nil || r.results.For(attrs.IDHint).Status != attrs.Handled {
		return
	}
	switch r.attrs.Hint() {
	case attrs.HintPin:
		s.res.Pins++
		s.pinned(r)
		s.wishes.each(r, func(b *wishState) {
			b.pinned = b.pinned || b.ending == 0 && max(b.ended, s.wishes.forgot) < r.wished
		})
		s.wishes.note(r)
	case attrs.HintEvict:
		s.res.Evictions++
		if r.Op != cache.ReqRead || s.overlapped(r) {
			return
		}
		n, err := s.c.Residency(r.Backing, r.Off, r.Len)
		if err != nil || n.Cached != n.Leaving {
			s.fail(fmt.Errorf("sectors %d+%d of device %d, evicted: %+v, %v", r.first, r.n, r.dev, n, err))
		}
	}
}

// pinned checks that a read which has been told that its blocks are pinned is told the truth. Of one that
// takes several steps the first blocks may be gone again.
func (s *Sim) pinned(r *request) {
	const region = 1 << 20
	if r.Op != cache.ReqRead || r.Off/region != (r.Off+r.Len-1)/region {
		return
	}
	if n, err := s.c.Residency(r.Backing, r.Off, r.Len); err != nil || n.Pinned != n.Blocks {
		s.fail(fmt.Errorf("sectors %d+%d of device %d, pinned: %+v, %v", r.first, r.n, r.dev, n, err))
	}
}

// overlapped reports whether another request in flight could have brought a block back.
func (s *Sim) overlapped(r *request) bool {
	for _, o := range s.reqs {
		if o.dev == r.dev && o.first < r.first+r.n+blockSectors && r.first < o.first+o.n+blockSectors {
			return true
		}
	}
	return false
}

// checkWishes compares what the cache holds with what was asked for.
func (s *Sim) checkWishes(when string) {
	if !s.cfg.Attributes || s.err != nil {
		return
	}
	s.lookAtGivenUp()
	if s.away() { // each copy that the SSD fails to return loses its pin
		s.wishes.forget()
	}
	for _, t := range s.c.Tenants() {
		if t.Quota.Blocks != 0 && t.CachedBlocks > t.Quota.Blocks {
			s.fail(fmt.Errorf("%s: tenant %v has %d blocks, quota %d", when, t.Tenant, t.CachedBlocks, t.Quota.Blocks))
		}
	}
	for _, b := range s.c.Status().Backings {
		if b.PinnedBytes > b.PinQuota {
			s.fail(fmt.Errorf("%s: device %s has %d bytes pinned, quota %d", when, b.Name, b.PinnedBytes, b.PinQuota))
		}
	}
	for k, b := range s.wishes.blocks {
		if !b.pinned {
			continue
		}
		off := k.block * cache.BlockSize
		n, err := s.c.Residency(s.ids[k.dev], off, min(cache.BlockSize, s.models[k.dev].bytes()-off))
		if err != nil || n.Pinned != 1 {
			s.fail(fmt.Errorf("%s: block %d of device %d was pinned: %+v, %v", when, k.block, k.dev, n, err))
			return
		}
	}
}

// lookAtGivenUp excuses pins that eviction has given up, which it may once the SSD has failed buckets: there may be
// none left to move pinned blocks to.
func (s *Sim) lookAtGivenUp() {
	n, was := s.c.Stats().PinsGivenUp, s.wishes.given
	if s.wishes.given = n; n == was {
		return
	}
	f := &s.res.Faults
	if f[FaultSSDFull]+f[FaultSSDWrite]+f[FaultSSDRead]+f[FaultSSDSector]+s.res.Vanished == 0 {
		s.fail(fmt.Errorf("%d pins were given up, and the SSD has failed nothing", n-was))
	}
	s.trace("%d pins were given up", n-was)
	s.wishes.forget()
}

// note remembers where blocks were pinned.
func (a *wishes) note(r *request) {
	const most = 32
	if len(a.latest) == most {
		a.latest = append(a.latest[:0], a.latest[1:]...)
	}
	a.latest = append(a.latest, wishBlock{r.dev, int64(r.first / blockSectors)})
}

// forget forgets pins, which may be gone, those that requests in flight are about to report included.
func (a *wishes) forget() {
	a.clock++
	a.forgot = a.clock
	for _, b := range a.blocks {
		b.pinned = false
	}
}

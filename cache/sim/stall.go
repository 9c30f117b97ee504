package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"ubcache/cache"
)

// Of some histories in which the SSD vanishes it is a part that it stalls while reads are looked at that need nothing of it,
// as the backing device has what they read:
//   - those that have begun on the SSD end when it counts as slow, and soon after Options.StallLimit. So do reads whose memory
//     can be replaced, which that of zero copy and of clients cannot;
//   - those that come while it is slow end without any time passing but what the backing device takes, and what they bring is
//     not admitted.

// stallSlack is how late an SSD may count as slow after the limit: twice it has to be seen to be, which the ticks decide.
const stallSlack = 100*time.Millisecond + 8*stallTick

// stallTick is the time between two ticks while the SSD stalls.
const stallTick = 10 * time.Millisecond

// stalls draws whether the SSD stalls in that way, and drivers that can replace the memory of reads.
func (c *Config) stalls() {
	rng := rand.New(rand.NewPCG(c.Seed, 12))
	if c.Swaps = rng.IntN(2) == 0; rng.IntN(3) == 0 {
		c.StallReads, c.Attributes = 20+rng.IntN(60), false
		c.LossLimit = c.StallLimit + time.Second
	}
}

// Swap makes a lane a cache.Swapper.
func (l *lane) Swap(req *cache.Request) (old int, ok bool) {
	s := l.s
	r := s.reqs[req.Tag]
	if !s.cfg.Swaps || r.Data == nil {
		return 0, false
	}
	is := s.buffer(r.n)
	copy(is, r.data)
	s.swapped = append(s.swapped, r.data)
	r.data, r.Data = is, is
	s.res.Swapped++
	return len(s.swapped) - 1, true
}

// Reclaim implements cache.Swapper.
func (l *lane) Reclaim(old int) {
	for i := range l.s.swapped[old] { // nobody reads it any more
		l.s.swapped[old][i] = 0xee
	}
	l.s.swapped[old] = nil
}

// stallStep makes the SSD stall, and looks at reads.
func (s *Sim) stallStep() {
	i := s.rng.IntN(len(s.ids))
	if !s.well() || s.ssd.stalled > s.now || !s.fit(i) {
		return
	}
	s.armed = nil
	var begun []*request
	if s.cfg.Swaps && !s.cfg.ZeroCopy && !s.cfg.Targets {
		for range 1 + s.rng.IntN(2) {
			begun = append(begun, s.readClean(i, false))
		}
	}
	begun = slices.DeleteFunc(begun, func(r *request) bool { return r == nil })
	s.ssd.stalled = s.now + int64(time.Hour)
	s.res.Stalls++
	s.trace("the SSD stalls, and reads are looked at")
	if len(begun) == 0 || s.playAround(i, s.now+int64(s.cfg.StallLimit+stallSlack), begun) {
		s.res.Around += len(begun)
		s.readSlow(i)
	}
	s.ssd.stalled = s.now
}

// readSlow looks at reads that come while the SSD is slow.
func (s *Sim) readSlow(i int) {
	if s.van.health == cache.HealthOK {
		s.readClean(i, true) // it may have nothing to do yet
		if !s.playAround(i, s.now+int64(s.cfg.StallLimit+stallSlack), nil) {
			return
		}
	}
	for range 3 {
		if s.van.health != cache.HealthSlow || !s.fit(i) {
			return
		}
		r := s.readClean(i, false)
		if r == nil {
			continue
		}
		was := s.misses(r)
		if !s.playAround(i, s.now+int64(2*stallTick), []*request{r}) {
			return
		}
		s.res.Around++
		for _, at := range was {
			if p, ok := s.c.Locate(r.Backing, at); ok {
				s.fail(fmt.Errorf("block %d of device %d is admitted while the SSD is slow: %+v", at/cache.BlockSize, r.Backing, p))
				return
			}
			s.res.Unadmitted++
		}
	}
}

// fit reports whether nothing is wrong with a backing device.
func (s *Sim) fit(i int) bool {
	d := s.backs[i]
	return s.err == nil && s.leaves[i].stage == staying && s.presence(i) == cache.Present && d.gone == nil && !d.dead &&
		d.stalled <= s.now && !s.absences[i].suspected && s.absences[i].probe == 0 && s.c.Loading().Percent == 100
}

// readClean sends a read of blocks of which none is dirty, and one at least is cached, or nil; with dirty of others.
func (s *Sim) readClean(i int, dirty bool) *request {
	blocks := len(s.models[i].sectors) / blockSectors
	for range 24 {
		b, n := s.rng.IntN(blocks), 1+s.rng.IntN(24)
		n = min(n, blocks-b)
		r := &request{dev: i, first: b * blockSectors, n: n * blockSectors}
		if s.mayRead(r, dirty) {
			r = s.newRequest(i, cache.ReqRead, r.first, r.n)
			s.keep(r)
			s.submit(r)
			return r
		}
	}
	return nil
}

func (s *Sim) mayRead(r *request, dirty bool) bool {
	cached := false
	for b := r.first / blockSectors; b < (r.first+r.n)/blockSectors; b++ {
		p, ok := s.c.Locate(s.ids[r.dev], int64(b)*cache.BlockSize)
		if ok && p.Dirty != dirty {
			return false
		}
		cached = cached || ok
	}
	return cached && !s.overlapped(r)
}

// misses are the blocks of a request that are not cached.
func (s *Sim) misses(r *request) (all []int64) {
	for at := r.Off; at < r.Off+r.Len; at += cache.BlockSize {
		if _, ok := s.c.Locate(r.Backing, at); !ok {
			all = append(all, at)
		}
	}
	return all
}

// playAround plays on without the SSD until the reads have ended, or without any until the SSD counts as slow. It reports
// whether that was so; by then it has to be, unless the SSD is lost or a device fails meanwhile.
func (s *Sim) playAround(i int, by int64, reads []*request) bool {
	for {
		s.settleAround()
		over := len(reads) == 0 && s.van.health != cache.HealthOK
		for _, r := range reads {
			over = s.reqs[r.Tag] != r
			if !over {
				break
			}
		}
		switch {
		case s.err != nil || s.van.health == cache.HealthLost:
			return false
		case over:
			return true
		case !s.fit(i):
			return false
		case s.now > by && len(reads) == 0:
			return false
		case s.now > by:
			s.fail(fmt.Errorf("a read of clean blocks waits for an SSD that does not answer, which is %v", s.van.health))
			return false
		}
		s.now += int64(stallTick)
		s.bg().l.Tick()
	}
}

// settleMost is how many operations end between two ticks at most. A device that is to be detached is flushed again and again
// while a change that waits for the SSD has a pending block of it.
const settleMost = 256

// settleAround lets everything go on that does not wait for the SSD or for time to pass. While the SSD is slow each tick wakes
// all lanes.
func (s *Sim) settleAround() {
	for rounds, ended := 0, 0; rounds < 8 && ended < settleMost && s.err == nil; rounds++ {
		for _, l := range s.lanes {
			if l.woken {
				s.run(l)
			}
		}
		s.finishMarker()
		if i := slices.IndexFunc(s.ops, func(f *flyingOp) bool { return s.disk(f.op.Dev).stalled <= s.now }); i >= 0 {
			s.complete(i)
			rounds = 0
			ended++
		}
	}
}

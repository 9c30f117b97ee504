package cache

import (
	"time"

	"ubcache/policy"
)

// due reports whether a batch has to begin now, how many versions per second it may be if that
// need not be at once, and how many there are.
func (r *orderRun) due(now int64) (urgent bool, rate, have int64) {
	c, b, o := r.bg.l.c, r.b, &r.b.order
	o.mu.Lock()
	have = o.mu.ring.len()
	age := o.ageLocked(now)
	urgent = o.mu.room.head != nil || o.mu.settled.head != nil || have >= max(o.mu.allowed/2, 1) ||
		age >= o.age.Load()/2
	o.mu.Unlock()
	if have == 0 {
		return false, 0, 0
	}
	urgent = urgent || b.draining.Load() || r.bg.pressed || !modeTable[b.Mode()].back ||
		b.leaving.Load() > 0 || c.journal.wants(o)
	rate = policy.WritebackRate(policy.WritebackView{
		Dirty: have, Target: b.dirtyTarget.Load(), Max: b.dirtyMax.Load(), Age: time.Duration(age),
		Delay: time.Duration(b.delay.Load()), Idle: time.Duration(now - b.lastIO.Load()),
		RT: r.bg.l.contention(now).RT,
	})
	return urgent, rate, have
}

// measure notes how long the batch took.
func (r *orderRun) measure(now int64) {
	r.settledLately += int64(r.count)
	r.busyLately += now - r.begun
	if r.busyLately > lately {
		r.settledLately, r.busyLately = r.settledLately/2, r.busyLately/2
	}
}

// allowed is how many versions there may be: as many as can be written back in half of the time that
// they have, since the other half may pass before it begins.
func (r *orderRun) allowed() int64 {
	o := &r.b.order
	limit := o.max.Load()
	if r.busyLately < int64(time.Millisecond) {
		return limit
	}
	perSecond := float64(r.settledLately) / float64(r.busyLately) * 1e9
	n := perSecond * (time.Duration(o.age.Load()) / 2).Seconds()
	return min(limit, max(minAllowed, int64(min(n, 1e15))))
}

package cache

import (
	"sync/atomic"
	"time"

	"ubcache/attrs"
	"ubcache/policy"
)

// busy says which classes have requests around, for all lanes of the cache: a flood on one lane has
// to make way for what matters on another. Times are of Driver.Now.
type busy struct {
	// any is when nothing is contended any more. Until then requests without a priority take the
	// long way through the scheduler, too; else that one look is all that it costs them.
	any atomic.Int64
	// until is up to when a class counts as being around after its last request, and now how many
	// requests of it there are, but for those that took the short way.
	until, now [3]atomic.Int64
}

// holdFor is how long after a request its class counts as being around.
const holdFor = int64(100 * time.Millisecond)

func (y *busy) around(k policy.Class, now int64) bool {
	return y.now[k].Load() > 0 || y.until[k].Load() > now
}

// extend moves a time on to holdFor from now, not with each request lest lanes fight for it.
func extend(t *atomic.Int64, now int64) {
	if t.Load() < now+holdFor*3/4 {
		t.Store(now + holdFor)
	}
}

// enter reports whether a request goes into service at once. Else it is queued, before it has had
// any effect or holds anything that others wait for, and begins later.
//
// A queued write has not been acknowledged, so that no flush has to wait for it.
func (l *Lane) enter(r *Request) bool {
	prio := r.Attrs != nil && r.Attrs.Has(attrs.IDPriority)
	r.serving = true
	y := &l.c.busy
	if !prio && l.sched.Queued() == 0 && y.any.Load() <= r.started && y.now[policy.RT].Load() == 0 {
		r.job.Class = policy.BE
		l.sched.Begin(policy.BE)
		return true
	}
	r.job = policy.Job{Owner: r, Level: 4}
	if prio {
		p := r.Attrs.Priority()
		r.job.Class, r.job.Level = classOf[p.Class], p.Level
	}
	r.noticed = true
	y.now[r.job.Class].Add(1)
	l.notice(r.job.Class, r.started)
	v := l.contention(r.started)
	if l.sched.Queued() == 0 && l.sched.Room(r.job.Class, v) {
		l.sched.Begin(r.job.Class)
		return true
	}
	l.sched.Push(&r.job, r.started)
	l.dispatch()
	return false
}

// classOf has the scheduler's class of each of the attribute's.
var classOf = [...]policy.Class{
	attrs.ClassRT: policy.RT, attrs.ClassBE: policy.BE, attrs.ClassIdle: policy.Idle,
}

// notice makes it known that a request of the class is around.
func (l *Lane) notice(k policy.Class, now int64) {
	y := &l.c.busy
	extend(&y.until[k], now)
	if k != policy.BE {
		extend(&y.any, now)
	}
}

func (l *Lane) contention(now int64) policy.Contention {
	if l.c.closing.Load() {
		return policy.Contention{}
	}
	y := &l.c.busy
	return policy.Contention{RT: y.around(policy.RT, now), BE: y.around(policy.BE, now)}
}

// dispatch puts queued requests into service that there is room for. It is called when the
// state machines of whatever ended have returned.
func (l *Lane) dispatch() {
	if l.sched.Queued() == 0 {
		return
	}
	now := l.d.Now()
	v := l.contention(now)
	for j := l.sched.Next(now, v); j != nil; j = l.sched.Next(now, v) {
		l.begin(j.Owner.(*Request))
	}
}

// rest is for a part of a request that waits for a backing device which is gone, for nobody knows how long: it keeps no
// other from being served. resume ends that.
func (l *Lane) rest(r *Request) {
	if r.resting++; r.resting == 1 && r.serving {
		l.sched.End(r.job.Class)
		if r.noticed {
			l.c.busy.now[r.job.Class].Add(-1)
		}
	}
}

func (l *Lane) resume(r *Request) {
	if r.resting--; r.resting == 0 && r.serving {
		l.sched.Begin(r.job.Class)
		if r.noticed {
			l.c.busy.now[r.job.Class].Add(1)
		}
	}
}

// leave takes a request out of service, and gives back what was promised of its tenant's quota.
func (l *Lane) leave(r *Request) {
	if n := r.way.promised; n != 0 {
		l.c.tenants.rows[r.way.tenant].promised.Add(-n)
	}
	if !r.serving {
		return
	}
	r.serving = false
	l.sched.End(r.job.Class)
	r.job.Owner = nil
	if r.noticed {
		r.noticed = false
		l.notice(r.job.Class, l.d.Now())
		l.c.busy.now[r.job.Class].Add(-1)
	}
}

package policy

import "time"

// Class is the priority class of a request: RT before BE before Idle.
type Class uint8

// The classes. A request of which nothing is known is BE, which is the zero value.
const (
	BE Class = iota
	RT
	Idle

	classes = 3
)

const levels = 8

// Job is a request as the scheduler sees it. It lives in the request, so that queueing allocates
// nothing, and is the scheduler's from Push until Next returns it.
type Job struct {
	Class Class
	Level uint8 // 0 first, to 7
	Owner any   // the request
	since int64
	next  *Job
}

// Contention says whose requests came lately, on any event loop that uses the same devices.
type Contention struct{ RT, BE bool }

// Limits of one event loop. None is 0: whoever is queued has somebody before him in service,
// whose end is the occasion to look again, so that no timer is needed and nobody waits for ever.
const (
	// maxRT bounds requests of class RT in service, so that their levels mean something.
	maxRT = 64
	// lowBesideRT bounds the others while there are requests of class RT, and idleBesideRT those
	// of class Idle among them.
	lowBesideRT  = 16
	idleBesideRT = 1
	// idleBesideBE bounds requests of class Idle while there are requests of class BE only.
	idleBesideBE = 2

	// Patience is how long a job is passed over by better ones, at most: after that it is the next
	// for which there is room.
	Patience = 200 * time.Millisecond
)

// Scheduler orders the requests of one event loop under contention. While nothing is contended
// it only counts. The zero value is ready; it is not safe for concurrent use. Times are in
// nanoseconds of any one clock.
type Scheduler struct {
	queued  int
	serving [classes]int
	queues  [classes][levels]jobQueue
}

type jobQueue struct{ head, tail *Job }

// order is how classes come after each other.
var order = [classes]Class{RT, BE, Idle}

// Queued is how many jobs wait.
func (s *Scheduler) Queued() int { return s.queued }

// Serving is how many jobs of a class are in service.
func (s *Scheduler) Serving(c Class) int { return s.serving[c] }

// Begin counts a job that goes into service without having been queued.
func (s *Scheduler) Begin(c Class) { s.serving[c]++ }

// End counts a job that left service.
func (s *Scheduler) End(c Class) { s.serving[c]-- }

// Room reports whether one more job of the class may go into service.
func (s *Scheduler) Room(c Class, v Contention) bool {
	low := s.serving[BE] + s.serving[Idle]
	switch {
	case c == RT:
		return s.serving[RT] < maxRT
	case v.RT && low >= lowBesideRT:
		return false
	case c == BE:
		return true
	case v.RT:
		return s.serving[Idle] < idleBesideRT
	case v.BE:
		return s.serving[Idle] < idleBesideBE
	}
	return true
}

// Push queues a job.
func (s *Scheduler) Push(j *Job, now int64) {
	q := &s.queues[j.Class][min(j.Level, levels-1)]
	j.since, j.next = now, nil
	if q.head == nil {
		q.head = j
	} else {
		q.tail.next = j
	}
	q.tail = j
	s.queued++
}

// Next takes the job that goes into service now and counts it there; nil if none may. It is to be
// asked until then after each Push, and after each End while there are queued jobs.
func (s *Scheduler) Next(now int64, v Contention) *Job {
	if s.queued == 0 {
		return nil
	}
	var best, oldest *jobQueue
	for _, c := range order {
		if !s.Room(c, v) {
			continue
		}
		for i := range s.queues[c] {
			q := &s.queues[c][i]
			if q.head == nil {
				continue
			}
			if best == nil {
				best = q
			}
			if now-q.head.since > int64(Patience) &&
				(oldest == nil || q.head.since < oldest.head.since) {
				oldest = q
			}
		}
	}
	if oldest != nil {
		best = oldest
	}
	if best == nil {
		return nil
	}
	j := best.head
	best.head, j.next = j.next, nil
	s.queued--
	s.serving[j.Class]++
	return j
}

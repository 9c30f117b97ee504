package ublk

import (
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
)

// affinity moves a queue's thread between "beside the submitter" and "anywhere".
//
// A request at a time, thread and submitter take turns: on one CPU the hand-over is a context
// switch, on two it is an interrupt and an idle CPU's wake-up. With many requests in flight the two
// can work at the same time, and sharing a CPU halves the throughput.
//
// How many are in flight in the block layer is not visible here, and how many are with the server
// depends on how fast it is. The tags tell: the kernel's tag allocator reuses the tag that was
// freed last on a CPU, so that a submitter with one request in flight sees one or two tags, and one
// with n in flight about n.
//
// Copies of large requests keep a thread busy and the submitter idle. Then the thread stays on its
// CPU: the scheduler moves the submitter to others, whose queues have threads of their own.
type affinity struct {
	near, wide unix.CPUSet
	policy     AffinityPolicy
	pinned     bool
	ring       *uring.Ring

	seen     []uint64 // bitmap of the tags in this window
	distinct int
	count    int
	copied   int64 // bytes
	copies   bool  // the driver copies the data, on this thread
	streak   int   // windows in a row that ask for a change
	patience int   // windows in a row that a change needs
	calm     int   // windows since the last change
}

const (
	affinityWindow    = 128 // requests, or
	affinityBytes     = 32 << 20
	affinityLarge     = 64 << 10 // bytes of a large request
	affinityFew       = 2        // up to this many tags: one at a time
	affinityMany      = 4        // from this many tags: several at a time
	affinityPatience  = 2        // windows before the first change
	affinityImpatient = 64       // windows before a change that kept flipping
	affinityCalm      = 256      // windows without a change that restore the patience

	// maxSpin is how long a thread that works beside the submitter looks for the next event before
	// it sleeps. On the submitter's CPU it must sleep at once.
	maxSpin = 50 * time.Microsecond
)

func (a *affinity) init(q *Queue, policy AffinityPolicy) {
	a.policy, a.patience, a.ring = policy, affinityPatience, q.ring
	a.copies = q.mode == Copy
	a.seen = make([]uint64, (q.depth+63)/64)
	if policy == AffinityNone || q.fake != nil {
		a.policy = AffinityNone
		return
	}
	if unix.SchedGetaffinity(0, &a.wide) != nil {
		a.policy = AffinityNone
		return
	}
	near, err := q.dev.ctl.queueAffinity(q.dev.id, q.id)
	if err != nil {
		a.policy = AffinityNone
		return
	}
	// The process may be confined to fewer CPUs than the kernel uses for the queue.
	for i := range near {
		near[i] &= a.wide[i]
	}
	if near.Count() == 0 || near == a.wide {
		a.policy = AffinityNone
		return
	}
	a.near = near
	a.move(true)
}

// arrived notes a request and, once a window, decides.
func (a *affinity) arrived(r *Request) {
	if a.policy == AffinityAdaptive && a.note(r) && a.decide() {
		a.move(!a.pinned)
	}
}

// note counts a request and reports whether it ends the window.
func (a *affinity) note(r *Request) bool {
	if w, bit := &a.seen[r.Tag/64], uint64(1)<<(r.Tag%64); *w&bit == 0 {
		*w |= bit
		a.distinct++
	}
	a.count++
	if a.copies && r.HasData() {
		a.copied += r.Bytes()
	}
	return a.count >= affinityWindow || a.copied >= affinityBytes
}

// decide ends a window and reports whether the thread should move. Hysteresis lies between the two
// thresholds; a load that flips between them makes each further change wait longer.
func (a *affinity) decide() bool {
	large := a.copied >= int64(a.count)*affinityLarge
	change := a.pinned && a.distinct >= affinityMany && !large ||
		!a.pinned && (a.distinct <= affinityFew || large)
	clear(a.seen)
	a.count, a.distinct, a.copied = 0, 0, 0
	a.calm++
	if !change {
		a.streak = 0
		if a.calm >= affinityCalm {
			a.patience = affinityPatience
		}
		return false
	}
	if a.streak++; a.streak < a.patience {
		return false
	}
	if a.calm < affinityCalm {
		a.patience = min(2*a.patience, affinityImpatient)
	}
	a.streak, a.calm = 0, 0
	return true
}

// move changes the calling thread's CPUs.
func (a *affinity) move(near bool) {
	a.pinned = near
	set := &a.wide
	spin := maxSpin
	if near {
		set, spin = &a.near, 0
	}
	a.ring.SetSpin(spin)
	// It fails if the CPUs have just gone offline; the scheduler then does what it can.
	_ = unix.SchedSetaffinity(0, set)
}

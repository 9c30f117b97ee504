package cache

import (
	"slices"
	"sync"
	"time"

	"ubcache/attrs"
)

// Trace is a request that carried a trace id.
type Trace struct {
	ID      uint64    `json:"id"`
	Backing string    `json:"backing"` // name of the backing device
	Op      string    `json:"op"`
	Off     int64     `json:"offset"` // bytes
	Len     int64     `json:"length"` // bytes
	FUA     bool      `json:"fua,omitempty"`
	Origin  string    `json:"origin"`          // where the data came from or went to
	Err     string    `json:"error,omitempty"` // empty if it succeeded
	Done    time.Time `json:"done"`            // when it was answered

	// Times in nanoseconds, as attrs.Timing has them.
	QueuedNs  int64 `json:"queued_ns"`
	SSDNs     int64 `json:"ssd_ns"`
	BackingNs int64 `json:"backing_ns"`
	TotalNs   int64 `json:"total_ns"`
}

// tracesPerLane is how many traced requests a lane remembers.
const tracesPerLane = 256

// traceRing remembers the newest traced requests of a lane. Only they take its lock, and only
// for a copy.
type traceRing struct {
	mu   sync.Mutex
	list []traced // made for the first one
	n    uint64   // that were added
}

// traced is a Trace without its texts.
type traced struct {
	id       uint64
	backing  string
	op       ReqOp
	fua      bool
	off, len int64
	origin   attrs.Origin
	err      error
	done     time.Time
	timing   attrs.Timing
}

func (t *traceRing) add(r *Request, timing attrs.Timing) {
	done := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.list == nil {
		t.list = make([]traced, tracesPerLane)
	}
	t.list[t.n%tracesPerLane] = traced{
		id: r.Attrs.Trace(), backing: r.b.name, op: r.Op, fua: r.FUA, off: r.Off, len: r.Len,
		origin: r.res.Origin, err: r.Err, done: done, timing: timing,
	}
	t.n++
}

func (e *traced) export() Trace {
	t := Trace{
		ID: e.id, Backing: e.backing, Op: e.op.String(), FUA: e.fua, Off: e.off, Len: e.len,
		Origin: e.origin.String(), Done: e.done,
		QueuedNs: int64(e.timing.Queued), SSDNs: int64(e.timing.SSD),
		BackingNs: int64(e.timing.Backing), TotalNs: int64(e.timing.Total),
	}
	if e.err != nil {
		t.Err = e.err.Error()
	}
	return t
}

// Traces lists the newest requests that carried a trace id, of each lane at most 256, in the order
// in which they were answered. Any thread may call it. What a lane remembers ends with it.
func (c *Cache) Traces() []Trace {
	var all []Trace
	for _, l := range *c.lanes.Load() {
		t := &l.traces
		t.mu.Lock()
		for i := t.n - min(t.n, tracesPerLane); i < t.n; i++ {
			all = append(all, t.list[i%tracesPerLane].export())
		}
		t.mu.Unlock()
	}
	slices.SortStableFunc(all, func(a, b Trace) int { return a.Done.Compare(b.Done) })
	return all
}

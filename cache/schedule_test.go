package cache

import (
	"slices"
	"testing"
	"time"

	"ubcache/attrs"
	"ubcache/policy"
)

// rig is several lanes on devices that serve one operation at a time, in order, each taking a tick
// of 100 µs; ten times that for the backing device.
type rig struct {
	*harness
	lanes  []*rigLane
	queue  [2][]rigOp // of the SSD and the backing device
	busyTo [2]int64
	begun  map[*Request]int64
	took   map[*Request]int64
}

type rigLane struct {
	*rig
	l     *Lane
	woken bool
}

type rigOp struct {
	l  *Lane
	op *Op
}

const rigTick = int64(100 * time.Microsecond)

func newRig(t *testing.T, lanes int) *rig {
	g := &rig{harness: pressedBy(t, 64<<20), begun: map[*Request]int64{}, took: map[*Request]int64{}}
	for range lanes {
		d := &rigLane{rig: g}
		d.l = g.c.NewLane(d)
		g.lanes = append(g.lanes, d)
	}
	// The lane that did the background work so far leaves it to the last one.
	g.c.StartBackground(g.lanes[lanes-1].l)
	return g
}

func (d *rigLane) Submit(op *Op) {
	i := min(int(op.Dev), 1)
	d.queue[i] = append(d.queue[i], rigOp{d.l, op})
}

func (d *rigLane) Wake() { d.woken = true }

func (d *rigLane) Finish(r *Request) { d.took[r] = d.now - d.begun[r] }

// send submits a request on a lane.
func (g *rig) send(lane int, r *Request) {
	r.Backing = g.b.ID()
	g.begun[r] = g.now
	g.lanes[lane].l.Submit(r)
}

// tick lets a tick pass.
func (g *rig) tick() {
	g.now += rigTick
	for i, cost := range [2]int64{rigTick, 10 * rigTick} {
		if len(g.queue[i]) == 0 || g.now < g.busyTo[i] {
			continue
		}
		g.busyTo[i] = g.now + cost
		o := g.queue[i][0]
		g.queue[i] = g.queue[i][1:]
		dev := []memStorage{g.ssd, g.back}[i]
		switch o.op.Kind {
		case OpRead:
			copy(o.op.Mem, dev[o.op.Off:])
		case OpWrite:
			copy(dev[o.op.Off:], o.op.Mem)
		}
		o.l.Complete(o.op, nil)
	}
	for i, d := range g.lanes {
		bg := i == len(g.lanes)-1 && (d.woken || g.now/rigTick%500 == 0)
		if d.woken {
			d.woken = false
			d.l.Run()
		}
		if bg {
			d.l.Tick()
		}
	}
}

func (g *rig) untilAll(what string, n int) {
	g.t.Helper()
	for i := 0; len(g.took) < n; i++ {
		if i > 1_000_000 {
			g.t.Fatalf("%s: %d of %d requests end", what, len(g.took), n)
		}
		g.tick()
	}
}

// rtLatency plays reads, one after the other, beside a flood of writes that has up to 64 requests
// under way on each of two lanes, and writeback; it returns the 99th percentile.
func rtLatency(t *testing.T, reads, flood string) time.Duration {
	g := newRig(t, 3)
	g.b.dirtyTarget.Store(1)
	for first := Block(0); first < 64; first += 4 { // what the reads hit
		g.send(0, request(t, ReqRead, first, 4, "hint=default"))
	}
	g.untilAll("the hot data", 16)
	var inFlight [2]int
	var all []int64
	var r *Request
	next := Block(1024)
	flooding := map[*Request]int{}
	for len(all) < 300 {
		for q, lane := range []int{0, 1} {
			for ; inFlight[q] < 64; inFlight[q]++ {
				w := request(t, ReqWrite, next, 1, flood)
				next = 1024 + (next-1023)%256
				flooding[w] = q
				g.send(lane, w)
			}
		}
		if r == nil {
			from := Block(0)
			if reads[:11] == "hint=bypass" {
				from = 3000 // not cached
			}
			r = request(t, ReqRead, from+Block(len(all)*4%64), 4, reads)
			g.send(0, r)
		}
		g.tick()
		if took, ok := g.took[r]; ok {
			all, r = append(all, took), nil
		}
		for w, q := range flooding {
			if _, ok := g.took[w]; ok {
				delete(flooding, w)
				inFlight[q]--
			}
		}
	}
	n := len(g.begun)
	g.untilAll("the flood", n)
	all = all[64:] // the flood that was in service before
	slices.Sort(all)
	return time.Duration(all[len(all)*99/100])
}

// The goal of priorities: 5 times better. One lane has the reads and half of the flood, another
// has the other half.
func TestPriorityLatency(t *testing.T) {
	for _, c := range []struct{ name, reads, flood string }{
		{"SSD", "hint=default", "hint=default"},
		{"backing device", "hint=bypass", "mode=writearound"},
	} {
		t.Run(c.name, func(t *testing.T) {
			without := rtLatency(t, c.reads, c.flood)
			with := rtLatency(t, c.reads+",prio=rt/4", c.flood+",prio=idle/4")
			be := rtLatency(t, c.reads, c.flood+",prio=idle/4")
			t.Logf("p99 without priorities %v, rt against idle %v, be against idle %v", without, with, be)
			if with*5 > without {
				t.Errorf("rt against idle: %v, without priorities %v", with, without)
			}
			if be*5 > without {
				t.Errorf("be against idle: %v, without priorities %v", be, without)
			}
		})
	}
}

// While there are rt requests on one lane, another has one idle request in service at a time, and
// they all end, in the order of their levels.
func TestIdleYieldsOnOtherLanes(t *testing.T) {
	g := newRig(t, 2)
	var order []uint8
	var idle []*Request
	for i := range 40 {
		r := request(t, ReqWrite, Block(i*4), 1, "prio=idle/"+string(rune('0'+7-i%8)))
		idle = append(idle, r)
	}
	g.send(0, request(t, ReqRead, 2000, 1, "prio=rt/0"))
	for _, r := range idle {
		g.send(1, r)
	}
	sent := 1 + len(idle)
	seen := map[*Request]bool{}
	for i := 0; len(order) < len(idle); i++ {
		if i > 100_000 {
			t.Fatalf("%d of %d idle requests ended", len(order), len(idle))
		}
		if n := g.lanes[1].l.sched.Serving(policy.Idle); n > 1 {
			t.Fatalf("%d idle requests are in service", n)
		}
		if i%50 == 0 {
			g.send(0, request(t, ReqRead, 2000, 1, "prio=rt/0"))
			sent++
		}
		g.tick()
		for _, r := range idle {
			if _, ok := g.took[r]; ok && !seen[r] {
				seen[r] = true
				order = append(order, r.Attrs.Priority().Level)
			}
		}
	}
	g.untilAll("the rest", sent)
	if !slices.IsSorted(order[1:]) { // the first found the way free
		t.Errorf("order of levels %v", order)
	}
	for _, r := range idle {
		want(t, "priority", r.Results.For(attrs.IDPriority), attrs.Handled, attrs.ReasonNone)
	}
}

// A request of class rt that takes longer than its class is remembered holds the others back all the
// while, and so does one of class be those of class idle.
func TestSlowRequestsAreAround(t *testing.T) {
	for text, most := range map[string]int{"prio=rt/0": 1, "prio=be/0": 2} {
		g := newRig(t, 2)
		slow := request(t, ReqRead, 2000, 1, text)
		g.send(0, slow)
		stuck := g.queue[1]
		g.queue[1] = nil
		g.now += 3 * holdFor
		for i := range Block(20) {
			g.send(1, request(t, ReqWrite, i, 1, "prio=idle/0"))
		}
		for len(g.took) < 20 {
			if n := g.lanes[1].l.sched.Serving(policy.Idle); n > most {
				t.Fatalf("beside %s there are %d idle requests in service", text, n)
			}
			g.tick()
		}
		g.queue[1] = stuck
		g.untilAll("the slow one", 21)
	}
}

// A flush does not wait for queued writes, and a queued write with FUA is made durable when its
// turn comes.
func TestFlushPassesQueuedWrites(t *testing.T) {
	g := newRig(t, 1)
	g.send(0, request(t, ReqRead, 2000, 1, "prio=rt/0"))
	var writes []*Request
	for i := range Block(20) {
		r := request(t, ReqWrite, i, 1, "prio=idle/0")
		r.FUA = true
		writes = append(writes, r)
		g.send(0, r)
	}
	if g.lanes[0].l.sched.Queued() != 19 {
		t.Fatalf("%d are queued", g.lanes[0].l.sched.Queued())
	}
	f := &Request{Op: ReqFlush}
	g.send(0, f)
	for g.took[f] == 0 {
		g.tick()
	}
	if n := g.lanes[0].l.sched.Queued(); n == 0 {
		t.Error("the flush waited for the queue")
	}
	g.untilAll("the writes", 22)
	for _, r := range writes {
		if r.Err != nil || r.Results.Origin != attrs.OriginSSD {
			t.Errorf("%v, %v", r.Err, r.Results.Origin)
		}
	}
}

// Once the cache stops, or the contention ends, the queue empties at once.
func TestQueueDrains(t *testing.T) {
	for _, stop := range []bool{true, false} {
		g := newRig(t, 1)
		g.send(0, request(t, ReqRead, 2000, 1, "prio=rt/0"))
		g.untilAll("the rt request", 1)
		for i := range Block(20) {
			g.send(0, request(t, ReqWrite, i, 1, "prio=idle/0"))
		}
		l := g.lanes[0].l
		if l.sched.Queued() != 19 {
			t.Fatalf("%d are queued", l.sched.Queued())
		}
		if stop {
			g.c.closing.Store(true)
		} else {
			g.now += 2 * holdFor
		}
		for l.sched.Serving(policy.Idle) != 0 && l.sched.Queued() == 19 {
			g.tick()
		}
		if l.sched.Queued() != 0 {
			t.Errorf("stopping %v: %d are queued yet", stop, l.sched.Queued())
		}
		g.untilAll("the writes", 21)
		g.c.closing.Store(false)
	}
}

// What rt requests touch stays longer; idle ones keep nothing.
func TestPriorityWeighsHits(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 4))
	refs := func() state {
		e, _ := h.c.index.find(makeKey(h.b.ID(), 0))
		return e.st & stRefMax / stRefOne
	}
	for _, c := range []struct {
		text string
		want state
	}{
		{"prio=idle/0", 0},
		{"prio=be/0", 1},
		{"prio=rt/0", 3},
		{"prio=rt/0", 3},
		{"prio=be/0", 3},
		{"hint=once", 0},
		{"prio=rt/0", 2},
		{"prio=idle/0", 2},
		{"prio=rt/0,hint=bypass", 2},
	} {
		if _, err := h.ask(ReqRead, c.text); err != nil {
			t.Fatal(err)
		}
		if got := refs(); got != c.want {
			t.Errorf("after %s: %d references, want %d", c.text, got, c.want)
		}
	}
	h.drain()
	h.hint(ReqRead, 0, 4, "hint=evict")
	h.hint(ReqRead, 0, 4, "prio=rt/0")
	if got := refs(); got != 1 {
		t.Errorf("a fill by an rt request begins with %d references", got)
	}
}

// Beside rt requests what idle ones read is not written to the SSD, unless they ask for it.
func TestIdleFillsYield(t *testing.T) {
	h := pressed(t)
	h.hint(ReqRead, 0, 4, "prio=idle/0")
	h.hint(ReqRead, 100, 4, "prio=rt/0")
	h.hint(ReqRead, 4, 4, "prio=idle/0")
	h.hint(ReqRead, 8, 4, "prio=idle/0,hint=cache")
	h.hint(ReqRead, 12, 4, "prio=be/0")
	for first, want := range map[Block]int64{0: 4, 4: 0, 8: 4, 12: 4, 100: 4} {
		if r := h.resident(first, 4); r.Cached != want {
			t.Errorf("blocks from %d on: %+v, want %d cached", first, r, want)
		}
	}
}

// Ordinary requests pay nothing for the scheduler while there is no contention, and while there is
// they still allocate nothing.
func TestSchedulingAllocatesNothing(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 8))
	h.ops = make([]*Op, 0, 64)
	rs := []*Request{
		request(t, ReqRead, 0, 1, "prio=rt/3"), request(t, ReqRead, 1, 1, "hint=default"),
		request(t, ReqRead, 2, 1, "prio=idle/3"), request(t, ReqRead, 3, 1, "prio=idle/1"),
	}
	queued := 0
	again := func() {
		for _, r := range rs {
			r.Backing = h.b.ID()
			h.l.Submit(r)
		}
		queued = h.l.sched.Queued()
		for n := len(h.ops); n > 0; n = len(h.ops) {
			op := h.ops[n-1]
			h.ops = h.ops[:n-1]
			copy(op.Mem, h.ssd[op.Off:])
			h.l.Complete(op, nil)
		}
	}
	again()
	if queued == 0 {
		t.Fatal("nothing was queued")
	}
	if n := testing.AllocsPerRun(100, again); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if h.l.sched.Queued() != 0 {
		t.Errorf("%d are left", h.l.sched.Queued())
	}
}

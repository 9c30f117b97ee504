package writelog

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Pair is the logs of two devices, of which one power cut takes both.
//
// They have no clock in common. So a recorder stops both devices now and then, with no I/O under way,
// and has the same mark ("cut-0", "cut-1" and so on) written to both logs: what stands before it is
// what a cut at that moment leaves at the worst. What was in which order between two of these is known from the
// completions of flushes and writes with FUA, of both devices in one list ([Done]), which begins where both logs have
// the mark "traced". A writer that has made something durable writes a mark "ack-WRITER-NUMBER", to the first log first.
type Pair [2]*Log

// Done says that a flush or a write with FUA has ended.
type Done struct {
	Dev      int
	Off, Len int64 // of a write
}

// CutKind says what the devices were doing at a [Cut].
type CutKind string

// Kinds of cuts.
const (
	// CutBoth is a moment in which both devices stood still.
	CutBoth CutKind = "at rest"
	// CutAt is just after something became durable on one device.
	CutAt CutKind = "after a flush"
	// CutIn is before a flush ended: any of what it covers is durable, or half of it.
	CutIn CutKind = "during a flush"
)

// Cut is a moment at which the power goes: what is on both devices then. The first entries of each
// log were durable. Of the rest nothing is there, but for some of what a device was just flushing.
type Cut struct {
	Kind    CutKind
	Segment int    // after which mark
	At      [2]int // entries of each log
	// Of the log Moved, entries from At on, up to Flush, which is the flush that has not ended; for
	// CutIn alone.
	Moved, Flush int
}

func (c *Cut) String() string {
	s := fmt.Sprintf("cut %s in segment %d, at entries %d and %d", c.Kind, c.Segment, c.At[0], c.At[1])
	if c.Kind == CutIn {
		s += fmt.Sprintf(", with some of %d more on device %d", c.Flush-c.At[c.Moved], c.Moved)
	}
	return s
}

// point is where something became durable.
type point struct {
	dev, at int
	segment int // -1 before the first mark
	done    int // in the list of completions
}

// Cuts lists all moments that the logs tell of, in order, and how many points there are on each device at which
// something became durable.
//
// Whoever waits for a flush learns of it when it is completed, so that until then all or nothing of what it covers may
// be durable, or some of it. So what is completed first may be durable without what is completed later, even if the
// one was logged after the other.
func (p Pair) Cuts(done []Done) (cuts []Cut, points [2]int, err error) {
	var all []point
	var marks [2][]int
	for d, l := range p {
		marks[d] = l.marks()
		list, err := l.points(d, marks[d], done)
		if err != nil {
			return nil, points, err
		}
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.segment, b.segment), cmp.Compare(a.done, b.done))
	})
	var at [2]int
	i := 0
	for k := -1; k < min(len(marks[0]), len(marks[1])); k++ {
		if k >= 0 {
			at = [2]int{marks[0][k], marks[1][k]}
			cuts = append(cuts, Cut{Kind: CutBoth, Segment: k, At: at})
		}
		for ; i < len(all) && all[i].segment == k; i++ {
			e := &all[i]
			c := Cut{Segment: k, At: at, Moved: e.dev}
			at[e.dev] = e.at + 1
			if k < 0 {
				continue
			}
			points[e.dev]++
			if from := p[e.dev].batch(e.at); from < e.at {
				c.Kind, c.At[e.dev], c.Flush = CutIn, from, e.at
				cuts = append(cuts, c)
			}
			c.Kind, c.At, c.Flush = CutAt, at, 0
			cuts = append(cuts, c)
		}
	}
	return cuts, points, nil
}

// points finds where something became durable on device d, and when it was completed.
func (l *Log) points(d int, marks []int, done []Done) (list []point, err error) {
	ends := map[Done][]int{}
	for i, x := range done {
		ends[x] = append(ends[x], i)
	}
	traced := false
	segment := -1
	for i, e := range l.Entries {
		traced = traced || e.Kind == Mark && e.Text == "traced"
		if segment+1 < len(marks) && i >= marks[segment+1] {
			segment++
		}
		if !traced || !e.Durable() {
			continue
		}
		x := Done{d, e.Off, e.Len}
		if e.Kind == Flush {
			x = Done{Dev: d}
		}
		if len(ends[x]) == 0 {
			return nil, fmt.Errorf("entry %d of device %d, %v, has not been completed", i, d, e)
		}
		list = append(list, point{d, i, segment, ends[x][0]})
		ends[x] = ends[x][1:]
	}
	// Two of the same device may be completed the other way round than they were logged: then the earlier end counts,
	// by which both were under way and may be durable.
	for i := len(list) - 2; i >= 0; i-- {
		list[i].done = min(list[i].done, list[i+1].done)
	}
	return list, nil
}

// marks is where a log has cut-0, cut-1 and so on.
func (l *Log) marks() (at []int) {
	for i, e := range l.Entries {
		if e.Kind == Mark && strings.HasPrefix(e.Text, "cut-") {
			at = append(at, i)
		}
	}
	return at
}

// batch is where what the flush at i has made durable begins: the kernel logs it right before. It is
// i for a write with FUA.
func (l *Log) batch(i int) int {
	if l.Entries[i].Kind != Flush {
		return i
	}
	for i > 0 && l.Entries[i-1].Kind != Mark && !l.Entries[i-1].Durable() {
		i--
	}
	return i
}

// Acked is the highest number that each writer had acknowledged by the time of a cut.
func (p Pair) Acked(c *Cut, writers int) []int64 {
	acked := make([]int64, writers)
	for d, l := range p {
		for _, e := range l.Entries[:c.At[d]] {
			var i int
			var n int64
			if e.Kind != Mark {
				continue
			}
			if _, err := fmt.Sscanf(e.Text, "ack-%d-%d", &i, &n); err == nil && i < writers {
				acked[i] = max(acked[i], n)
			}
		}
	}
	return acked
}

// Sample takes n cuts of each kind and device at random and keeps them in order; 0 takes all.
func Sample(cuts []Cut, n int, seed uint64) (list []Cut) {
	if n == 0 {
		return cuts
	}
	type group struct {
		kind  CutKind
		moved int
	}
	groups := map[group]int{}
	chosen := make([]bool, len(cuts))
	// The first n of each group in a random order.
	for _, i := range rand.New(rand.NewPCG(seed, 4)).Perm(len(cuts)) {
		g := group{cuts[i].Kind, cuts[i].Moved}
		if groups[g] < n {
			groups[g]++
			chosen[i] = true
		}
	}
	for i := range cuts {
		if chosen[i] {
			list = append(list, cuts[i])
		}
	}
	return list
}

// PlayFlushing does, of what was just being flushed at a cut, what may have become durable: each write as
// a whole, not at all, or torn at a sector. The rest of the cut must have been played.
func (p Pair) PlayFlushing(c *Cut, to Target, rnd *rand.Rand) error {
	l := p[c.Moved]
	for i := c.At[c.Moved]; i < c.Flush; i++ {
		from, end := int64(0), l.Entries[i].Len
		switch rnd.IntN(4) {
		case 0:
			continue
		case 1:
			at := rnd.Int64N(end/512+1) * 512
			if rnd.IntN(2) == 0 {
				from = at
			} else {
				end = at
			}
		}
		if from == end {
			continue
		}
		if err := l.PlayPart(to, i, from, end); err != nil {
			return err
		}
	}
	return nil
}

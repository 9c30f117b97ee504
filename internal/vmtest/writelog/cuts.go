package writelog

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Pair is the logs of two devices, of which one power cut takes both.
//
// They have no clock in common. So a recorder stops both devices now and then, with no I/O under way,
// and has the same mark ("cut-0", "cut-1" and so on) written to both logs: what stands before it is
// what a cut at that moment leaves at the worst. A writer that has made something durable writes a mark
// "ack-WRITER-NUMBER", to the first log first.
type Pair [2]*Log

// CutKind says what the devices were doing at a [Cut].
type CutKind string

// Kinds of cuts.
const (
	// CutBoth is a moment in which both devices stood still.
	CutBoth CutKind = "at rest"
	// CutAt is just after something became durable on one device, and nothing did on the other.
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

// Cuts lists all moments that the logs tell of, in order. Between two marks the order of what happened
// on the one device and on the other is unknown, so that those moments are left out in which
// something became durable on both between the same marks.
func (p Pair) Cuts() (cuts []Cut) {
	marks := [2][]int{p[0].marks(), p[1].marks()}
	n := min(len(marks[0]), len(marks[1]))
	for k := range n {
		start := [2]int{marks[0][k], marks[1][k]}
		cuts = append(cuts, Cut{Kind: CutBoth, Segment: k, At: start})
		var moves [2][]int
		for d, l := range p {
			end := len(l.Entries)
			if k+1 < n {
				end = marks[d][k+1]
			}
			moves[d] = l.durable(start[d], end)
		}
		for d, l := range p {
			if len(moves[1-d]) == 0 {
				cuts = append(cuts, l.sweep(moves[d], Cut{Segment: k, At: start, Moved: d})...)
			}
		}
	}
	return cuts
}

// sweep lists the moments at which something became durable on one device.
func (l *Log) sweep(moves []int, c Cut) (cuts []Cut) {
	for _, i := range moves {
		if from := l.batch(i); from < i {
			c.Kind, c.At[c.Moved], c.Flush = CutIn, from, i
			cuts = append(cuts, c)
		}
		c.Kind, c.At[c.Moved], c.Flush = CutAt, i+1, 0
		cuts = append(cuts, c)
	}
	return cuts
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

func (l *Log) durable(from, to int) (at []int) {
	for i := from; i < to; i++ {
		if l.Entries[i].Durable() {
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

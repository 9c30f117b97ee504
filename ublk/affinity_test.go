package ublk

import "testing"

// feed runs windows of requests whose tags cycle through n tags and returns how often the thread
// would have moved.
func feed(a *affinity, windows, n int) (moves int) {
	for range windows {
		for i := range affinityWindow {
			tag := i % n
			if w, bit := &a.seen[tag/64], uint64(1)<<(tag%64); *w&bit == 0 {
				*w |= bit
				a.distinct++
			}
		}
		if a.decide() {
			a.pinned = !a.pinned
			moves++
		}
	}
	return moves
}

func newAffinity() *affinity {
	return &affinity{
		policy: AffinityAdaptive, pinned: true, patience: affinityPatience, seen: make([]uint64, 2),
	}
}

func TestAffinityFollowsDepth(t *testing.T) {
	a := newAffinity()
	for _, c := range []struct {
		tags, moves int
		pinned      bool
	}{
		{1, 0, true},
		{2, 0, true},
		{3, 0, true},
		{16, 1, false},
		{3, 0, false},
		{1, 1, true},
		{128, 1, false},
	} {
		if moves := feed(a, 2*affinityCalm, c.tags); moves != c.moves || a.pinned != c.pinned {
			t.Errorf("%d tags in flight: %d moves, pinned %v, want %d, %v", c.tags, moves, a.pinned,
				c.moves, c.pinned)
		}
	}
}

func TestAffinityIgnoresBursts(t *testing.T) {
	a := newAffinity()
	for range 100 {
		if feed(a, 1, 16)+feed(a, 3, 1) != 0 {
			t.Fatal("a single deep window moved the thread")
		}
	}
}

// A load that alternates makes the thread move less and less often.
func TestAffinityDampsFlapping(t *testing.T) {
	a := newAffinity()
	moves := 0
	for range 500 {
		moves += feed(a, affinityPatience, 16) + feed(a, affinityPatience, 1)
	}
	if moves > 20 {
		t.Errorf("%d moves in 2000 windows", moves)
	}
}

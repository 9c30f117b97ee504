package ublk

import "testing"

// feed runs windows of 4 KiB requests whose tags cycle through n tags and returns how often the
// thread would have moved.
func feed(a *affinity, windows, n int) (moves int) { return feedSize(a, windows, n, 4096) }

func feedSize(a *affinity, windows, n, bytes int) (moves int) {
	for range windows {
		for i := 0; !a.note(&Request{Tag: uint16(i % n), Sectors: uint32(bytes >> 9)}); i++ {
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

// The thread that copies large requests stays on its CPU, however many are in flight.
func TestAffinityOfLargeCopies(t *testing.T) {
	a := newAffinity()
	if moves := feedSize(a, 10, 16, 1<<20); moves != 1 || a.pinned {
		t.Errorf("without copies: %d moves, pinned %v", moves, a.pinned)
	}
	a.copies = true
	if moves := feedSize(a, affinityCalm, 16, 1<<20); moves != 1 || !a.pinned {
		t.Errorf("with copies: %d moves, pinned %v", moves, a.pinned)
	}
	if moves := feedSize(a, 2*affinityCalm, 16, 4096); moves != 1 || a.pinned {
		t.Errorf("small ones again: %d moves, pinned %v", moves, a.pinned)
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

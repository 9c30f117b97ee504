package sim

import (
	"slices"
	"testing"
)

// foundSeeds are histories that have found something: the queue of an ordered device that was dropped, a write with
// FUA over dirty data, dirty blocks that counted as bad since they were asked for while the SSD was away.
var foundSeeds = []uint64{373, 1101, 1479}

// TestVanishing plays histories in which the SSD vanishes and comes back. A failing seed is replayed, with
// a trace, by go test ./cache/sim -run Vanishing -seed N.
func TestVanishing(t *testing.T) {
	if *seedFlag != 0 {
		h := history{cfg: NewVanishConfig(*seedFlag)}
		t.Logf("config: %+v", h.cfg)
		if _, err := h.play(t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	var total Result
	seeds := slices.Clone(foundSeeds)
	for seed := *fromFlag; seed < *fromFlag+*seedsFlag; seed++ {
		seeds = append(seeds, seed)
	}
	for _, seed := range seeds {
		h := history{cfg: NewVanishConfig(seed)}
		r, err := h.play(nil)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		total.add(&r)
	}
	t.Logf("the SSD vanished %d times and came back %d times, %d times warm; %d requests failed for lack "+
		"of it, %d for what it had lost; it stalled %d times and was taken back in place %d times; the power went %d "+
		"times while it was away\n%v", total.Vanished, total.Returned, total.ReturnedWarm, total.FailedLost,
		total.FailedBad, total.Stalls, total.InPlace, total.CutsAway, &total)
	if *seedsFlag >= 100 {
		if total.Vanished == 0 || total.Returned == 0 || total.ReturnedWarm == 0 || total.FailedLost == 0 ||
			total.FailedBad == 0 || total.ReturnedWarm == total.Returned || total.InPlace == 0 ||
			total.CutsAway == 0 {
			t.Error("the histories miss a part of that")
		}
	}
}

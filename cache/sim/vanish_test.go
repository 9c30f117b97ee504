package sim

import "testing"

// foundSeeds are histories that have found something: the queue of an ordered device that was dropped, a write with
// FUA over dirty data, dirty blocks that counted as bad since they were asked for while the SSD was away.
var foundSeeds = []uint64{373, 1101, 1479}

// TestVanishing plays histories in which the SSD vanishes and comes back.
func TestVanishing(t *testing.T) {
	if *seedFlag != 0 {
		return // TestHistories replays it
	}
	for _, seed := range foundSeeds {
		if _, err := playMany(NewVanishConfig, seed, 1, 0, t.Logf); err != nil {
			t.Error(err)
		}
	}
	r, err := playMany(NewVanishConfig, *fromFlag, *seedsFlag, *timeFlag, t.Logf)
	if err != nil {
		t.Error(err)
	}
	t.Logf("the SSD vanished %d times and came back %d times, %d times warm; %d requests failed for lack "+
		"of it, %d for what it had lost; it stalled %d times and was taken back in place %d times; the power went %d "+
		"times while it was away\n%v", r.Vanished, r.Returned, r.ReturnedWarm, r.FailedLost,
		r.FailedBad, r.Stalls, r.InPlace, r.CutsAway, &r)
	if *seedsFlag >= 100 && !t.Failed() {
		if r.Vanished == 0 || r.Returned == 0 || r.ReturnedWarm == 0 || r.FailedLost == 0 ||
			r.FailedBad == 0 || r.ReturnedWarm == r.Returned || r.InPlace == 0 || r.CutsAway == 0 {
			t.Error("the histories miss a part of that")
		}
	}
}

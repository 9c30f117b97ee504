package sim

import "testing"

func playVanish(seed uint64, trace func(string, ...any)) (Result, error) {
	s, err := New(NewVanishConfig(seed))
	if err != nil {
		return Result{}, err
	}
	s.Trace = trace
	return s.Run()
}

// TestVanishing plays histories in which the SSD vanishes and comes back. A failing seed is replayed, with
// a trace, by go test ./cache/sim -run Vanishing -seed N.
func TestVanishing(t *testing.T) {
	if *seedFlag != 0 {
		t.Logf("config: %+v", NewVanishConfig(*seedFlag))
		if _, err := playVanish(*seedFlag, t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	total := playAll(t, playVanish)
	if *seedsFlag >= 100 && !t.Failed() {
		if total.Vanished == 0 || total.Returned == 0 || total.ReturnedWarm == 0 || total.FailedLost == 0 ||
			total.FailedBad == 0 || total.ReturnedWarm == total.Returned {
			t.Errorf("the histories miss a part: %+v", total)
		}
	}
}

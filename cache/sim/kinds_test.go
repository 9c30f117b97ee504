package sim

import (
	"flag"
	"testing"
)

var kindsFlag = flag.Uint64("kinds", 20*fewer, "of the histories of each kind, play one in so many")

// TestKinds plays histories in which much of one thing happens, of each kind that has no test of its own.
func TestKinds(t *testing.T) {
	if *seedFlag != 0 {
		return // TestHistories replays it
	}
	draw, n := drawKinds(kinds[ownKinds:], *kindsFlag)
	r, err := playMany(draw, 1, n, 0, t.Logf)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%v", &r)
	if *kindsFlag == 1 && !t.Failed() && (r.Histories != int(n) || r.Forgotten == 0 || r.Moved == 0 || r.Faults[FaultSSDFlush] == 0) {
		t.Errorf("the histories miss what they are for: %+v", r)
	}
	noteFaults(t, &r)
}

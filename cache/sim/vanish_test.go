package sim

import (
	"reflect"
	"testing"
	"time"
)

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
	r, err := playMany(NewVanishConfig, *fromFlag, *seedsFlag, *timeFlag/time.Duration(*partFlag), t.Logf)
	if err != nil {
		t.Error(err)
	}
	t.Logf("the SSD vanished %d times and came back %d times, %d times warm; %d requests failed for lack "+
		"of it, %d reads did not need it, %d for what it had lost; it stalled %d times and was taken back in place %d times; the power went %d "+
		"times while it was away; %d reads went round it, %d blocks were not admitted, %d had other memory\n%v", r.Vanished, r.Returned,
		r.ReturnedWarm, r.FailedLost, r.Spared, r.FailedBad, r.Stalls, r.InPlace, r.CutsAway, r.Around, r.Unadmitted, r.Swapped, &r)
	if r.Histories >= 300 && !t.Failed() {
		for _, problem := range r.missingOfVanishing() {
			t.Error(problem)
		}
	}
	noteFaults(t, &r)
}

// missingOfVanishing says what a large number of histories in which the SSD vanishes should have met, and has not.
func (r *Result) missingOfVanishing() (all []string) {
	for what, n := range map[string]int{
		"the SSD vanishes": r.Vanished, "it comes back": r.Returned, "having missed nothing": r.ReturnedWarm,
		"having missed something": r.Returned - r.ReturnedWarm, "it is the operator's": r.Over,
		"requests fail for lack of it": r.FailedLost, "and others do not": r.Spared, "and for what it has lost": r.FailedBad,
		"it stalls": r.Stalls, "it is taken back in place": r.InPlace,
		"the power goes while it is away": r.CutsAway, "reads go round it": r.Around, "and are not admitted": r.Unadmitted,
		"with other memory": r.Swapped,
	} {
		if n == 0 {
			all = append(all, "the histories miss: "+what)
		}
	}
	return all
}

// TestMissingOfVanishing: each of the counters is looked at.
func TestMissingOfVanishing(t *testing.T) {
	met := Result{
		Vanished: 1, Returned: 2, ReturnedWarm: 1, Over: 1, FailedLost: 1, FailedBad: 1, Stalls: 1, InPlace: 1, CutsAway: 1,
		Spared: 1, Around: 1, Unadmitted: 1, Swapped: 1,
	}
	if all := met.missingOfVanishing(); len(all) != 0 {
		t.Error(all)
	}
	for _, name := range []string{
		"Vanished", "Returned", "ReturnedWarm", "Over", "FailedLost", "FailedBad", "Stalls", "InPlace", "CutsAway",
		"Spared", "Around", "Unadmitted", "Swapped",
	} {
		r := met
		reflect.ValueOf(&r).Elem().FieldByName(name).SetInt(0)
		if len(r.missingOfVanishing()) == 0 {
			t.Errorf("%s may be 0", name)
		}
	}
}

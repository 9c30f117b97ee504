package sim

import "testing"

// TestOrderedHistories plays histories in which devices are ordered, and looks at what the backing
// devices would show if the SSD were lost.
func TestOrderedHistories(t *testing.T) {
	if *seedFlag != 0 {
		return // TestHistories replays it
	}
	r, err := playMany(NewOrderedConfig, *fromFlag, *seedsFlag, *timeFlag, t.Logf)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d batches, %d images, %d behind, %d orders given up\n%v", r.Batches, r.Images, r.Behind, r.Broken, &r)
	if *seedsFlag >= 100 && !t.Failed() && (r.Images == 0 || r.Behind == 0 || r.Batches == 0) {
		t.Errorf("the histories miss what they are for: %+v", r)
	}
}

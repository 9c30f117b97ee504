package policy

import "testing"

func TestSecondChance(t *testing.T) {
	quarter := SecondChance{Keep: 0.25}
	for _, c := range []struct {
		name string
		p    SecondChance
		v    BucketView
		want bool
	}{
		{"nothing hit", quarter, BucketView{Slots: 256, Live: 256, Closed: 10}, true},
		{"just too few hits", quarter, BucketView{Slots: 256, Live: 256, Hot: 63, Closed: 10}, true},
		{"enough hits", quarter, BucketView{Slots: 256, Live: 256, Hot: 64, Closed: 10}, false},
		{"all hit", quarter, BucketView{Slots: 256, Live: 256, Hot: 256, Closed: 10}, false},
		// The share is of the slots, not of those alive: a nearly empty bucket is not worth its space.
		{"few alive, all hit", quarter, BucketView{Slots: 256, Live: 60, Hot: 60, Closed: 10}, true},
		{"hit, but one is left", quarter, BucketView{Slots: 256, Live: 256, Hot: 256, Passed: 9, Closed: 10}, false},
		{"hit, but all are", quarter, BucketView{Slots: 256, Live: 256, Hot: 256, Passed: 10, Closed: 10}, true},
		{"only bucket", quarter, BucketView{Slots: 256, Live: 256, Hot: 256, Passed: 1, Closed: 1}, true},
		{"keep everything", SecondChance{}, BucketView{Slots: 256, Live: 1, Closed: 10}, false},
		{"keep only full ones", SecondChance{Keep: 1}, BucketView{Slots: 256, Live: 256, Hot: 255, Closed: 10}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.p.Evict(c.v); got != c.want {
				t.Errorf("Evict(%+v) = %t", c.v, got)
			}
		})
	}
}

// TestSecondChanceEnds plays the search of a cache in which everything is hot: it must end with a
// bucket, after one round at most.
func TestSecondChanceEnds(t *testing.T) {
	p := SecondChance{Keep: 0.25}
	const closed = 5
	passed := 0
	for !p.Evict(BucketView{Slots: 8, Live: 8, Hot: 8, Passed: passed, Closed: closed}) {
		if passed++; passed > closed {
			t.Fatal("the search does not end")
		}
	}
	if passed != closed {
		t.Errorf("a hot bucket went after %d of %d were kept", passed, closed)
	}
}

func TestOverShare(t *testing.T) {
	for _, c := range []struct {
		v    BucketView
		want bool
	}{
		{BucketView{Slots: 16, Live: 16}, false},
		{BucketView{Slots: 16}, false},
		{BucketView{Slots: 16, Live: 16, Over: 7}, false},
		{BucketView{Slots: 16, Live: 16, Over: 8}, true},
		{BucketView{Slots: 16, Live: 2, Over: 1}, true},
	} {
		if got := OverShare(c.v); got != c.want {
			t.Errorf("OverShare(%+v) = %t", c.v, got)
		}
	}
}

// TestPinnedStays: with half of all slots pinned, however they lie, there are buckets to empty.
func TestPinnedStays(t *testing.T) {
	for _, slots := range []int{16, 256, 16384} {
		most := slots
		if !PinnedStays(BucketView{Slots: slots, Pinned: most - 1}) {
			t.Fatalf("of %d slots all but one pinned: the bucket goes", slots)
		}
		for PinnedStays(BucketView{Slots: slots, Pinned: most}) {
			most--
		}
		const buckets = 1000
		if stay := buckets / 2 * slots / (most + 1); stay > buckets*4/7 {
			t.Errorf("%d slots: %d of %d buckets can be made to stay", slots, stay, buckets)
		}
	}
}

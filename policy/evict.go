package policy

// BucketView is what eviction knows of a bucket.
type BucketView struct {
	Slots  int // that it has
	Live   int // that still hold a block
	Hot    int // live ones that were hit since the bucket was last looked at, Over ones left out
	Over   int // live ones of tenants that have more than their share
	Pinned int // live ones that stay whatever happens
	Passed int // buckets kept in this search so far
	Closed int // buckets that there are to choose from
}

// Evictor chooses which closed bucket to empty. It is shown buckets from the oldest on.
type Evictor interface {
	// Evict reports whether to empty the bucket. Otherwise it becomes the youngest, and its
	// blocks count as not hit.
	Evict(v BucketView) bool
}

// SecondChance evicts first in, first out, but keeps a bucket once for every time that at least
// the share Keep of its slots was hit. A search never keeps all.
type SecondChance struct {
	Keep float64 // share of slots, 0 to 1
}

// Evict implements Evictor.
func (p SecondChance) Evict(v BucketView) bool {
	return v.Passed >= v.Closed || float64(v.Hot) < p.Keep*float64(v.Slots)
}

// OverShare reports whether a bucket should go before older ones, because at least half of what
// lives in it belongs to tenants that have more than their share.
func OverShare(v BucketView) bool { return v.Over > 0 && 2*v.Over >= v.Live }

// PinnedStays reports whether so much of a bucket is pinned that emptying it, which takes copying
// that to another place, is not worth it: at least 7/8. As long as at most half of all slots are
// pinned, 3 of 7 buckets are not like that.
func PinnedStays(v BucketView) bool { return 8*v.Pinned >= 7*v.Slots }

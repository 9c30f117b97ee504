package policy

// BucketView is what eviction knows of a bucket.
type BucketView struct {
	Slots  int // that it has
	Live   int // that still hold a block
	Hot    int // live ones that were hit since the bucket was last looked at
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

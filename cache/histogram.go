package cache

import (
	"fmt"
	"math/bits"
	"time"
)

// Latencies are counted in buckets that grow by an eighth of a power of two, from 256 ns to 17
// minutes, so that a quantile is right within 12 %.
const (
	histShift   = 8 // bits of a nanosecond count that do not matter
	histSubBits = 3
	histSub     = 1 << histSubBits
	histBuckets = 30 * histSub
)

// histogram counts latencies. One lane writes it, anybody may read it.
type histogram [histBuckets]counter

// latencyBucket is the bucket of a latency in nanoseconds.
func latencyBucket(ns int64) int {
	v := uint64(max(ns, 0)) >> histShift
	if v < histSub {
		return int(v)
	}
	e := bits.Len64(v) - 1 - histSubBits
	return min(e<<histSubBits+int(v>>e), histBuckets-1)
}

// bucketStart is the least latency of a bucket in nanoseconds.
func bucketStart(i int) int64 {
	if i < histSub {
		return int64(i) << histShift
	}
	e := i>>histSubBits - 1
	return int64(i&(histSub-1)|histSub) << e << histShift
}

// Histogram is a count of latencies; the zero value is empty.
type Histogram struct {
	counts []int64
	total  int64
}

// String is the count of latencies, their median and their 99th percentile.
func (h Histogram) String() string {
	return fmt.Sprintf("%d, p50 %v, p99 %v", h.total, h.Quantile(0.5), h.Quantile(0.99))
}

// addCounts returns how many it has added.
func (h *Histogram) addCounts(o *histogram) (added int64) {
	if h.counts == nil {
		h.counts = make([]int64, histBuckets)
	}
	for i := range o {
		n := o[i].Load()
		h.counts[i] += n
		added += n
	}
	h.total += added
	return added
}

func (h *Histogram) add(o *Histogram) {
	if o.counts == nil {
		return
	}
	if h.counts == nil {
		h.counts = make([]int64, histBuckets)
	}
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
}

// Quantile is the latency that a share q of the requests, from 0 to 1, did not exceed; 0 if none was
// counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := q * float64(h.total)
	for i, n := range h.counts {
		if f := float64(n); n > 0 && rank <= f {
			lo := bucketStart(i)
			return time.Duration(lo + int64(rank/f*float64(bucketStart(i+1)-lo)))
		} else {
			rank -= f
		}
	}
	return time.Duration(bucketStart(histBuckets))
}

package policy

import "time"

// WritebackView is what the writeback controller knows of a backing device.
type WritebackView struct {
	Dirty, Target, Max int64         // blocks
	All                int64         // dirty blocks of all devices: Max is their limit, too
	Age                time.Duration // of the oldest dirty data
	Delay              time.Duration // that it may reach on an idle device
	Idle               time.Duration // since the last request
	Drain              bool          // everything has to go, now
	RT                 bool          // requests of class RT came lately
}

// Full is the rate of a writeback that nothing holds back.
const Full = int64(1) << 40

const (
	idleAfter = 500 * time.Millisecond
	minRate   = 256              // blocks per second
	drainRT   = 16 * minRate     // of a drain beside requests of class RT
	settle    = 40 * time.Second // in which the excess over the target should be gone; the pace of bcache
)

// WritebackRate is how many blocks per second should be written back: none below the target while
// the data is young, in proportion to the excess above it, all that can be on an idle device or
// half-way to the limit. Requests of class RT come first, whatever there is to do.
func WritebackRate(v WritebackView) int64 {
	rate := wantedRate(v)
	switch {
	case !v.RT:
		return rate
	case v.Drain:
		return min(rate, drainRT)
	}
	return min(rate, minRate)
}

func wantedRate(v WritebackView) int64 {
	excess := v.Dirty - v.Target
	switch {
	case v.Dirty == 0:
		return 0
	case v.Drain, excess > (v.Max-v.Target)/2 && excess > 0:
		return Full
	case v.All-v.Target > (v.Max-v.Target)/2 && v.All > v.Target: // together they come near the limit
		return Full
	case excess > 0 && v.Idle > idleAfter:
		return Full
	case excess > 0:
		return max(minRate, excess*int64(time.Second)/int64(settle))
	case v.Age > v.Delay && v.Idle > idleAfter:
		return Full
	case v.Age > 4*v.Delay:
		return minRate
	}
	return 0
}

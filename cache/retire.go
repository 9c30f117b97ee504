package cache

import (
	"errors"
	"slices"
)

// Buckets that the SSD has failed are used no more once they are empty, until the next start. An SSD
// that goes away for a moment fails whatever it is asked, and that says nothing about its buckets: a failure
// counts when a probe that began after it has succeeded, and is forgotten when one fails.

// retire marks a bucket as failed, on probation.
func (c *Cache) retire(id BucketID) {
	if mutated(mutBucketNotRetired) {
		return
	}
	if c.buckets[id].failed.Swap(true) {
		return
	}
	h := &c.ssdHealth
	h.mu.Lock()
	h.mu.retired = append(h.mu.retired, id)
	h.mu.Unlock()
}

// retired is how many buckets are on probation.
func (h *health) retired() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.mu.retired)
}

// convict ends the probation of the first n: they are bad.
func (h *health) convict(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.retired = slices.Delete(h.mu.retired, 0, min(n, len(h.mu.retired)))
}

// acquit takes the buckets on probation back into use: it was the SSD.
func (c *Cache) acquit() {
	h := &c.ssdHealth
	h.mu.Lock()
	list := h.mu.retired
	h.mu.retired = nil
	h.mu.Unlock()
	a := &c.alloc
	for _, id := range list {
		a.mu.Lock()
		k := &c.buckets[id]
		k.failed.Store(false)
		if k.state == bucketRetired {
			k.state = bucketFree
			a.retired.Add(-1)
			a.mu.free = append(a.mu.free, id)
			a.freeCount.Store(int32(len(a.mu.free)))
		}
		a.mu.Unlock()
	}
}

// ofBucket reports whether an error may be one of the bucket, and not of an SSD that is gone or does not answer.
func ofBucket(err error) bool {
	return !meansGone(err) && !errors.Is(err, errStuck) && !errors.Is(err, ErrSSDLost)
}

// ssdWriteFailed notes a failed write of slots: their bucket gets no more data, and is used no more once
// it is empty.
func (l *Lane) ssdWriteFailed(b *Backing, runs []slotRun, err error) {
	if l.c.lost() {
		return
	}
	if !errors.Is(err, errStuck) {
		l.io[b.id].SSDErrors.Add(1)
	}
	for _, r := range runs {
		id := l.c.bucketOf(r.first)
		if ofBucket(err) {
			l.c.retire(id)
		}
		for st := range numStreams {
			if l.open[st].id == id {
				l.closeBucket(st)
			}
		}
	}
}

// ssdReadFailed notes a failed read of n slots. The bucket of one that fails by itself is used no more once
// it is empty: what is written there next would be the only copy.
func (l *Lane) ssdReadFailed(b *Backing, s Slot, n int, err error) {
	if !errors.Is(err, errStuck) {
		l.io[b.id].SSDErrors.Add(1)
	}
	if n == 1 && !l.c.lost() && ofBucket(err) && !mutated(mutReadNotRetired) {
		l.c.retire(l.c.bucketOf(s))
	}
}

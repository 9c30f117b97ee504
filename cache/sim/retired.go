package sim

import (
	"fmt"
	"unsafe"

	"ubcache/cache"
)

// retirement checks that a bucket which the SSD has failed is used no more, until the next start, or until the SSD itself is in
// doubt: it has failed a probe, or is lost.
//
// A slot is written once in a life of its bucket. So a slot that had something when its bucket failed is not written again: not in
// the same life, and there is no other. What had been handed out by then may yet be written.
type retirement struct {
	slots   map[int64]bool // of such buckets, by place
	buckets map[int64]bool
}

func (s *Sim) bucketAt(off int64) int64 { return (off - s.geo.DataOff) / s.geo.BucketBytes }

// retires looks at an operation that has failed, before the engine does.
func (s *Sim) retires(op *cache.Op) {
	switch {
	case op.Dev != cache.SSD:
	case s.isMeta(op):
		if op.Kind == cache.OpRead && (op.Off == superA || op.Off == superB) {
			s.retired = retirement{} // a probe
		}
	case s.van.health != cache.HealthOK: // one that was given up, perhaps
	case op.Kind == cache.OpWrite, op.Kind == cache.OpRead && s.alone(op):
		s.retire(op)
	}
}

// alone reports whether an operation reads what a request wants of one block.
func (s *Sim) alone(op *cache.Op) bool {
	if one := op.Off/cache.BlockSize == (op.Off+op.Len-1)/cache.BlockSize; !one || op.Req != nil {
		return one
	}
	at := uintptr(unsafe.Pointer(&op.Mem[0]))
	for _, r := range s.reqs {
		if r.read != nil && len(r.data) != 0 {
			if from := uintptr(unsafe.Pointer(&r.data[0])); from <= at && at < from+uintptr(len(r.data)) {
				return true
			}
		}
	}
	return false
}

func (s *Sim) retire(op *cache.Op) {
	t := &s.retired
	if t.slots == nil {
		*t = retirement{map[int64]bool{}, map[int64]bool{}}
	}
	b := s.bucketAt(op.Off)
	if !t.buckets[b] {
		s.res.Retired++
	}
	t.buckets[b] = true
	for at := op.Off / cache.BlockSize * cache.BlockSize; at < op.Off+op.Len; at += cache.BlockSize {
		t.slots[at] = true
	}
	for _, p := range s.cached() {
		if s.bucketAt(p.Off) == b {
			t.slots[p.Off] = true
		}
	}
}

// usesRetired looks at an operation that is submitted.
func (s *Sim) usesRetired(op *cache.Op) {
	if op.Dev != cache.SSD || op.Kind != cache.OpWrite || len(s.retired.slots) == 0 {
		return
	}
	for at := op.Off; at < op.Off+op.Len; at += cache.BlockSize {
		if s.retired.slots[at] {
			s.fail(fmt.Errorf("bucket %d is used again, though the SSD has failed it: write at %d", s.bucketAt(at), at))
			return
		}
	}
}

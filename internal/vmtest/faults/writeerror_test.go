//go:build vm

package faults

import (
	"fmt"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// Where the SSD fails what is written, in sectors from the begin of its data on. There is no data yet: a read that fails
// there would retire the buckets before they are written to.
const badBuckets, badBucketsEnd = 8 << 11, 11 << 11

// TestSSDWriteErrors has empty buckets fail what is written to them (dm-error). What the SSD does not take is written
// through, and a bucket that has failed is not tried again, however often the others are.
func TestSSDWriteErrors(t *testing.T) {
	for kind, flags := range map[string][]string{"clean": {"--mode=writethrough"}, "dirty": keepsDirty} {
		t.Run(kind, func(t *testing.T) {
			vmtest.OnlyFull(t)
			vmtest.Limit(t, 5*time.Minute)
			s := newStage(t, "SSD: writes fail, "+kind+" data", flags...)
			for _, o := range s.oracles[2:] {
				o.Close()
			}
			s.oracles = s.oracles[:2]
			for range rounds(t, 1) {
				s.y.Tried(1)
				s.writeErrors(t, kind == "dirty")
				s.restart(t) // which tries the buckets again
				s.readAll("after a restart")
			}
			s.end()
		})
	}
}

func (s *stage) writeErrors(t *testing.T, dirty bool) {
	// The SSD's size more than once, beside the oracles: free buckets are used in turn.
	around := func() {
		for range 6 {
			vmtest.Run(t, "dd", "if=/dev/zero", "of="+s.c.Device(t, "data").Path, "bs=1M", "count=12", "oflag=direct",
				fmt.Sprint("seek=", len(s.oracles)*faultRange>>20), "status=none")
		}
	}
	fillAll := func() {
		for _, o := range s.oracles {
			s.fill(o)
		}
	}
	fillAll()
	before := s.c.Device(t, "data")
	s.ssd.faultAt(t, s.ssd.from+badBuckets, s.ssd.from+badBucketsEnd, "error", "")
	fillAll()
	after, failed := s.c.Device(t, "data"), s.stats().SSDErrors
	lacks := before.CachedBytes - after.CachedBytes
	if dirty {
		lacks = before.DirtyBytes - after.DirtyBytes
	}
	t.Logf("%d writes of the SSD failed, it lacks %d of %d bytes", failed, lacks, before.CachedBytes)
	if failed == 0 || lacks <= 0 {
		t.Error("the fault was not met")
	}
	s.readAll("during the fault")
	around()
	if again := s.stats().SSDErrors; again != failed {
		t.Errorf("%d writes of the SSD failed, %d later: buckets that failed are written to again", failed, again-failed)
	}
	s.ssd.heal(t)
	s.readAll("after the fault")
	if d := s.stats(); d.BadBlocks > 0 || d.BackingErrors > 0 {
		t.Errorf("something was lost, or the backing device failed: %+v", d)
	}
}

// restart stops the cache in order and starts it again.
func (s *stage) restart(t *testing.T) {
	t.Helper()
	for _, o := range s.oracles {
		o.Close()
	}
	s.c.Stop(t)
	s.c.Start(t)
	for _, o := range s.oracles {
		o.Reopen(t, s.c.Device(t, "data").Path)
	}
}

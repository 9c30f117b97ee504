//go:build vm

package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ubcache/internal/vmtest"
	"ubcache/internal/vmtest/writelog"
)

// recorded is a device whose writes the kernel logs (dm-log-writes).
type recorded struct {
	base, log string // what is below, and where the log is
	dev       string
	control   *vmtest.Mapped
}

// record puts dm-log-writes over a device. The logs of two devices have no clock in common, which is
// what cuts are for: see [recorder.cut].
func record(t *testing.T, name, base, log string) *recorded {
	t.Helper()
	r := &recorded{base: base, log: log}
	table := fmt.Sprintf("0 %d log-writes %s %s", vmtest.SizeBytes(t, base)/512, base, log)
	r.dev = vmtest.Mapper(t, name, table)
	r.control = vmtest.OpenMapped(t, r.dev)
	return r
}

func (r *recorded) read(t *testing.T) *writelog.Log {
	t.Helper()
	f, err := os.Open(r.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	l, err := writelog.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel's last entry; it is missing if there was no room or no memory for the log.
	if n := len(l.Entries); n == 0 || l.Entries[n-1].Text != "dm-log-writes-end" {
		t.Fatalf("the log of writes of %s is not whole: %d entries", r.dev, n)
	}
	return l
}

// recorder is a cache under load whose SSD and backing device are recorded.
type recorder struct {
	ssd, backing *recorded
	trace        *trace
	dev          string // the cached device
	config       string // of the cache
	writers      *vmtest.Writers
	oracles      []*vmtest.Oracle
	synced       [rawWriters]atomic.Int64 // how often a raw writer has made its writes durable
	cuts         int
	fault        atomic.Pointer[error]
}

// marks sends both logs the same mark.
func (r *recorder) marks(text string) error {
	if err := r.ssd.control.Message("mark " + text); err != nil {
		return err
	}
	return r.backing.control.Message("mark " + text)
}

// ack notes in both logs, in that of the SSD first, that write n of writer i is durable.
func (r *recorder) ack(i int, n int64) error { return r.marks(fmt.Sprintf("ack-%d-%d", i, n)) }

// cut marks a moment in both logs. Both devices stand still meanwhile, with no I/O under way, so
// that the entries before the marks are what a power cut leaves at this moment at the worst, on the one
// as on the other.
func (r *recorder) cut() error {
	for _, step := range []func() error{
		r.ssd.control.Suspend, r.backing.control.Suspend,
		func() error { return r.marks(fmt.Sprintf("cut-%d", r.cuts)) },
		r.backing.control.Resume, r.ssd.control.Resume,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	r.cuts++
	return nil
}

const (
	rawWriters  = 4
	rawRange    = 3 << 20 // of each
	syncEach    = 8       // writes, about
	cutPauseMax = 40 * time.Millisecond

	recordMax = time.Minute
	// leastAcked is how often each writer must have made its writes durable.
	leastAcked = 5
	// leastMoments is how many moments a recording must have; each cut is one.
	leastMoments = 50
	// leastPoints is how often each device must have made something durable.
	leastPoints = 5
)

// startRaw starts writers of the bare device, as fio would be one, but which know what they have flushed.
func (r *recorder) startRaw(t *testing.T) (stop func()) {
	t.Helper()
	var over atomic.Bool
	var wg sync.WaitGroup
	y := vmtest.Fault(t, "none: load on recorded devices")
	y.Tried(1)
	for i := range rawWriters {
		o := vmtest.NewOracle(t, r.dev, int64(i)*rawRange, rawRange)
		r.oracles = append(r.oracles, o)
		rnd := rand.New(rand.NewPCG(uint64(i), 5))
		wg.Go(func() {
			for !over.Load() {
				if err := r.rawRound(y, o, i, rnd); err != nil {
					r.fault.Store(&err)
					return
				}
			}
		})
	}
	return func() {
		over.Store(true)
		wg.Wait()
	}
}

// rawRound does some requests, makes the writes durable, and says so in the logs.
func (r *recorder) rawRound(y *vmtest.Tally, o *vmtest.Oracle, i int, rnd *rand.Rand) error {
	for range 1 + rnd.IntN(2*syncEach) {
		if _, err := o.Random(y, rnd); err != nil {
			return err
		}
	}
	version := o.Version()
	if err := o.Sync(); err != nil {
		return err
	}
	if err := r.ack(i, int64(version)); err != nil {
		return err
	}
	r.synced[i].Add(1)
	return nil
}

func (r *recorder) err() error {
	if e := r.fault.Load(); e != nil {
		return *e
	}
	if r.writers != nil {
		return r.writers.Err()
	}
	return nil
}

// least is how many durable writes the slowest writer has acknowledged.
func (r *recorder) least() int64 {
	if r.writers != nil {
		return r.writers.Least()
	}
	least := r.synced[0].Load()
	for i := range r.synced {
		least = min(least, r.synced[i].Load())
	}
	return least
}

// run lets the load go on for a time, and for longer if the machine is so slow that there is not
// enough of it, and cuts at random moments.
func (r *recorder) run(t *testing.T, length time.Duration) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(uint64(length), 9))
	end, last := time.Now().Add(length), time.Now().Add(recordMax)
	before := r.trace.points(t)
	enough := func() bool {
		points := r.trace.points(t)
		return r.cuts >= leastMoments && r.least() >= leastAcked &&
			points[0]-before[0] >= leastPoints && points[1]-before[1] >= leastPoints
	}
	for now := time.Now(); now.Before(end) || now.Before(last) && !enough(); now = time.Now() {
		time.Sleep(time.Duration(rnd.Int64N(int64(cutPauseMax))))
		if err := r.cut(); err != nil {
			t.Fatal(err)
		}
		if err := r.err(); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.least(); n < leastAcked {
		t.Fatalf("a writer has come to %d only", n)
	}
}

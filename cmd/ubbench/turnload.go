package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"ubcache/internal/uring"
)

const (
	// costDepth requests are under way on one thread: to switch threads is what emulated CPUs are
	// worst at, so that with a thread for each request nothing else would be measured.
	costDepth = 16
	costBytes = 4096
	// A window is short and there are many, so that what else the machine does falls on all sides.
	costSettle, costWindow = 20 * time.Millisecond, 120 * time.Millisecond
)

// turnLoad is a program that keeps costDepth reads of hits under way on one io_uring, of several sides by
// turns.
type turnLoad struct {
	side   atomic.Int32 // whose turn it is; below 0 is the end
	counts []atomic.Int64
	// issue prepares a read at that offset of the device, number i of those under way. end takes what became
	// of it. Both are called on the ring's thread.
	issue func(s *uring.SQE, i, side int, off uint64) error
	end   func(i, side int, res int32) error

	ring  *uring.Ring
	sides [costDepth]int // of the reads under way
}

func newTurnLoad(sides int) *turnLoad { return &turnLoad{counts: make([]atomic.Int64, sides)} }

// measure returns the rates of the sides, window by window.
func (l *turnLoad) measure(ctx context.Context, windows int) (rates [][]float64, err error) {
	over := make(chan error, 1)
	go func() { over <- l.run() }()
	sides := len(l.counts)
	rates = make([][]float64, sides)
	for i := range windows {
		for turn := range sides {
			side := (turn + i) % sides // none is always after the same one
			l.side.Store(int32(side))
			time.Sleep(costSettle)
			start, before := time.Now(), l.counts[side].Load()
			time.Sleep(costWindow)
			rate := float64(l.counts[side].Load()-before) / time.Since(start).Seconds()
			rates[side] = append(rates[side], rate)
			select {
			case err := <-over:
				return nil, err
			case <-ctx.Done():
				return nil, ctx.Err()
			default:
			}
		}
	}
	l.side.Store(-1)
	return rates, <-over
}

// run reads until the end.
func (l *turnLoad) run() (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Held as in the daemon: the runtime's work for a thread that waits is none of what is measured.
	l.ring, err = uring.New(2*costDepth, uring.Options{SingleIssuer: true, Hold: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.ring.Close()) }()
	for i := range costDepth {
		if err := l.start(i); err != nil {
			return err
		}
	}
	for flying := costDepth; flying > 0; {
		if err := l.ring.SubmitAndWait(1, 10*time.Second); err != nil {
			return err
		}
		for l.ring.Ready() > 0 {
			e := *l.ring.Peek()
			l.ring.Advance(1)
			flying--
			i := int(e.UserData)
			if err := l.end(i, l.sides[i], e.Res); err != nil {
				return err
			}
			l.counts[l.sides[i]].Add(1)
			if l.side.Load() < 0 {
				continue
			}
			if err := l.start(i); err != nil {
				return err
			}
			flying++
		}
	}
	return nil
}

// start submits a read of the side that is measured now, at a random place.
func (l *turnLoad) start(i int) error {
	side := int(max(l.side.Load(), 0))
	l.sides[i] = side
	s := l.ring.NextSQE()
	if err := l.issue(s, i, side, uint64(rand.Int64N(span/costBytes)*costBytes)); err != nil {
		return err
	}
	s.SetUserData(uint64(i))
	return nil
}

// paired compares two sides, window by window.
func paired(name string, want comparison, ours, peer []float64) row {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / peer[i]
	}
	r := row{Name: name, Bar: want.bar, Unit: "IOPS"}
	r.Ours, r.Peer, r.Ratio = median(ours), median(peer), median(ratios)
	r.Met = r.Ratio >= r.Bar
	progress("%s: %s and %s, ratio %.3f", r.Name, figure(r.Ours), figure(r.Peer), r.Ratio)
	return r
}

package main

import (
	"context"
	"fmt"
	"time"
)

// The sides of what attributes cost: one program that reads hits, in three ways by turns.
const (
	withAttributes    = "shared memory, attributes"
	withoutAttributes = "the same without attributes"
	plainDirect       = "plain O_DIRECT"
)

var costSides = [...]string{withAttributes, withoutAttributes, plainDirect}

const (
	// costDepth requests are under way on one thread: to switch threads is what emulated CPUs are
	// worst at, so that with a thread for each request nothing else would be measured.
	costDepth = 16
	costBytes = 4096
	// A window is short and there are many, so that what else the machine does falls on all sides.
	costSettle, costWindow = 20 * time.Millisecond, 120 * time.Millisecond
)

// costAttributes are what the requests say: what a program would say of each.
const costAttributes = "hint=cache,tenant=7"

// costs measures the three sides in short windows.
func costs(ctx context.Context, b *bench, s *stage) (rows []row, err error) {
	if err := b.add(ctx, s.on); err != nil {
		return nil, err
	}
	t := b.targets[s.on]
	l, err := newCostLoad(t.dev, map[string]string{oursCopy: "copy", oursZero: "zero"}[s.on])
	if err != nil {
		return nil, err
	}
	before, err := t.hits()
	if err != nil {
		return nil, err
	}
	rates, err := l.measure(ctx, b.rounds*int(b.seconds/costWindow))
	if err != nil {
		return nil, err
	}
	after, err := t.hits()
	if err != nil {
		return nil, err
	}
	hits := after.hits - before.hits
	share := float64(hits) / float64(max(hits+after.misses-before.misses, 1))
	if share < minHits {
		return nil, fmt.Errorf("only %.1f %% hits", share*100)
	}
	total := l.counts[0].Load()
	progress("%s: %d of %d reads with attributes unheard", s.name, l.unheard.Load(), total)
	if l.unheard.Load() > total/50 {
		return nil, fmt.Errorf("nobody heard the attributes of %d of %d reads", l.unheard.Load(), total)
	}
	for _, want := range s.rows {
		r := row{Name: s.rowName(want), Bar: want.bar, Unit: "IOPS", HitRatio: share}
		o, p := rates[want.ours], rates[want.peer]
		ratios := make([]float64, len(o))
		for i := range o {
			ratios[i] = o[i] / p[i]
		}
		r.Ours, r.Peer, r.Ratio = median(o), median(p), median(ratios)
		r.Met = r.Ratio >= r.Bar
		progress("%s: %s and %s, ratio %.3f", r.Name, figure(r.Ours), figure(r.Peer), r.Ratio)
		rows = append(rows, r)
	}
	return rows, nil
}

// measure returns the rates of the sides, window by window.
func (l *costLoad) measure(ctx context.Context, windows int) (map[string][]float64, error) {
	over := make(chan error, 1)
	go func() { over <- l.run() }()
	rates := map[string][]float64{}
	for i := range windows {
		for turn := range costSides {
			side := (turn + i) % len(costSides) // none is always after the same one
			l.side.Store(int32(side))
			time.Sleep(costSettle)
			start, before := time.Now(), l.counts[side].Load()
			time.Sleep(costWindow)
			rate := float64(l.counts[side].Load()-before) / time.Since(start).Seconds()
			rates[costSides[side]] = append(rates[costSides[side]], rate)
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

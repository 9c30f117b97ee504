package main

import (
	"context"
	"fmt"
	"slices"
)

// The sides of what attributes cost: one program that reads hits, in three ways by turns.
const (
	withAttributes    = "shared memory, attributes"
	withoutAttributes = "the same without attributes"
	plainDirect       = "plain O_DIRECT"
)

var costSides = [...]string{withAttributes, withoutAttributes, plainDirect}

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
		side := func(name string) []float64 { return rates[slices.Index(costSides[:], name)] }
		r := paired(s.rowName(want), want, side(want.ours), side(want.peer))
		r.HitRatio = share
		rows = append(rows, r)
	}
	return rows, nil
}

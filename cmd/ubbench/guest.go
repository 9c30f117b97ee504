package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// guest makes the devices, measures and compares. The machine is thrown away afterwards, so
// nothing is taken down.
func (o *options) guest(ctx context.Context) error {
	if o.out == "" {
		o.out = os.Getenv("UBVM_OUT")
	}
	s := o.selected(o.stage)
	b := &bench{options: o, targets: map[string]*target{}}
	if s.run != nil {
		rows, err := s.run(ctx, b, &s)
		if err != nil {
			return err
		}
		return writeRows(filepath.Join(o.out, resultFile), rows)
	}
	for _, name := range s.sides(0) {
		start := time.Now()
		if err := b.add(ctx, name); err != nil {
			showLogs()
			return fmt.Errorf("set up %s: %w", name, err)
		}
		if err := wearIn(ctx, b.targets[name].dev, &s); err != nil {
			return fmt.Errorf("write to %s: %w", name, err)
		}
		progress("%s set up in %.1f s", name, time.Since(start).Seconds())
	}
	rows, err := b.stage(ctx, &s)
	if err != nil {
		return err
	}
	return writeRows(filepath.Join(o.out, resultFile), rows)
}

// selected is a stage of the plan without the rows that --only does not match.
func (o *options) selected(i int) stage {
	s := plan[i]
	rows := s.rows
	s.rows = nil
	for _, c := range rows {
		if o.match.MatchString(s.rowName(c)) {
			s.rows = append(s.rows, c)
		}
	}
	return s
}

// wearIn does the stage's workload before it is measured.
func wearIn(ctx context.Context, dev string, s *stage) error {
	if s.wearIn == 0 {
		return nil
	}
	w := s.workload
	w.bytes = s.wearIn
	_, err := measure(ctx, dev, &w, 0)
	return err
}

// sides are what the stage compares, each once; after the first shownRounds rounds only those that
// a bar depends on.
func (s *stage) sides(round int) (names []string) {
	for _, c := range s.rows {
		for _, n := range []string{c.ours, c.peer} {
			if (round < shownRounds || c.bar > 0) && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names
}

// bench is a run in the guest.
type bench struct {
	*options
	targets map[string]*target
	ram     int // RAM disks taken
	// settings are put into the configuration of the next cache.
	settings map[string]string
}

// stage measures a workload in rounds, each side once a round, so that what disturbs the machine
// for a while disturbs both sides of a ratio.
func (b *bench) stage(ctx context.Context, s *stage) ([]row, error) {
	samples := map[string][]sample{}
	before, err := b.hitCounts(s)
	if err != nil {
		return nil, err
	}
	for round := range b.rounds {
		for _, name := range s.sides(round) {
			v, err := measure(ctx, b.targets[name].dev, &s.workload, b.seconds)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			samples[name] = append(samples[name], v)
			progress("%s, %d/%d, %s: %s, p99 %s µs", s.name, round+1, b.rounds, name,
				figure(v.value), figure(v.p99))
		}
	}
	ratios, err := b.hitRatios(s, before)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, c := range s.rows {
		r := compare(samples[c.ours], samples[c.peer])
		r.Name, r.Bar, r.HitRatio = s.rowName(c), c.bar, ratios[c.ours]
		r.Unit = "IOPS"
		if s.mbs {
			r.Unit = "MB/s"
		}
		r.Met = r.Ratio >= r.Bar
		rows = append(rows, r)
	}
	return rows, nil
}

func compare(ours, peer []sample) (r row) {
	values := func(s []sample, of func(sample) float64) (v []float64) {
		for _, x := range s {
			v = append(v, of(x))
		}
		return v
	}
	value := func(s sample) float64 { return s.value }
	p99 := func(s sample) float64 { return s.p99 }
	for i := range min(len(ours), len(peer)) {
		r.Ratios = append(r.Ratios, ours[i].value/peer[i].value)
	}
	r.Ratio = median(r.Ratios)
	r.Ours, r.Peer = median(values(ours, value)), median(values(peer, value))
	r.OursP99, r.PeerP99 = median(values(ours, p99)), median(values(peer, p99))
	return r
}

// minHits is the share of hits below which a measurement of hits is none.
const minHits = 0.99

func (b *bench) hitCounts(s *stage) (map[string]hitCount, error) {
	counts := map[string]hitCount{}
	if s.rw != "randread" && s.rw != "read" {
		return counts, nil
	}
	for _, name := range s.sides(0) {
		t := b.targets[name]
		if t.hits == nil {
			continue
		}
		n, err := t.hits()
		if err != nil {
			return nil, fmt.Errorf("hits of %s: %w", name, err)
		}
		counts[name] = n
	}
	return counts, nil
}

// hitRatios are the shares of hits since the counts were taken; too low ones are an error.
func (b *bench) hitRatios(s *stage, before map[string]hitCount) (map[string]float64, error) {
	after, err := b.hitCounts(s)
	if err != nil {
		return nil, err
	}
	ratios := map[string]float64{}
	for name, a := range after {
		h, m := a.hits-before[name].hits, a.misses-before[name].misses
		ratios[name] = float64(h) / float64(max(h+m, 1))
		if ratios[name] < minHits {
			return nil, fmt.Errorf("%s had %d hits and %d misses", name, h, m)
		}
	}
	return ratios, nil
}

// showLogs prints what the daemons have to say when something is not as it should be.
func showLogs() {
	logs, _ := filepath.Glob("/run/ubcache/*.log")
	for _, name := range logs {
		text, _ := os.ReadFile(name)
		progress("%s:\n%s", filepath.Base(name), text)
	}
}

package main

import (
	"context"
	"encoding/json"

	"ubcache/internal/control"
)

// The sides of what the BPF program costs.
const (
	bpfOn  = "ubcache, BPF source on"
	bpfOff = "BPF source off"
)

// bpfRounds is how many rounds there are for each of other comparisons: what is to be seen is smaller than what
// one start of the daemon differs from the next by.
const bpfRounds = 3

// bpfCost measures hits of fio with the daemon's BPF program and without. The daemon starts anew for
// that, while nothing else goes on: to switch a tracepoint the kernel changes its code, which emulated
// CPUs that run it just then do not always survive.
func bpfCost(ctx context.Context, b *bench, s *stage) ([]row, error) {
	if err := b.add(ctx, oursCopy); err != nil {
		return nil, err
	}
	dev := b.targets[oursCopy].dev
	samples := map[bool][]sample{}
	rounds := bpfRounds * b.rounds
	for round := range rounds {
		for turn := range 2 {
			on := (turn+round)%2 == 0
			if err := b.switchBPF(ctx, on); err != nil {
				return nil, err
			}
			v, err := measure(ctx, dev, &s.workload, b.seconds/2)
			if err != nil {
				return nil, err
			}
			samples[on] = append(samples[on], v)
			progress("%s, %d/%d, BPF %t: %s", s.name, round+1, rounds, on, figure(v.value))
		}
	}
	r := compare(samples[true], samples[false])
	r.Name, r.Bar, r.Unit, r.Met = s.rowName(s.rows[0]), s.rows[0].bar, "IOPS", r.Ratio >= s.rows[0].bar
	return []row{r}, nil
}

// switchBPF starts the daemon anew with the program or without.
func (b *bench) switchBPF(ctx context.Context, on bool) error {
	value, want := "off", "switched off in the configuration"
	if on {
		value, want = "auto", "on"
	}
	if err := b.restart(ctx, "kernel-attributes", value); err != nil {
		return err
	}
	return waitBPF(ctx, want)
}

// waitBPF waits until the only daemon says that of its BPF program.
func waitBPF(ctx context.Context, want string) error {
	return wait("kernel attributes: "+want, func() bool {
		var list []control.Status
		out, err := ubcacheCommand(ctx, "status")
		return err == nil && json.Unmarshal([]byte(out), &list) == nil && len(list) == 1 &&
			list[0].KernelAttributes == want
	})
}

// restart starts the only daemon anew, with another value of a key of its cache's configuration.
func (b *bench) restart(ctx context.Context, key, value string) error {
	if _, err := ubcacheCommand(ctx, "stop"); err != nil {
		return err
	}
	_, err := run(ctx, "sed", "-i", "-e", "/^"+key+" =/d", "-e",
		`/^\[cache\.[a-z]*\]/a `+key+` = "`+value+`"`, configFile)
	if err != nil {
		return err
	}
	_, err = ubcacheCommand(ctx, "start")
	return err
}

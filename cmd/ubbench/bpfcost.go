package main

import (
	"context"
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"ubcache/internal/control"
	"ubcache/internal/uring"
)

// The sides of what the BPF program costs.
const (
	bpfOn  = "ubcache, BPF source on"
	bpfOff = "BPF source off"
)

// bpfCost measures hits on two caches, one with the BPF program and one without, by turns. To switch the
// program on and off under one cache is no way: the kernel changes the code of the tracepoints for that, which
// emulated CPUs that run it just then do not always survive. The kernel runs the program for every device, so
// that the side without pays for the part that finds out that it is none of its own, about 0.5 %: the bar is
// higher by that.
func bpfCost(ctx context.Context, b *bench, s *stage) ([]row, error) {
	sides := [...]struct{ side, name, setting string }{{bpfOn, "with", "auto"}, {bpfOff, "without", "off"}}
	var fds [len(sides)]int
	var before [len(sides)]hitCount
	targets := [len(sides)]*target{{}, {}}
	for i, c := range sides {
		t := targets[i]
		b.settings = map[string]string{"kernel-attributes": c.setting}
		err := b.ubcache(ctx, t, c.name)
		b.settings = nil
		if err != nil {
			return nil, err
		}
		if err := waitBPF(ctx, c.name, c.setting != "off"); err != nil {
			return nil, err
		}
		if fds[i], err = unix.Open(t.dev, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0); err != nil {
			return nil, err
		}
	}
	mem, err := unix.Mmap(-1, 0, costDepth*costBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	l := newTurnLoad(len(sides))
	l.issue = func(q *uring.SQE, i, side int, off uint64) error {
		q.PrepRead(uring.FD(fds[side]), mem[i*costBytes:(i+1)*costBytes], off, 0)
		return nil
	}
	l.end = func(_, side int, res int32) error {
		if res != costBytes {
			return fmt.Errorf("read with %s: %d", sides[side].side, res)
		}
		return nil
	}
	for i, t := range targets {
		if before[i], err = t.hits(); err != nil {
			return nil, err
		}
	}
	rates, err := l.measure(ctx, 2*b.rounds*int(b.seconds/costWindow))
	if err != nil {
		return nil, err
	}
	for i, t := range targets {
		after, err := t.hits()
		if err != nil {
			return nil, err
		}
		if after.misses != before[i].misses {
			return nil, fmt.Errorf("not only hits %s: %+v, then %+v", sides[i].side, before[i], after)
		}
	}
	return []row{paired(s.rowName(s.rows[0]), s.rows[0], rates[0], rates[1])}, nil
}

// waitBPF waits until a daemon has its BPF program, or says that it was switched off.
func waitBPF(ctx context.Context, cache string, on bool) error {
	want := "switched off in the configuration"
	if on {
		want = "on"
	}
	return wait("kernel attributes: "+want, func() bool {
		var list []control.Status
		out, err := ubcacheCommand(ctx, "status", cache)
		return err == nil && json.Unmarshal([]byte(out), &list) == nil && len(list) == 1 &&
			list[0].KernelAttributes == want
	})
}

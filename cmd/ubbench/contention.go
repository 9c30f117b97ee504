package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// contention is a flood of writes that nobody waits for beside reads that somebody does, through the
// block device: how long the reads take with priorities and without.
type contention struct {
	mode string // of the device: what the flood's writes are
	// hot says that the reads are hits; else all of them go to the slow disk.
	hot bool
	// jobs flood with so many requests under way each.
	jobs, depth int
	scheduler   string // of the device; empty leaves it alone
	block       string
}

// An SSD and a disk that are slow enough for the emulated CPUs not to be what is contended for: a flood
// of 64 writes of 16 KiB is work for a sixth of a second for one, and for half of one for the other.
var (
	contentionSSD  = diskModel{512 << 20, 500 * time.Microsecond, 8 << 20}
	contentionDisk = diskModel{768 << 20, 8 * time.Millisecond, 150 << 20}
)

const (
	contentionHotMiB  = 16
	contentionColdMiB = 384 // more than is read in all rounds together, in no order
	// The flood writes the same place again and again: what is dirty fits into the SSD, and
	// writeback has something to do all the time.
	contentionFloodMiB = 64
)

// contend measures the reads in rounds, with priorities and without by turns.
func contend(ctx context.Context, b *bench, s *stage) ([]row, error) {
	c := s.contention
	t, err := b.contended(ctx, c)
	if err != nil {
		return nil, err
	}
	r := row{Name: s.rowName(s.rows[0]), Bar: s.rows[0].bar, Unit: "µs p99"}
	var with, without []float64
	for round := range b.rounds {
		for _, prio := range []bool{false, true} {
			before, start := idleTime(), time.Now()
			v, err := b.beside(ctx, t, c, prio, round)
			if err != nil {
				return nil, err
			}
			idle := (idleTime() - before).Seconds() / time.Since(start).Seconds()
			progress("%s, %d/%d, priorities %t: %s reads a second, p99 %s µs, %.1f CPUs idle", s.name,
				round+1, b.rounds, prio, figure(v.value), figure(v.p99), idle)
			if prio {
				with = append(with, v.p99)
			} else {
				without = append(without, v.p99)
			}
		}
		r.Ratios = append(r.Ratios, without[round]/with[round])
	}
	r.Ours, r.Peer, r.Ratio = median(with), median(without), median(r.Ratios)
	r.Met = r.Ratio >= r.Bar
	return []row{r}, nil
}

// contended makes the cached device. Writeback is to be at work all the time.
func (b *bench) contended(ctx context.Context, c *contention) (*target, error) {
	t := &target{}
	ssd, err := serveModel(contentionSSD)
	if err != nil {
		return nil, err
	}
	slow, err := serveModel(contentionDisk)
	if err != nil {
		return nil, err
	}
	if err := b.startCache(ctx, t, "busy", ssd, slow); err != nil {
		return nil, err
	}
	if err := pass(ctx, t.dev, "write", contentionHotMiB<<20); err != nil {
		return nil, err
	}
	if err := waitBPF(ctx, "busy", true); err != nil {
		return nil, err
	}
	if c.scheduler != "" {
		if err := restart(ctx, "busy", "scheduler", c.scheduler); err != nil {
			return nil, err
		}
		if err := waitBPF(ctx, "busy", true); err != nil {
			return nil, err
		}
	}
	// Pinned, so that what the flood writes cannot push it out and the reads stay hits.
	if err := pin(t.dev, contentionHotMiB<<20); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"flush", "bbusy"},
		{"set", "bbusy", "mode=" + c.mode, "dirty-target=1", "writeback-delay=0"},
	} {
		if _, err := ubcacheCommand(ctx, args...); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// pin reads the beginning of a device with the hint pin.
func pin(dev string, bytes int64) error {
	d, err := client.Open(dev, client.Options{})
	if err != nil {
		return err
	}
	defer d.Close()
	var set attrs.Set
	set.SetHint(attrs.HintPin)
	buf, err := d.Alloc(1 << 20)
	if err != nil {
		return err
	}
	for off := int64(0); off < bytes; off += int64(len(buf)) {
		_, res, err := d.ReadAt(buf, off, &set)
		if a := res.For(attrs.IDHint); err != nil || a.Status != attrs.Handled {
			return fmt.Errorf("pin at %d: %v, error %w", off, a, err)
		}
	}
	return nil
}

// beside measures reads beside the flood.
func (b *bench) beside(ctx context.Context, t *target, c *contention, prio bool, round int) (
	s sample, err error,
) {
	const alone = time.Second // the flood alone, until it is deep
	flood := []string{
		// As threads of one process: jobs that are processes outlive fio when it is killed, and flood the next round.
		"--thread", "--name=flood", "--filename=" + t.dev, "--ioengine=libaio", "--direct=1", "--rw=randwrite",
		"--bs=" + c.block, fmt.Sprintf("--iodepth=%d", c.depth), fmt.Sprintf("--numjobs=%d", c.jobs),
		fmt.Sprintf("--offset=%dm", contentionHotMiB+contentionColdMiB), fmt.Sprintf("--size=%dm", contentionFloodMiB),
		"--norandommap", "--time_based", fmt.Sprintf("--runtime=%d", int((b.seconds+5*time.Second)/time.Second)),
	}
	reads := workload{name: "reads", rw: "randread", block: "4k", depth: 1}
	more := []string{fmt.Sprintf("--size=%dm", contentionHotMiB)}
	if !c.hot {
		more = []string{
			fmt.Sprintf("--offset=%dm", contentionHotMiB),
			fmt.Sprintf("--size=%dm", contentionColdMiB),
			fmt.Sprintf("--randseed=%d", 1+round),
		}
	}
	if prio {
		flood = append(flood, "--prioclass=3")
		more = append(more, "--prioclass=1", "--prio=0")
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "fio", flood...)
	if err := cmd.Start(); err != nil {
		cancel()
		return s, err
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // killed: that it reports is no news
	}()
	select {
	case <-ctx.Done():
		return s, ctx.Err()
	case <-time.After(alone):
	}
	before, err := t.hits()
	if err != nil {
		return s, err
	}
	if s, err = measure(ctx, t.dev, &reads, b.seconds, more...); err != nil {
		return s, err
	}
	after, err := t.hits()
	if missed := after.misses > before.misses; err == nil && missed == c.hot {
		err = fmt.Errorf("hits and misses were %+v, then %+v", before, after)
	}
	return s, err
}

// contentionStage is a stage of the plan.
func contentionStage(name string, bar float64, c contention) stage {
	return stage{
		workload: workload{name: name}, run: contend, contention: &c,
		rows: []comparison{{withPriorities, withoutPriorities, bar}},
	}
}

//go:build vm

package blkbpf

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ubcache/internal/vmtest"
)

// TestCost prints what the program and Lookup cost: the rate of 4 KiB reads from a RAM disk, where
// all else is cheap, with the disk tracked and not. Tracking is switched on and off by turns, many times
// during one run of fio, so that what else the machine does falls on both. On a busy machine that is not
// enough, so it has three attempts.
//
// The program stays attached: to switch a tracepoint the kernel changes its code, and an emulated CPU
// that runs it just then may execute the breakpoint that was there for a moment ("Oops: int3"). What
// requests of other disks cost is not measured here.
func TestCost(t *testing.T) {
	vmtest.OnlyFull(t)
	vmtest.Limit(t, 5*time.Minute)
	src := openSource(t)
	d := newRAMDisk(t, src)
	d.quiet.Store(true)
	for _, all := range []bool{false, true} {
		d.events.Load().ShowAll(all)
		what := "nothing follows from them"
		if all {
			what = "all written down"
		}
		best := 0.0
		for attempt := 0; attempt < 3 && best < 0.97; attempt++ {
			best = max(best, d.costOnce(t, src, what))
		}
		if best < 0.85 {
			t.Errorf("%s: the program costs more than one of seven requests", what)
		}
	}
}

// costOnce returns the share of requests that is left with the program.
func (d *ramDisk) costOnce(t *testing.T, src *Source, what string) float64 {
	t.Helper()
	const pairs, window = 40, 100 * time.Millisecond
	events, before := d.events.Load(), d.served.Load()
	var names []uint64
	for _, place := range events.places {
		names = append(names, src.disks.at(place).name)
	}
	done := make(chan error, 1)
	go func() {
		_, err := vmtest.TryFio(d.Path(), 2*time.Minute, "rw=randread", "bs=4k", "iodepth=16",
			"time_based", fmt.Sprintf("runtime=%d", int(3*pairs*window/time.Second)+6))
		done <- err
	}()
	vmtest.Wait(t, time.Minute, "fio's requests", func() bool { return d.served.Load() > before+1000 })
	runNs := runTime(t, src)
	rate := func() float64 {
		start, before := time.Now(), d.served.Load()
		time.Sleep(window)
		return float64(d.served.Load()-before) / time.Since(start).Seconds()
	}
	var ratios, with, without []float64
	for range pairs {
		on := rate()
		d.events.Store(nil)
		for _, place := range events.places {
			atomic.StoreUint64(&src.disks.at(place).name, removedName)
		}
		off := rate()
		for i, place := range events.places {
			atomic.StoreUint64(&src.disks.at(place).name, names[i])
		}
		d.events.Store(events)
		with, without, ratios = append(with, on), append(without, off), append(ratios, on/off)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	fmt.Printf("BPF on block_rq_issue, 4 KiB random reads, QD16, %s, medians: %.0f IOPS with, %.0f without, "+
		"ratio %.3f; %d ns a run\n", what, median(with), median(without), median(ratios), runNs)
	return median(ratios)
}

// runTime is how long the program takes just now, in nanoseconds, with the time of measuring it.
func runTime(t *testing.T, src *Source) int64 {
	t.Helper()
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	before, err := src.prog.Stats()
	if err != nil {
		t.Fatal(err)
	}
	after := before
	vmtest.Wait(t, time.Minute, "runs of the program", func() bool {
		after, err = src.prog.Stats()
		return err != nil || after.RunCount > before.RunCount+1000
	})
	if err != nil {
		t.Fatal(err)
	}
	return (after.Runtime - before.Runtime).Nanoseconds() / int64(after.RunCount-before.RunCount)
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

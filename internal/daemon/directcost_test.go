package daemon

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	api "ubcache/attrs/client"
)

// BenchmarkAttributes is what attributes cost a client over the ring, natively: the rate of 4 KiB hits
// with attributes and without, by turns of a tenth of a second, so that what else the machine does falls
// on both, and the CPU time that one takes. An operation is a pair of turns.
func BenchmarkAttributes(b *testing.B) {
	bench := newDirectBench(b, directOptions{})
	d := bench.open(api.Options{})
	defer closeDevice(b, d)
	const span = 16 << 20
	buf, err := d.Alloc(1 << 20)
	must(b, err)
	for off := int64(0); off < span; off += int64(len(buf)) {
		_, _, err := d.WriteAt(buf, off, nil)
		must(b, err)
	}
	set, err := attrs.ParseSet("hint=cache,tenant=7")
	must(b, err)
	var phase atomic.Int32
	var count [2]atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		mem, err := d.Alloc(4096)
		must(b, err)
		wg.Go(func() {
			for {
				k := phase.Load()
				if k < 0 {
					return
				}
				s := &set
				if k == 0 {
					s = nil
				}
				_, res, err := d.ReadAt(mem, rand.Int64N(span/4096)*4096, s)
				if err != nil || s != nil && res.For(attrs.IDHint).Status != attrs.Handled {
					b.Errorf("read: %v, %v", err, res.For(attrs.IDHint))
					return
				}
				count[k].Add(1)
			}
		})
	}
	var rates [2][]float64
	var costs [2][]float64
	var ratios, cpu []float64
	b.ResetTimer()
	for i := range b.N {
		for turn := range 2 {
			k := (turn + i) % 2
			phase.Store(int32(k))
			time.Sleep(10 * time.Millisecond)
			start, before, cpu := time.Now(), count[k].Load(), cpuTime()
			time.Sleep(90 * time.Millisecond)
			n := float64(count[k].Load() - before)
			costs[k] = append(costs[k], float64(cpuTime()-cpu)/n)
			rates[k] = append(rates[k], n/time.Since(start).Seconds())
		}
		ratios = append(ratios, rates[1][i]/rates[0][i])
		cpu = append(cpu, costs[0][i]/costs[1][i])
	}
	phase.Store(-1)
	wg.Wait()
	median := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
	b.ReportMetric(median(rates[1]), "with/s")
	b.ReportMetric(median(rates[0]), "without/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(costs[1]), "cpu-ns-with")
	b.ReportMetric(median(costs[0]), "cpu-ns-without")
	b.ReportMetric(median(cpu), "cpu-ratio")
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

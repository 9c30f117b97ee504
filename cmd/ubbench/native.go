package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// nativeRow is a figure of a Go benchmark with a limit.
type nativeRow struct {
	name      string
	benchmark string // and its sub-benchmark, without -GOMAXPROCS
	unit      string
	limit     float64 // at most; negative for a figure that is only shown
}

var nativeRows = []nativeRow{
	{"hit, engine alone", "BenchmarkHit/copy", "ns/op", -1},
	{"hit, heap allocations", "BenchmarkHit/copy", "allocs/op", 0},
	{"hit without checksums, heap allocations", "BenchmarkHit/zero-copy", "allocs/op", 0},
	{"write, heap allocations", "BenchmarkWrite", "allocs/op", 0},
	{"memory per cached block, 16 Mi blocks", "BenchmarkIndex", "B/block", 24},
	{"load of that index", "BenchmarkIndex", "load-s", -1},
	{"first I/O with that index, after a stop", "BenchmarkIndex", "first-io-ms", 100},
	{"load of that index beside I/O", "BenchmarkIndex", "late-load-s", -1},
	{"start after a crash with that index, half of the journal to replay", "BenchmarkCrashStart", "crash-start-s", -1},
}

// ringCost is what attributes cost over the direct ring, where no emulated CPU has a part in it.
const (
	ringCost    = "4 KiB hits over the direct ring, native: attributes / without"
	ringCostBar = 0.95
)

// goBenchmarks runs the engine's own benchmarks natively, and that of the direct ring.
func (o *options) goBenchmarks(ctx context.Context) (rows []row, err error) {
	if slices.ContainsFunc(nativeRows, func(n nativeRow) bool { return o.match.MatchString(n.name) }) {
		figures, err := goBenchmark(ctx, "./cache", ".")
		if err != nil {
			return nil, err
		}
		for _, n := range nativeRows {
			v, err := figures.of(n.benchmark, n.unit)
			if err != nil {
				return nil, err
			}
			if o.match.MatchString(n.name) {
				rows = append(rows, limitRow(n.name, n.unit, v, n.limit))
			}
		}
	}
	if !o.match.MatchString(ringCost) {
		return rows, nil
	}
	const name = "BenchmarkAttributes"
	figures, err := goBenchmark(ctx, "./internal/daemon", "^"+name+"$", "-benchtime", "5s")
	if err != nil {
		return nil, err
	}
	r := row{Name: ringCost, Unit: "IOPS", Bar: ringCostBar}
	for at, unit := range map[*float64]string{&r.Ours: "with/s", &r.Peer: "without/s", &r.Ratio: "ratio"} {
		if *at, err = figures.of(name, unit); err != nil {
			return nil, err
		}
	}
	r.Met = r.Ratio >= r.Bar
	return append(rows, r), nil
}

// figures are what benchmarks have printed, by name and unit.
type figures map[string]float64

func (f figures) of(benchmark, unit string) (float64, error) {
	v, ok := f[benchmark+" "+unit]
	if !ok {
		return 0, fmt.Errorf("go benchmarks: no %s of %s", unit, benchmark)
	}
	return v, nil
}

// goBenchmark runs the benchmarks of a package that match.
func goBenchmark(ctx context.Context, pkg, match string, more ...string) (figures, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-run", "^$", "-bench", match, "-benchmem", pkg}, more...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go benchmarks: %w\n%s", err, out)
	}
	return parseBenchmarks(string(out)), nil
}

// parseBenchmarks maps "Benchmark unit" to the figure.
func parseBenchmarks(out string) figures {
	figures := figures{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := f[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				figures[name+" "+f[i+1]] = v
			}
		}
	}
	return figures
}

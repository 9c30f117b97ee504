package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
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
}

// goBenchmarks runs the engine's own benchmarks natively.
func (o *options) goBenchmarks(ctx context.Context) ([]row, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchmem",
		"./cache")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go benchmarks: %w\n%s", err, out)
	}
	figures := parseBenchmarks(string(out))
	var rows []row
	for _, n := range nativeRows {
		v, ok := figures[n.benchmark+" "+n.unit]
		if !ok {
			return nil, fmt.Errorf("go benchmarks: no %s of %s in\n%s", n.unit, n.benchmark, out)
		}
		if r := limitRow(n.name, n.unit, v, n.limit); o.match.MatchString(r.Name) {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// parseBenchmarks maps "Benchmark unit" to the figure.
func parseBenchmarks(out string) map[string]float64 {
	figures := map[string]float64{}
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

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// workload is what fio does to a device.
type workload struct {
	name  string
	rw    string
	block string
	depth int
	fsync bool
	mbs   bool // the figure is MB/s, else IOPS
	// bytes ends a measurement after so much, 0 after a time. Writes are counted so that a cache
	// does not run into the limits of the slow disk behind it.
	bytes int64
}

// sample is one measurement.
type sample struct {
	value float64 // IOPS or MB/s
	p99   float64 // of the latency, in µs
}

// span is the part of each device that is used; it fits into every cache.
const span = 64 << 20

// measure runs fio once. More options come after the usual ones, over which they win.
func measure(ctx context.Context, dev string, w *workload, length time.Duration, more ...string) (
	sample, error,
) {
	args := []string{
		"--name=" + w.name, "--filename=" + dev, "--ioengine=io_uring", "--direct=1",
		"--rw=" + w.rw, "--bs=" + w.block, fmt.Sprintf("--iodepth=%d", w.depth),
		fmt.Sprintf("--size=%d", span), "--norandommap", "--randrepeat=0", "--group_reporting",
		"--output-format=json",
	}
	if w.bytes > 0 {
		args = append(args, fmt.Sprintf("--io_size=%d", w.bytes))
	} else {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", length.Milliseconds()),
			fmt.Sprintf("--ramp_time=%dms", (length/4).Milliseconds()))
	}
	if w.fsync {
		args = append(args, "--fsync=1")
	}
	out, err := run(ctx, "fio", append(args, more...)...)
	if err != nil {
		return sample{}, err
	}
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write struct {
				IOPS float64
				BW   float64 `json:"bw"` // KiB/s
				Clat struct {
					Percentile map[string]float64
				} `json:"clat_ns"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Jobs) != 1 {
		return sample{}, fmt.Errorf("fio on %s: %w in\n%s", dev, err, out)
	}
	j := report.Jobs[0]
	if j.Error != 0 {
		return sample{}, fmt.Errorf("fio on %s: error %d", dev, j.Error)
	}
	side := &j.Read
	if side.IOPS == 0 {
		side = &j.Write
	}
	s := sample{value: side.IOPS, p99: side.Clat.Percentile["99.000000"] / 1000}
	if w.mbs {
		s.value = side.BW * 1024 / 1e6
	}
	if s.value == 0 {
		return s, fmt.Errorf("fio on %s did nothing:\n%s", dev, out)
	}
	return s, nil
}

// readAll reads the span once in big pieces, writeAll writes it.
func readAll(ctx context.Context, dev string) error  { return pass(ctx, dev, "read", span) }
func writeAll(ctx context.Context, dev string) error { return pass(ctx, dev, "write", span) }

// zero writes zeroes to the first so many bytes of a device.
func zero(ctx context.Context, dev string, bytes int) error {
	return pass(ctx, dev, "write", bytes, "--zero_buffers")
}

func pass(ctx context.Context, dev, rw string, bytes int, more ...string) error {
	_, err := run(ctx, "fio", append([]string{
		"--name=fill", "--filename=" + dev, "--ioengine=io_uring", "--direct=1", "--rw=" + rw,
		"--bs=1m", "--iodepth=8", fmt.Sprintf("--size=%d", bytes),
	}, more...)...)
	return err
}

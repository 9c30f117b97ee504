//go:build vm

package vmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// FioResult is what tests read of fio's report: sums over all jobs.
type FioResult struct {
	ReadBytes, WriteBytes, TrimBytes int64
	// ReadRate is bytes a second; LongestMs the longest that a request took.
	ReadRate  float64
	LongestMs float64
}

// Fio runs fio with these options ("rw=randread") on a device, with io_uring and O_DIRECT. It fails
// the test on any error: an I/O error as well as a block that does not verify.
func Fio(t testing.TB, dev string, options ...string) FioResult {
	t.Helper()
	r, err := TryFio(dev, 4*time.Minute, options...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TryFio is [Fio] for use from any goroutine.
func TryFio(dev string, limit time.Duration, options ...string) (r FioResult, err error) {
	args := []string{
		"--name=fio", "--filename=" + dev, "--ioengine=io_uring", "--direct=1",
		"--output-format=json", "--group_reporting=0", "--thread", "--fallocate=none",
		"--allow_mounted_write=1",
	}
	for _, o := range options {
		args = append(args, "--"+o)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || ctx.Err() != nil {
		return r, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, complaints(string(out)))
	}
	return parseFio(string(out))
}

// complaints are the lines of fio's output that are not part of its report, which fills pages.
func complaints(out string) string {
	before, rest, _ := strings.Cut(out, "\n{")
	_, after, _ := strings.Cut(rest, "\n}\n")
	if text := strings.TrimSpace(before + "\n" + after); text != "" {
		return text
	}
	return out
}

func parseFio(out string) (r FioResult, err error) {
	type direction struct {
		Bytes int64   `json:"io_bytes"`
		Rate  float64 `json:"bw_bytes"`
		Lat   struct {
			Max float64 `json:"max"`
		} `json:"lat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error             int `json:"error"`
			Read, Write, Trim direction
		} `json:"jobs"`
	}
	begin := strings.Index(out, "{")
	end := strings.LastIndex(out, "}")
	if begin < 0 || end < begin {
		return r, fmt.Errorf("no report from fio in %q", out)
	}
	if err := json.Unmarshal([]byte(out[begin:end+1]), &report); err != nil {
		return r, fmt.Errorf("fio's report: %w", err)
	}
	for _, j := range report.Jobs {
		if j.Error != 0 {
			return r, fmt.Errorf("a job of fio ended with error %d", j.Error)
		}
		r.ReadBytes += j.Read.Bytes
		r.WriteBytes += j.Write.Bytes
		r.TrimBytes += j.Trim.Bytes
		r.ReadRate += j.Read.Rate
		for _, d := range []direction{j.Read, j.Write, j.Trim} {
			r.LongestMs = max(r.LongestMs, d.Lat.Max/1e6)
		}
	}
	return r, nil
}

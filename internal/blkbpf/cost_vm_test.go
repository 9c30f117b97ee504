//go:build vm

package blkbpf

import (
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ubcache/internal/vmtest"
)

// TestCost prints what the program costs: the IOPS of 4 KiB reads from a RAM disk, where all else
// is cheap, with and without it, in turns.
func TestCost(t *testing.T) {
	vmtest.OnlyFull(t)
	vmtest.Limit(t, 5*time.Minute)
	src := openSource(t)
	bare, tracked, other := newRAMDisk(t, nil), newRAMDisk(t, src), newRAMDisk(t, nil)
	tracked.quiet.Store(true)
	rate := func(d *ramDisk) float64 {
		r := vmtest.Fio(t, d.Path(), "rw=randread", "bs=4k", "iodepth=16", "time_based", "runtime=2")
		return r.ReadRate / 4096
	}
	var with, without, untracked float64
	const rounds = 4
	for range rounds {
		with += rate(tracked) / rounds
		untracked += rate(other) / rounds
		// Nothing at the tracepoint.
		if err := src.link.Close(); err != nil {
			t.Fatal(err)
		}
		without += rate(bare) / rounds
		if err := src.attach(); err != nil {
			t.Fatal(err)
		}
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	rate(tracked)
	s, err := src.prog.Stats()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("BPF on block_rq_issue, 4 KiB random reads, QD16: %.0f IOPS with, %.0f without, ratio %.3f; "+
		"of another disk %.3f; %d ns a run, %d missed\n", with, without, with/without, untracked/without,
		s.Runtime.Nanoseconds()/int64(max(s.RunCount, 1)), s.RecursionMisses)
	if with < 0.8*without {
		t.Errorf("the program costs more than a fifth of the requests")
	}
}

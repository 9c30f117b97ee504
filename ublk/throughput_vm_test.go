//go:build vm

package ublk_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// Throughput as fio sees it, beside that of the kernel's own test server if it is at hand:
//
//	ubvm test --pkg ./ublk --kublk --run Throughput -v -- -throughput=5

const benchID = 60

// nullServer answers without touching data.
var nullServer = ublk.HandlerFunc(func(q *ublk.Queue, r *ublk.Request) { q.CompleteOK(r.Tag) })

// loopServer passes every request on to a device, in zero copy.
type loopServer struct {
	ublk.HandlerFunc
	fd   int
	file ublk.File
}

func (l *loopServer) Start(q *ublk.Queue) (err error) {
	l.file, err = q.AddFile(l.fd)
	return err
}

func (l *loopServer) Handle(q *ublk.Queue, r *ublk.Request) {
	s := q.NewSQE(uint64(r.Tag))
	switch r.Op {
	case ublk.OpRead:
		s.PrepReadFixed(l.file, r.BufIndex, 0, uint32(r.Bytes()), uint64(r.Offset()), 0)
	case ublk.OpWrite:
		s.PrepWriteFixed(l.file, r.BufIndex, 0, uint32(r.Bytes()), uint64(r.Offset()), 0)
	default:
		s.PrepFsync(l.file, true)
	}
}

func (l *loopServer) Completion(q *ublk.Queue, userData uint64, res int32, _ uint32) {
	q.Complete(uint16(userData), res)
}

var throughput = flag.Int("throughput", 0, "rounds of TestThroughput")

// TestThroughput measures in rounds, so that what else runs on the machine hits all servers alike,
// and prints the median and the best of each.
func TestThroughput(t *testing.T) {
	if *throughput == 0 {
		t.Skip("skipped: takes a minute a round (-throughput=ROUNDS)")
	}
	need(t, ublk.FeatureAutoBuffers)
	run(t, "modprobe", "-r", "brd")
	run(t, "modprobe", "brd", "rd_nr=1", "rd_size=262144")
	const size = 256 << 20
	fd, err := unix.Open("/dev/ram0", unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	own := func(mode ublk.CopyMode, a ublk.AffinityPolicy, factory func() ublk.Handler) func(
		*testing.T,
	) {
		o := testOptions(mode, size)
		o.ID, o.Depth, o.Affinity = benchID, 128, a
		return func(t *testing.T) {
			serve(t, o, func(int) (ublk.Handler, error) { return factory(), nil })
		}
	}
	loop := func() ublk.Handler { return &loopServer{fd: fd} }
	null := func() ublk.Handler { return nullServer }
	servers := []struct {
		name  string
		start func(t *testing.T)
	}{
		{"null adaptive", own(ublk.Copy, ublk.AffinityAdaptive, null)},
		{"null pinned", own(ublk.Copy, ublk.AffinityPinned, null)},
		{"null none", own(ublk.Copy, ublk.AffinityNone, null)},
		{"null kublk", func(t *testing.T) { kublk(t, "-t", "null") }},
		{"loop adaptive", own(ublk.AutoZeroCopy, ublk.AffinityAdaptive, loop)},
		{"loop pinned", own(ublk.AutoZeroCopy, ublk.AffinityPinned, loop)},
		{"loop none", own(ublk.AutoZeroCopy, ublk.AffinityNone, loop)},
		{"loop kublk", func(t *testing.T) { kublk(t, "-t", "loop", "--auto_zc", "/dev/ram0") }},
	}
	depths := []int{1, 16}
	results := map[string][]float64{}
	for range *throughput {
		for _, s := range servers {
			t.Run(s.name, func(t *testing.T) {
				s.start(t)
				for _, depth := range depths {
					key := fmt.Sprintf("%s qd%d", s.name, depth)
					results[key] = append(results[key], fio(t, depth))
				}
			})
		}
	}
	for _, depth := range depths {
		for _, s := range servers {
			r := results[fmt.Sprintf("%s qd%d", s.name, depth)]
			slices.Sort(r)
			t.Logf("%-14s QD%-2d median %6.0f best %6.0f IOPS", s.name, depth,
				r[len(r)/2], r[len(r)-1])
		}
	}
}

// kublk starts the kernel's test server.
func kublk(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("kublk"); err != nil {
		t.Skipf("skipped: %v (give ubvm --kublk)", err)
	}
	run(t, "kublk", append([]string{"add", "-n", fmt.Sprint(benchID), "-q", "2", "-d", "128"},
		args...)...)
	t.Cleanup(func() {
		run(t, "kublk", "del", "-n", fmt.Sprint(benchID))
	})
	waitFor(t, "kublk's disk", func() bool {
		i, err := ublk.Lookup(benchID)
		return err == nil && i.State == ublk.StateLive
	})
}

// fio reads for a moment and returns operations per second.
func fio(t *testing.T, depth int) float64 {
	t.Helper()
	out, err := exec.Command("fio", "--name=r", fmt.Sprintf("--filename=/dev/ublkb%d", benchID),
		"--ioengine=io_uring", "--direct=1", "--rw=randread", "--bs=4k", "--time_based",
		"--runtime=1500ms", "--ramp_time=500ms", "--size=200m", fmt.Sprintf("--iodepth=%d", depth),
		"--output-format=json").Output()
	if err != nil {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	var report struct {
		Jobs []struct {
			Read struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	return report.Jobs[0].Read.IOPS
}

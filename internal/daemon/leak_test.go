package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	api "ubcache/attrs/client"
	"ubcache/internal/control"
)

// usage is what the process has of what can leak.
type usage struct {
	fds, maps, threads, goroutines int
	heap                           uint64 // bytes that are reachable
	resident                       int64  // KiB
}

func (u usage) String() string {
	return fmt.Sprintf("%d descriptors, %d mappings, %d threads, %d goroutines, %d KiB of heap, %d KiB resident",
		u.fds, u.maps, u.threads, u.goroutines, u.heap>>10, u.resident)
}

func measure(t *testing.T) (u usage) {
	t.Helper()
	runtime.GC()
	runtime.GC() // what finalizers have let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.heap, u.goroutines = m.HeapAlloc, runtime.NumGoroutine()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	maps, err := os.ReadFile("/proc/self/maps")
	must(t, err)
	u.fds, u.maps = len(fds), strings.Count(string(maps), "\n")
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "Threads: %d", &u.threads)
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &u.resident)
	}
	return u
}

// TestThousandAttachments attaches and detaches devices, with clients and dirty data, a thousand times. In
// the end the daemon has what it had after the first few.
func TestThousandAttachments(t *testing.T) {
	const warmUp, cycles = 50, 1000
	b := newDirectBench(t, directOptions{})
	b.log = slog.New(slog.DiscardHandler)
	paths := [2]string{
		makeImage(t, filepath.Join(b.dir, "headed"), 8<<20), makeImage(t, filepath.Join(b.dir, "adopted"), 8<<20),
	}
	data := pattern(9, 64<<10)
	cycle := func(i int) {
		_, err := b.attach(context.Background(), control.AttachArgs{
			Name: "more", Device: paths[i%2], UblkID: -1, Header: i%2 == 0,
			Settings: map[string]string{"mode": "writeback", "sequential-cutoff": "0"},
		}, nil)
		must(t, err)
		d := b.open(api.Options{Device: "more", Bytes: 1 << 20})
		if i%10 < 2 { // writing it back takes a while
			_, _, err = d.WriteAt(data, int64(i%100)*4096, nil)
			must(t, err)
		}
		closeDevice(t, d)
		_, err = b.detach(context.Background(), control.DetachArgs{Name: "more"}, func(control.Progress) {})
		must(t, err)
	}
	for i := range warmUp {
		cycle(i)
	}
	before, begun := measure(t), time.Now()
	for i := range cycles {
		cycle(i)
	}
	took := time.Since(begun)
	var after usage
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if after = measure(t); after.fds <= before.fds && after.goroutines <= before.goroutines {
			break
		}
	}
	t.Logf("before: %v", before)
	t.Logf("after %d cycles, %v each: %v", cycles, (took / cycles).Round(10*time.Microsecond), after)
	// A mapping that is split or joined by the runtime is no leak; a thousand would be.
	const slack = 24
	if after.fds > before.fds || after.goroutines > before.goroutines || after.maps > before.maps+slack ||
		after.threads > before.threads+4 || after.heap > before.heap+1<<20 ||
		after.resident > before.resident+8<<10 {
		t.Error("something has leaked")
	}
	if list := b.Status().Devices; len(list) != 2 {
		t.Errorf("%d devices are left", len(list))
	}
}

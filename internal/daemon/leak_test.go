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

// settled waits for what ends a little later.
func settled(t *testing.T, before usage) (after usage) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if after = measure(t); !after.counted(before) {
			break
		}
	}
	return after
}

// counted says that there is more of what is there once for each device or client.
func (u usage) counted(before usage) bool {
	return u.fds > before.fds || u.goroutines > before.goroutines
}

// grown says that there is more of what the runtime has for all, by so much that a thousand devices
// may be the reason.
func (u usage) grown(before usage) bool {
	// A mapping that is split or joined by the runtime is no leak; a thousand would be.
	const slack = 24
	return u.maps > before.maps+slack || u.threads > before.threads+4 ||
		u.heap > before.heap+1<<20 || u.resident > before.resident+8<<10
}

// hurry has the background look at its work more often than its clock says: a detach waits for that.
func hurry(l *loop) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
				l.Wake()
			}
		}
	}()
	return func() { close(end); <-ended }
}

// TestThousandAttachments attaches and detaches devices, with clients and dirty data, a thousand times. In
// the end the daemon has what it had after the first few.
func TestThousandAttachments(t *testing.T) {
	const warmUp = 50
	b := newDirectBench(t, directOptions{inMemory: true})
	b.log = slog.New(slog.DiscardHandler)
	paths := [2]string{
		makeImage(t, filepath.Join(b.dir, "headed"), 8<<20), makeImage(t, filepath.Join(b.dir, "adopted"), 8<<20),
	}
	data := pattern(9, 64<<10)
	defer hurry(b.bg)()
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
	const cycles = 1000
	thousand := func(before usage) usage {
		begun := time.Now()
		for i := range cycles {
			cycle(i)
		}
		took := time.Since(begun)
		after := settled(t, before)
		t.Logf("after %d cycles, %v each: %v", cycles, (took / cycles).Round(10*time.Microsecond), after)
		return after
	}
	before := measure(t)
	t.Logf("before: %v", before)
	after := thousand(before)
	if after.grown(before) && !after.counted(before) {
		// The runtime may have taken more at once, and keeps it. What leaks grows again.
		before, after = after, thousand(after)
	}
	if after.counted(before) || after.grown(before) {
		t.Error("something has leaked")
	}
	if list := b.Status().Devices; len(list) != 2 {
		t.Errorf("%d devices are left", len(list))
	}
}

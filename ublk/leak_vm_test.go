//go:build vm

package ublk_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"ubcache/ublk"
)

// resources counts what a device that was not cleaned up would leave behind.
type resources struct{ fds, maps, threads, nodes int }

func count(t *testing.T) resources {
	t.Helper()
	n := func(pattern string) int {
		l, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	r := resources{
		fds: n("/proc/self/fd/*"), nodes: n("/dev/ublk[bc]*"), threads: n("/proc/self/task/*"),
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "io_uring") || strings.Contains(line, "/dev/ublk") {
			r.maps++
		}
	}
	return r
}

func TestNoLeaks(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		disk := newDisk(t, testDiskSize)
		cycle := func() {
			d, err := ublk.Create(testOptions(mode, testDiskSize))
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Start(disk.factory); err != nil {
				t.Fatal(err)
			}
			if err := d.Delete(timeout(t, 20*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		// Threads and pools of the runtime settle in the first cycles.
		for range 5 {
			cycle()
		}
		before := count(t)
		for range 50 {
			cycle()
		}
		runtime.GC()
		after := count(t)
		if after.fds > before.fds || after.maps > before.maps || after.nodes > before.nodes ||
			after.threads > before.threads+4 {
			t.Errorf("before 50 cycles %+v, after %+v", before, after)
		}
	})
}

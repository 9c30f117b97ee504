//go:build vm

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// failCommand makes scsi_debug fail the next command of a kind with a hardware error, which the kernel does not try
// again. The function that it returns reports whether that has happened.
func (d *scsiDebug) failCommand(t *testing.T, opcode int) (failed func() bool) {
	t.Helper()
	names, _ := filepath.Glob("/sys/kernel/debug/scsi_debug/*:*:*:*/error")
	if len(names) != 1 {
		t.Fatalf("scsi_debug's error files: %q", names)
	}
	if err := os.WriteFile(names[0], fmt.Appendf(nil, "2 -1 %#x 0 0 0x2 0x4 0x44 0x0", opcode), 0); err != nil {
		t.Fatal(err)
	}
	return func() bool {
		list, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(list)) {
			if f := strings.Fields(line); len(f) > 2 && f[2] == fmt.Sprintf("%#x", opcode) {
				return f[1] == "0"
			}
		}
		t.Fatalf("scsi_debug does not know of the fault: %s", list)
		return false
	}
}

// TestFailedFlush fails one flush of the SSD, or one write with FUA: the FLUSH that it was for is answered when what it
// covers has been written once more, and nobody sees an error.
func TestFailedFlush(t *testing.T) {
	for name, mode := range map[string][]string{"writeback": keepsDirty, "writethrough": {"--mode=writethrough"}} {
		t.Run(name, func(t *testing.T) {
			vmtest.OnlyFull(t)
			vmtest.Limit(t, 5*time.Minute)
			const synchronizeCache = 0x35
			disk := newSCSIDebug(t, faultSSD, 0, 0)
			s := newStageOn(t, "SSD: a flush fails, "+name, disk.dev, vmtest.Slice(t, "ssd", 512, faultBacking),
				append([]string{"--ssd-loss-hold=3m"}, mode...)...)
			tries := min(rounds(t, 1), 5) // an SSD that is lost again and again is waited for twice as long each time
			for range tries {
				s.load(100, s.oracles, nil)
				s.y.Tried(1)
				failed := disk.failCommand(t, synchronizeCache)
				start := time.Now()
				for _, o := range s.oracles {
					if err := o.Sync(); err != nil {
						s.y.Failed("fdatasync: %v", err)
					}
				}
				took, hit := time.Since(start), failed() // else all was flushed before, and it hits a later flush
				vmtest.Wait(t, 30*time.Second, "a flush of the SSD that fails", failed)
				vmtest.WaitSSD(t, "ok")
				t.Logf("fdatasync took %v", took.Round(time.Millisecond))
				if mode[0] == "--mode=writeback" && hit && took < time.Second {
					t.Errorf("fdatasync took %v: it has not waited for a start", took)
				}
				s.readAll("after the failed flush")
			}
			// The log goes on over the new starts.
			log, err := os.ReadFile("/run/ubcache/main.log")
			if n := strings.Count(string(log), "a flush of it has failed"); err != nil || n < tries {
				t.Errorf("the SSD was lost %d times for a failed flush, after %d of them (%v)", n, tries, err)
			}
			s.end()
		})
	}
}

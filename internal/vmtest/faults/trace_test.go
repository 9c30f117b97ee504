//go:build vm

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/internal/vmtest"
	"ubcache/internal/vmtest/writelog"
)

// trace is the kernel's trace of the flushes and the writes with FUA that have ended on two devices, in one order: the
// logs of [record] have none in common.
type trace struct{ devs [2]string }

const (
	tracing   = "/sys/kernel/tracing"
	completed = tracing + "/events/block/block_bio_complete"
)

func startTrace(t *testing.T, devs ...string) *trace {
	t.Helper()
	vmtest.Sh(t, "mountpoint -q "+tracing+" || mount -t tracefs none "+tracing)
	x := &trace{}
	var filter []string
	for i, dev := range devs {
		var st unix.Stat_t
		if err := unix.Stat(dev, &st); err != nil {
			t.Fatal(err)
		}
		major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
		x.devs[i] = fmt.Sprintf("%d,%d", major, minor)
		const minorBits = 20 // of the kernel's number of a device
		filter = append(filter, fmt.Sprintf("dev == %d", major<<minorBits|minor))
	}
	set := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	set(tracing+"/tracing_on", "0")
	set(tracing+"/trace", "")              // empties it
	set(tracing+"/trace_clock", "counter") // no two events at once
	set(tracing+"/buffer_size_kb", "4096")
	set(completed+"/filter", "("+strings.Join(filter, " || ")+`) && rwbs ~ "*F*"`)
	// What is traced is patched into the kernel's code, while the other CPU may run it, and an emulator does not always get
	// that right (cmd/ubvm/internal/vm/emulator.go). So the scheduler is not traced as well, for the names of processes, and
	// the event stays enabled.
	set(tracing+"/options/record-cmd", "0")
	if was, err := os.ReadFile(completed + "/enable"); err != nil || string(was) != "1\n" {
		set(completed+"/enable", "1")
	}
	set(tracing+"/tracing_on", "1")
	return x
}

func stopTrace() {
	_ = os.WriteFile(tracing+"/tracing_on", []byte("0"), 0)
	_ = os.WriteFile(tracing+"/trace", nil, 0)
}

// points is how often each device has made something durable so far.
func (x *trace) points(t *testing.T) (n [2]int) {
	t.Helper()
	for _, d := range x.read(t) {
		n[d.Dev]++
	}
	return n
}

// traceLine is such as "  kworker-9 [000] ..... 1234: block_bio_complete: 253,5 WFS 2048 + 8 [0]".
var traceLine = regexp.MustCompile(` block_bio_complete: (\d+,\d+) \S+ (\d+) \+ (\d+) \[0\]$`)

func (x *trace) read(t *testing.T) (list []writelog.Done) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tracing, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		m := traceLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			t.Fatalf("trace: %q", line)
		}
		d := writelog.Done{Dev: 0}
		if m[1] == x.devs[1] {
			d.Dev = 1
		}
		sector, _ := strconv.ParseInt(m[2], 10, 64)
		sectors, _ := strconv.ParseInt(m[3], 10, 64)
		if sectors > 0 { // else it is a flush
			d.Off, d.Len = sector*512, sectors*512
		}
		list = append(list, d)
	}
	return list
}

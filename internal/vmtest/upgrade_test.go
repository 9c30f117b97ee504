//go:build vm

package vmtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// underLoad is a cached device with fio, which verifies what it writes, and a probe on it.
type underLoad struct {
	c     *Cache
	load  *load
	probe *probe
}

func startUnderLoad(t *testing.T) *underLoad {
	t.Helper()
	c := NewCache(t, Slice(t, "ssd", 0, 96))
	const backingMiB = 192
	dev := c.Attach(t, Slice(t, "ssd", 1024, backingMiB), "data", writeback...)
	u := &underLoad{c: c, load: startLoad(dev), probe: startProbe(t, dev, (backingMiB-1)<<20)}
	t.Cleanup(func() { u.load.over.Store(true) })
	return u
}

// busy waits until load and probe are well under way.
func (u *underLoad) busy(t *testing.T) {
	t.Helper()
	seen := u.c.Stats(t).Devices["data"].Writes
	Wait(t, time.Minute, "writes", func() bool {
		return u.c.Stats(t).Devices["data"].Writes > seen+100 || u.load.failed() || u.probe.failed()
	})
	u.probe.longest.Store(0)
}

// pause waits for the probe's next write and returns the longest since [underLoad.busy].
func (u *underLoad) pause(t *testing.T) time.Duration {
	t.Helper()
	before := u.probe.done.Load()
	Wait(t, time.Minute, "the probe's next write", func() bool {
		return u.probe.done.Load() > before+1 || u.probe.failed()
	})
	if err := errors.Join(u.load.err(), u.probe.err()); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.probe.longest.Load())
}

// end waits for fio to verify its last round.
func (u *underLoad) end(t *testing.T, y *Tally) {
	t.Helper()
	rounds := u.load.stop()
	if err := errors.Join(u.load.err(), u.probe.stop()); err != nil {
		y.Load(err)
	}
	if rounds == 0 {
		t.Error("fio has not verified anything")
	}
}

// repeats is how often a fault of the daemon is tried.
func repeats(t *testing.T, n int) int {
	if Soak(t) {
		return 10 * n
	}
	return n
}

// beyondRestart is how much longer than the new daemon's start a writer may have to wait, as a rule: the median
// counts, for a busy host may stop the machine at any time. The old daemon serves nearly until it ends.
const beyondRestart = time.Second

// TestUpgrade replaces the daemon by a new binary while fio verifies what it writes: the old one is
// told to end, as by systemctl restart, and the new one takes its device over.
func TestUpgrade(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	u := startUnderLoad(t)
	y := Fault(t, "daemon upgraded under load")
	old, err := exec.LookPath("ubcache")
	if err != nil {
		t.Fatal(err)
	}
	var beyond []time.Duration
	last := ""
	for i := range repeats(t, 5) {
		// Another file each time, which the kernel cannot have in memory under its old name.
		fresh := filepath.Join(t.TempDir(), "ubcache")
		Sh(t, fmt.Sprintf("cp %s %s; echo upgrade %d >>%s", old, fresh, i, fresh))
		u.busy(t)
		y.Tried(1)
		pid := u.c.Status(t).PID
		begin := time.Now()
		u.c.terminate(t)
		ended := time.Since(begin)
		Run(t, fresh, "start")
		restart := time.Since(begin) - ended
		pause := u.pause(t)
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", u.c.Status(t).PID))
		if err != nil || exe != fresh {
			t.Errorf("the daemon is %s (%v), not the new binary %s", exe, err, fresh)
		}
		if now := u.c.Status(t).PID; now == pid {
			t.Error("the daemon is still the old process")
		}
		fmt.Printf("%s: pause of I/O %d ms; the old daemon took %d ms to end, the new one %d ms to serve\n",
			t.Name(), pause.Milliseconds(), ended.Milliseconds(), restart.Milliseconds())
		beyond = append(beyond, pause-restart)
		_ = os.Remove(last) // fifty of them would fill the disk
		last = fresh
	}
	u.end(t, y)
	notBeyondRestart(t, beyond)
}

// notBeyondRestart returns the median of how much longer than the new daemon's start writers waited, and fails the test if
// that is too much.
func notBeyondRestart(t *testing.T, beyond []time.Duration) time.Duration {
	t.Helper()
	slices.Sort(beyond)
	median := beyond[len(beyond)/2]
	if median > beyondRestart {
		t.Errorf("writers waited %s longer than the start of the new daemon took (median of %s)", median, beyond)
	}
	return median
}

// TestStopContinue stops the daemon with SIGSTOP under load and lets it go on, or kills it while it
// stands still.
func TestStopContinue(t *testing.T) {
	OnlyFull(t)
	for _, kill := range []bool{false, true} {
		name := map[bool]string{false: "SIGCONT", true: "SIGKILL"}[kill]
		t.Run(name, func(t *testing.T) {
			Limit(t, 4*time.Minute)
			u := startUnderLoad(t)
			y := Fault(t, "daemon stopped by SIGSTOP, then "+name)
			for range repeats(t, 3) {
				u.busy(t)
				y.Tried(1)
				pid := u.c.Status(t).PID
				if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				waitStopped(t, pid)
				const stands = 2 * time.Second
				done := u.probe.done.Load()
				time.Sleep(stands)
				// The answer to the probe's read may have been on its way; its next request has nobody.
				if n := u.probe.done.Load() - done; n > 1 {
					t.Errorf("%d blocks were written and read while the daemon was stopped", n)
				}
				if kill {
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
					u.c.Start(t)
				} else if err := unix.Kill(pid, unix.SIGCONT); err != nil {
					t.Fatal(err)
				}
				// A busy machine may have kept the probe from its next request for a while.
				if pause := u.pause(t); pause < stands*3/4 {
					t.Errorf("a writer waited only %s: the daemon was not stopped", pause)
				}
			}
			u.end(t, y)
		})
	}
}

// waitStopped waits until every thread of a process that was sent SIGSTOP has stopped.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	Wait(t, time.Minute, "the process stops", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range threads {
			// "1234 (name) T ...", of which the name may have anything in it.
			text, err := os.ReadFile(file)
			if end := bytes.LastIndexByte(text, ')'); err != nil || !bytes.HasPrefix(text[end+1:], []byte(" T")) {
				return false
			}
		}
		return len(threads) > 0
	})
}

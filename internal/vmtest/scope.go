//go:build vm

package vmtest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"testing"
	"time"
)

// EnvScope chooses the list of acceptance tests: short, full, long (full, and what takes too long for make
// test), or soak for long versions of the long one. Without it the newest kernels get the full list and the
// older series of the matrix the short one.
const EnvScope = "UBCACHE_VM_SCOPE"

// Full reports whether the full list runs.
func Full(t testing.TB) bool {
	t.Helper()
	switch scope := os.Getenv(EnvScope); scope {
	case "full", "long", "soak":
		return true
	case "short":
		return false
	case "":
		return KernelAtLeast(t, "7.0")
	default:
		t.Fatalf("%s=%s: want short, full, long or soak", EnvScope, scope)
		return false
	}
}

// Soak reports whether the long versions of tests run: every crash point, many rounds.
func Soak(t testing.TB) bool {
	t.Helper()
	return Full(t) && os.Getenv(EnvScope) == "soak"
}

// Long reports whether the long list runs.
func Long(t testing.TB) bool {
	t.Helper()
	scope := os.Getenv(EnvScope)
	return Full(t) && (scope == "long" || scope == "soak")
}

// OnlyLong skips a test that is on the long list only, and says so.
func OnlyLong(t testing.TB) {
	t.Helper()
	if !Long(t) {
		fmt.Printf("%s: only on the long list; make vm-long runs it\n", t.Name())
		t.Skip("only on the long list")
	}
}

// OnlyFull skips a test that is not on the short list, and says so.
func OnlyFull(t testing.TB) {
	t.Helper()
	if !Full(t) {
		// Not only in the log, which is shown with -v alone.
		fmt.Printf("%s: not on the short list of this kernel; %s=full runs it\n", t.Name(), EnvScope)
		t.Skip("not on the short list")
	}
}

// emulatedFactor is how much more time a test has on CPUs that are emulated: how slow they are is a
// matter of what else the host does.
const emulatedFactor = 3

// soakFactor is how much more time the long versions of tests have: most do ten times as much.
const soakFactor = 10

// Limit ends the whole run if the test takes longer; with emulated CPUs, several times as long. A task
// that waits for direct I/O cannot be killed and the kernel does not report it, so nothing else would
// end such a test.
func Limit(t testing.TB, limit time.Duration) {
	t.Helper()
	if Emulated() {
		limit *= emulatedFactor
	}
	if Soak(t) {
		limit *= soakFactor
	}
	name := t.Name()
	timer := time.AfterFunc(limit, func() {
		fmt.Printf("--- LIMIT: %s is still running after %s\n", name, limit)
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
		Diagnose(os.Stdout)
		dumpDaemons(os.Stdout)
		debug.SetTraceback("all")
		panic(name + " ran into its limit")
	})
	t.Cleanup(func() { timer.Stop() })
}

// dumpDaemons ends the daemons with SIGQUIT, at which Go writes down what each goroutine does.
func dumpDaemons(w io.Writer) {
	const script = `cd /run/ubcache; for l in *.lock; do p=$(cat $l); kill -QUIT $p
		for i in $(seq 100); do kill -0 $p 2>/dev/null || break; sleep 0.1; done; done
		tail -n 400 *.log`
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	fmt.Fprintf(w, "$ kill -QUIT\n%s", out)
	if err != nil {
		fmt.Fprintln(w, err)
	}
}

// Diagnose writes what helps to understand a failure: the state of the caches, the daemons' logs,
// the end of the kernel's.
func Diagnose(w io.Writer) {
	for _, c := range []string{
		"ubcache status --json; ubcache stats",
		"tail -n 60 /run/ubcache/*.log /run/ubcache/*.log.old",
		"cat /etc/ubcache.toml; ls -l /run/ubcache /dev/ublk* /dev/ubcache",
		"ps -eLo pid,tid,stat,time,wchan:32,args | grep -v '\\[.*\\]$'",
		"dmesg | tail -n 60",
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		cmd := exec.CommandContext(ctx, "sh", "-c", c)
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		cancel()
		fmt.Fprintf(w, "$ %s\n%s", c, out)
		if ctx.Err() != nil {
			fmt.Fprintln(w, "took too long:", err)
		}
	}
}

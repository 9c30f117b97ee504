//go:build vm

// Package vmtest holds what tests need that run inside the integration VM (build tag vm): the test
// disks, commands, kernel modules, slow devices, and a cache driven through the command line. The
// tests themselves lie beside it: the acceptance tests of the whole, from mkfs on the cached device
// down to the disks. Package powercut has those that reset the machine.
//
// What a kernel of the matrix must have is there, or the test fails. Only tests that are not on the
// short list ([EnvScope]) are skipped, and say so. Each test has a time limit of its own ([Limit]),
// stops its cache in the end, has the whole SSD checked, and leaves nothing behind ([NewCache]).
package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandTime is far more than any command of a test needs, even on a slow disk of an emulated
// machine.
const commandTime = 5 * time.Minute

// Run executes a command and returns its standard output without the last newline. It fails the
// test, with all the command printed, if the command fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := Try(t, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is [Run] for a command that may fail.
func Try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("still running after %s", commandTime)
	}
	out := strings.TrimRight(stdout.String(), "\n")
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s\n%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return out, err
}

// Sh runs a shell script, which ends at the first command that fails.
func Sh(t testing.TB, script string) string {
	t.Helper()
	return Run(t, "bash", "-euo", "pipefail", "-c", script)
}

// Wait asks until the condition holds; it fails the test with what was waited for if that takes
// longer than the limit.
func Wait(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", limit, what)
		}
	}
}

// Emulated reports whether the CPUs are emulated: about ten times slower than real ones.
func Emulated() bool { return os.Getenv("UBVM_ACCEL") != "kvm" }

// Boot is the number of this boot, from 1; it grows when a test resets the machine.
func Boot(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("UBVM_BOOT"))
	if err != nil {
		t.Fatal("not in the integration VM: run this test with ubvm test")
	}
	return n
}

// PowerCut resets the machine at once: nothing is flushed, no process ends properly. It does not
// return. The run must allow it (ubvm test --on-reset reboot).
func PowerCut(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0); err != nil {
		t.Fatal(err)
	}
	select {}
}

// Out returns the name of a file that the host receives (ubvm --out), with its folder made.
func Out(t testing.TB, name string) string {
	t.Helper()
	file := filepath.Join(os.Getenv("UBVM_OUT"), name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// KernelAtLeast reports whether the running kernel is of this version ("7.1") or a later one.
func KernelAtLeast(t testing.TB, version string) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	have, want := versionOf(unix.ByteSliceToString(uts.Release[:])), versionOf(version)
	return have[0] > want[0] || have[0] == want[0] && have[1] >= want[1]
}

// NeedKernel skips the test, and says so, on a kernel older than the version that brought what
// the test is about.
func NeedKernel(t testing.TB, version string) {
	t.Helper()
	if !KernelAtLeast(t, version) {
		t.Skipf("needs Linux %s or later; this is %s", version, os.Getenv("UBVM_KERNEL"))
	}
}

func versionOf(release string) (v [2]int) {
	_, _ = fmt.Sscanf(release, "%d.%d", &v[0], &v[1])
	return v
}

// Modprobe loads kernel modules.
func Modprobe(t testing.TB, names ...string) {
	t.Helper()
	Run(t, "modprobe", append([]string{"-a"}, names...)...)
}

// Ubcache runs the command under test, which ubvm has built and put on the PATH.
func Ubcache(t testing.TB, args ...string) string {
	t.Helper()
	return Run(t, "ubcache", args...)
}

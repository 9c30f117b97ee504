package daemon

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestDirectC compiles the example in C and runs it with a real daemon.
func TestDirectC(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	program := filepath.Join(t.TempDir(), "example")
	out, err := exec.Command("gcc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", program,
		"../../attrs/shm/example/example.c").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc (tools/need-gcc installs it): %v\n%s", err, out)
	}
	for range 2 {
		out, err = exec.Command(program, b.directPath(), "disk1").CombinedOutput()
		const want = "disk1: 67108864 bytes\nwrite: hint handled by device known\n" +
			"read: hint handled by device known\nthe data is the same\n"
		if err != nil || string(out) != want {
			t.Errorf("%v\n%s\nwant\n%s", err, out, want)
		}
	}
	if out, err = exec.Command(program, b.directPath(), "none").CombinedOutput(); err == nil {
		t.Errorf("a device that is not there: %s", out)
	}
	b.clients(0)
}

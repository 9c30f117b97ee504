package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/control"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// TestInterruptedLoad interrupts what reads the metadata of a stopped cache: it says so in one line.
func TestInterruptedLoad(t *testing.T) {
	s := newShell(t)
	if out, status := s.do("truncate -s 128M ssd; ubcache format ssd"); status != 0 {
		t.Fatal(out)
	}
	t.Setenv(control.EnvRuntimeDir, s.run)
	t.Setenv(missed.EnvStateDir, s.dir+"/state")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, line := range [][]string{
		{"check", "main"}, {"check", "main", "--data", "--json"}, {"salvage", "main"}, {"dump", "main"},
	} {
		var out bytes.Buffer
		cmd := newRoot()
		cmd.SetArgs(append([]string{"--config", s.dir + "/ubcache.toml"}, line...))
		cmd.SetOut(&out)
		err := cmd.ExecuteContext(ctx)
		want := line[0] + " main: interrupted"
		if err == nil || err.Error() != want || report.CodeOf(err) != report.Failed || out.Len() > 0 {
			t.Errorf("%v: %v, want %s; it prints %q", line, err, want, out.String())
		}
	}
}

// TestSecondInterrupt interrupts a command that does not notice: it waits for its configuration, from a
// pipe. The first signal is for commands that end in order, the second ends this one.
func TestSecondInterrupt(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "config")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "--config", pipe, "check", "main")
	cmd.Env = append(os.Environ(), envMain+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // it reads now
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	interrupt := func() { _ = cmd.Process.Signal(os.Interrupt) }
	interrupt()
	select {
	case err := <-ended:
		t.Fatalf("the first interrupt: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	interrupt()
	select {
	case err := <-ended:
		var e *exec.ExitError
		if !errors.As(err, &e) || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
			t.Errorf("the second interrupt: %v", err)
		}
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("the second interrupt does not end it")
	}
}

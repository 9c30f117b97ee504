package extents

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const envServe = "UBCACHE_TEST_SERVE"

// TestMain makes the test binary the process of a Client when a test runs it so.
func TestMain(m *testing.M) {
	if os.Getenv(envServe) != "" {
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// client is a Client that remembers its processes.
type client struct {
	*Client
	observer
	started chan *exec.Cmd
}

func newClient(t *testing.T) *client {
	t.Helper()
	c := &client{started: make(chan *exec.Cmd, 10)}
	c.t, c.updates, c.last = t, make(chan Update, 1000), map[uint64]Update{}
	c.Client = NewClient(func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env, cmd.Stderr = append(os.Environ(), envServe+"=1"), os.Stderr
		c.started <- cmd
		return cmd
	}, func(u Update) { c.updates <- u })
	t.Cleanup(c.Client.Close)
	return c
}

// gone waits until a process is not there any more.
func gone(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if syscall.Kill(cmd.Process.Pid, 0) != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", cmd.Process.Pid)
		}
	}
}

func TestClient(t *testing.T) {
	m, target := mount(t, false)
	m.Write("a", "a", 5)
	m.Write("b", "b", 6)
	c := newClient(t)
	c.Watch(Spec{ID: 1, Path: m.Path("a"), Target: target})
	c.Watch(Spec{ID: 2, Path: m.Path("b"), Target: target})
	c.until(1, "a", soon, blocks(5))
	c.until(2, "b", soon, blocks(6))
	first := <-c.started

	c.Drop(2)
	m.Write("b", "b", 7)
	m.Write("a", "a", 8)
	c.until(1, "a, changed", soon, blocks(8))
	if u := c.last[2]; u.blocks() != 6 {
		t.Errorf("an update for what is not watched: %+v", u)
	}

	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	u := c.until(1, "the end of the process", soon, func(u Update) bool { return !u.Found })
	if len(u.Ranges) != 0 || !strings.Contains(u.Problem, "has ended") {
		t.Errorf("after the end: %+v", u)
	}
	c.until(1, "a new process", restartAfter+soon, blocks(8))
	second := <-c.started

	c.Drop(1)
	gone(t, second)
	c.Watch(Spec{ID: 3, Path: m.Path("b"), Target: target})
	c.until(3, "a third process", soon, blocks(7))
	third := <-c.started
	c.Client.Close()
	gone(t, third)
	c.Watch(Spec{ID: 4, Path: m.Path("b"), Target: target})
	if len(c.started) != 0 {
		t.Error("a process was started after Close")
	}
}

// TestClientStuck makes a process that takes and gives nothing.
func TestClientStuck(t *testing.T) {
	started := make(chan *exec.Cmd, 1)
	c := NewClient(func() *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		started <- cmd
		return cmd
	}, func(u Update) { t.Errorf("update %+v", u) })
	began := time.Now()
	for id := range uint64(5000) {
		c.Watch(Spec{ID: id, Path: strings.Repeat("x", 1000)})
	}
	for id := range uint64(2500) {
		c.Drop(id)
	}
	c.Close()
	gone(t, <-started)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it was waited for %v", took)
	}
}

// TestClientCannotStart has a command that does not exist.
func TestClientCannotStart(t *testing.T) {
	updates := make(chan Update, 10)
	c := NewClient(func() *exec.Cmd { return exec.Command("/nonexistent") }, func(u Update) { updates <- u })
	defer c.Close()
	c.Watch(Spec{ID: 1, Path: "/"})
	if u := <-updates; u.ID != 1 || u.Found || !strings.Contains(u.Problem, "no such file") {
		t.Errorf("update %+v", u)
	}
}

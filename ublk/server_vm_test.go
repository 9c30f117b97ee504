//go:build vm

package ublk_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// A server in a process of its own, which can be killed. It keeps its data in a file of tmpfs.

type serverProcess struct {
	cmd *exec.Cmd
	id  int
}

// startServer runs role "create MODE RECOVERY" or "recover ID".
func startServer(t *testing.T, store string, role ...string) *serverProcess {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "UBLK_TEST_SERVER="+strings.Join(role, " "),
		"UBLK_TEST_STORE="+store)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("server %v: %v", role, err)
	}
	id, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("server %v: %q", role, line)
	}
	return &serverProcess{cmd: cmd, id: id}
}

func (s *serverProcess) kill(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
}

// signal sends a signal and expects the server to end well.
func (s *serverProcess) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Fatalf("server after %v: %v", sig, err)
	}
}

// serverMain is the body of the server: SIGTERM deletes the device, SIGUSR2 hands it over.
func serverMain(role string) {
	if err := serveRole(strings.Fields(role), os.Getenv("UBLK_TEST_STORE")); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func serveRole(role []string, store string) error {
	fd, err := unix.Open(store, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	disk, err := mapDisk(fd, testDiskSize)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR2)
	var d *ublk.Device
	if role[0] == "create" {
		d, err = ublk.Create(roleOptions(role[1], role[2]))
	} else {
		var id int
		if id, err = strconv.Atoi(role[1]); err != nil {
			return err
		}
		d, err = ublk.Recover(ctx, id, ublk.Options{})
	}
	if err != nil {
		return err
	}
	if err := d.Start(disk.factory); err != nil {
		return err
	}
	fmt.Println(d.ID())
	switch <-signals {
	case unix.SIGUSR2:
		return d.Quiesce(context.Background(), 10*time.Second)
	default:
		return d.Delete(context.Background())
	}
}

func roleOptions(mode, recovery string) ublk.Options {
	var m ublk.CopyMode
	for m.String() != mode {
		m++
	}
	o := testOptions(m, testDiskSize)
	for o.Recovery.String() != recovery {
		o.Recovery++
	}
	return o
}

// newStore makes the file that the servers share.
func newStore(t *testing.T) string {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "ublk-test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Cleanup(func() { _ = os.Remove(f.Name()) })
	if err := f.Truncate(testDiskSize); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

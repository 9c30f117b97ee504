package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// argIOPrio makes the test binary print the I/O priority that its first thread was executed with.
const argIOPrio = "print-ioprio"

func printIOPrio() {
	v, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(os.Getpid()), 0)
	if errno != 0 {
		fmt.Println(errno)
		os.Exit(1)
	}
	fmt.Printf("%d/%d/%d\n", v>>13, v>>3&0x3ff, v&7)
	os.Exit(0)
}

// TestRunTags reads the priority back in the command.
func TestRunTags(t *testing.T) {
	s := newShell(t)
	// Without an I/O priority the level follows from nice, 0 as a rule.
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	nice := 20 - raw
	level := func(nice int) string { return fmt.Sprint((min(nice, 19) + 20) / 5) }
	own, nicer := level(nice), level(nice+10)
	for _, c := range []struct{ line, want string }{
		{`"$UBCACHE" print-ioprio`, "0/0/0"},
		{`ubcache run --hint bypass -- "$UBCACHE" print-ioprio`, "2/770/" + own},
		{`ubcache run --hint default "$UBCACHE" print-ioprio`, "2/768/" + own},
		{`ubcache run --hint=prefetch --prio be -- "$UBCACHE" print-ioprio`, "2/775/4"},
		{`ubcache run --prio idle "$UBCACHE" print-ioprio`, "3/0/0"},
		{`ubcache run --prio be/7 --hint once "$UBCACHE" print-ioprio --hint cache`, "2/771/7"},
		// Children of the command.
		{`ubcache run --hint pin -- sh -c '"$UBCACHE" print-ioprio; true'`, "2/772/" + own},
		// What it had before stays: I/O priority, nice, scheduling class.
		{`ubcache run --prio be/1 "$UBCACHE" run --hint evict "$UBCACHE" print-ioprio`, "2/774/1"},
		{`ubcache run --prio idle "$UBCACHE" run --hint cache "$UBCACHE" print-ioprio`, "3/769/0"},
		{`nice -n 10 "$UBCACHE" run --hint cache "$UBCACHE" print-ioprio`, "2/769/" + nicer},
		{`chrt -i 0 "$UBCACHE" run --hint cache "$UBCACHE" print-ioprio`, "3/769/" + own},
	} {
		out, status := s.do(c.line)
		if got := strings.TrimSpace(out); status != 0 || got != c.want {
			t.Errorf("%s: exit status %d, %q; want %q", c.line, status, got, c.want)
		}
	}
}

// TestRunRT needs a privilege, and says so. In a user namespace nobody has it.
func TestRunRT(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(attr *syscall.SysProcAttr) (string, int) {
		cmd := exec.Command(self, "run", "--prio", "rt/2", "--", self, argIOPrio)
		cmd.Env = append(os.Environ(), envMain+"=1")
		cmd.SysProcAttr = attr
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Skipf("no user namespace here: %v", err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	ids := []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
	out, status := run(&syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids,
	})
	want := "ubcache: set I/O priority rt/2: operation not permitted " +
		"(class rt needs root or CAP_SYS_NICE; take be/0)\n"
	if out != want || status != 1 {
		t.Errorf("exit status %d, %q; want %q", status, out, want)
	}
	if os.Getuid() == 0 {
		if out, status = run(nil); out != "1/0/2\n" || status != 0 {
			t.Errorf("as root: exit status %d, %q", status, out)
		}
	}
}

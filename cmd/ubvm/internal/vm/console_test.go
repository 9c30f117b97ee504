package vm

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestFindFault(t *testing.T) {
	for _, line := range []string{
		"[    4.2] Kernel panic - not syncing: sysrq triggered crash",
		"[  130.1] INFO: task dd:212 blocked for more than 120 seconds.",
		"[   10.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
		"[   10.0] Oops: general protection fault, probably for non-canonical address: 0000 [#1] SMP",
		"[   10.0] kernel BUG at block/blk-mq.c:1234!",
		"[   10.0] refcount_t: underflow; use-after-free.",
		"[   10.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
		"[   10.0] Out of memory: Killed process 200 (ublk.test) total-vm:1kB",
		"ubvm-init: mount /newroot: no such device",
	} {
		if findFault(line) == "" {
			t.Errorf("taken for harmless: %s", line)
		}
	}
	for _, line := range []string{
		"[    0.0] Command line: console=ttyS0 panic=-1 oops=panic",
		"[   40.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [fio:300]",
		"[   40.0] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!",
		"[    3.3] brd: module loaded",
		"[   10.0] Buffer I/O error on dev ublkb0, logical block 0, async page read",
		"ubvm-init: modprobe brd: exit status 1",
	} {
		if got := findFault(line); got != "" {
			t.Errorf("taken for a fault: %s", got)
		}
	}
}

// TestConsolePieces feeds lines in pieces, as a serial port does.
func TestConsolePieces(t *testing.T) {
	name := filepath.Join(t.TempDir(), "console")
	c, err := newConsole(name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.file.Close()
	text := strings.Repeat("[ 0.0] line\r\n", 100) + "[ 1.0] Kernel panic - not syncing: x\r\nBUG: second\r\n"
	for i := 0; i < len(text); i += 7 {
		if _, err := c.Write([]byte(text[i:min(len(text), i+7)])); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Fault(); got != "[ 1.0] Kernel panic - not syncing: x" {
		t.Errorf("first fault is %q", got)
	}
	select {
	case <-c.faulted:
	default:
		t.Error("fault was not announced")
	}
	lines := strings.Split(tail(name), "\n")
	if len(lines) != consoleTail || lines[len(lines)-1] != "BUG: second" {
		t.Errorf("tail has %d lines and ends with %q", len(lines), lines[len(lines)-1])
	}
}

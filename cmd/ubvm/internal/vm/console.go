package vm

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"sync"
)

// consoleTail is how many lines of the console a failure shows.
const consoleTail = 60

// faults are console lines after which a run cannot have passed, whatever the tests say.
var faults = regexp.MustCompile(strings.Join([]string{
	`Kernel panic`,
	`\bBUG: `,
	`\bOops\b`,
	`INFO: task .* blocked for more than`,
	`INFO: rcu.*detected stalls`,
	`general protection fault`,
	`kernel BUG at`,
	`KASAN:|KFENCE:|UBSAN:`,
	`refcount_t: `,
	`Out of memory: Killed process`,
	`possible recursive locking|circular locking dependency`,
	`ubvm-init: `,
}, "|"))

// tolerated are lines that look like a fault but say only that an emulated CPU is slow.
var tolerated = regexp.MustCompile(`BUG: soft lockup|BUG: workqueue lockup|ubvm-init: modprobe`)

// console collects the guest's serial console and watches it for faults.
type console struct {
	file *os.File
	mu   struct {
		sync.Mutex
		partial []byte
		fault   string
	}
	faulted chan struct{} // closed at the first fault
}

func newConsole(name string) (*console, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return &console{file: f, faulted: make(chan struct{})}, nil
}

// Write takes what QEMU's serial port sends.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.partial = append(c.mu.partial, p...)
	for {
		line, rest, ok := bytes.Cut(c.mu.partial, []byte("\n"))
		if !ok {
			break
		}
		if fault := findFault(string(line)); fault != "" && c.mu.fault == "" {
			c.mu.fault = fault
			close(c.faulted)
		}
		c.mu.partial = append([]byte(nil), rest...)
	}
	return c.file.Write(p)
}

// findFault returns the line, cleaned, if it says that the kernel has failed.
func findFault(line string) string {
	if !faults.MatchString(line) || tolerated.MatchString(line) {
		return ""
	}
	return strings.TrimSpace(line)
}

// Fault returns the first line that told of a failure.
func (c *console) Fault() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.fault
}

// tail returns the last lines of a console's file.
func tail(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(string(text), "\r", ""), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-consoleTail):], "\n")
}

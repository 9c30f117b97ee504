package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// target is a device to measure.
type target struct {
	dev string
	// hits counts since the device was made; nil for what is no cache or cannot tell.
	hits func() (hitCount, error)
}

type hitCount struct{ hits, misses int64 }

// The span stays below the share of the SSD, a tenth, from which on ours and bcache write back.
const (
	ramDisks   = 16
	ssdMiB     = 768
	backingMiB = 256
)

// ssd returns a RAM disk that plays the SSD. All of it has been written: a RAM disk takes memory at
// the first write of a page, and under emulation the first use of a page of the guest stops both
// CPUs for a while. Caches that never write a block where it was would pay for that all the time.
func (b *bench) ssd(ctx context.Context) (string, error) {
	dev, err := b.ramDisk(ctx)
	if err != nil {
		return "", err
	}
	return dev, zero(ctx, dev, ssdMiB<<20)
}

// ramDisk returns a RAM disk that nobody uses.
func (b *bench) ramDisk(ctx context.Context) (string, error) {
	if b.ram == 0 {
		_, _ = run(ctx, "modprobe", "-r", "brd") // the VM loads it with other parameters
		_, err := run(ctx, "modprobe", "brd", fmt.Sprintf("rd_nr=%d", ramDisks),
			fmt.Sprintf("rd_size=%d", ssdMiB<<10))
		if err != nil {
			return "", err
		}
	}
	if b.ram == ramDisks {
		return "", errors.New("out of RAM disks")
	}
	b.ram++
	return fmt.Sprintf("/dev/ram%d", b.ram-1), nil
}

// full returns a RAM disk with data in all of the span: to read what was never written is cheaper.
func (b *bench) full(ctx context.Context) (string, error) {
	dev, err := b.ramDisk(ctx)
	if err != nil {
		return "", err
	}
	return dev, writeAll(ctx, dev)
}

// slow returns a disk behind a cache: a RAM disk with data and the delays of a fast disk.
func (b *bench) slow(ctx context.Context, name string) (string, error) {
	dev, err := b.full(ctx)
	if err != nil {
		return "", err
	}
	table := fmt.Sprintf("0 %d delay %s 0 4 %s 0 4 %s 0 8", backingMiB<<11, dev, dev, dev)
	return mapper(ctx, name, table)
}

// mapper makes a device-mapper device. Nobody else makes its node: there is no udev.
func mapper(ctx context.Context, name, table string) (string, error) {
	if _, err := run(ctx, "dmsetup", "create", name, "--table", table); err != nil {
		return "", err
	}
	dev := "/dev/mapper/" + name
	if _, err := os.Stat(dev); err != nil {
		if _, err := run(ctx, "dmsetup", "mknodes", name); err != nil {
			return "", err
		}
	}
	return dev, nil
}

// run executes a command and returns its standard output without the last newline.
func run(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	out := strings.TrimRight(stdout.String(), "\n")
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s\n%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return out, err
}

// wait asks until the condition holds.
func wait(what string, holds func() bool) error {
	const limit = 30 * time.Second
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s in vain: %s", limit, what)
		}
	}
	return nil
}

// idleTime is how long the CPUs of this machine have had nothing to do, all together.
func idleTime() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	if f := strings.Fields(string(text)); err == nil && len(f) > 5 {
		idle, _ := strconv.ParseInt(f[4], 10, 64)
		waiting, _ := strconv.ParseInt(f[5], 10, 64) // for I/O, which is idle too
		return time.Duration(idle+waiting) * 10 * time.Millisecond
	}
	return 0
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

var began = time.Now()

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "ubbench %5.0f s  %s\n", time.Since(began).Seconds(),
		fmt.Sprintf(format, args...))
}

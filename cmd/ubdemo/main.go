// Command ubdemo shows what ubcache does, to a person who watches: a disk is cached, gets fast,
// survives kill -9 of the daemon in the middle of writing, and is given back whole. It makes its
// own disks and removes everything in the end. It needs root, and a kernel with ublk; make demo
// runs it in a VM where the machine has none.
//
// What it claims it checks: if anything is not as it says, it says so and exits with status 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	dir := flag.String("dir", os.TempDir(), "where the files go that play SSD and disk, outside of the VM")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *dir)
	stop()
	switch {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Println("\nInterrupted; everything has been removed.")
		os.Exit(130)
	default:
		fmt.Println("\nFAILED:", err)
		os.Exit(1)
	}
}

// step is a part of the demonstration.
type step struct {
	title string
	do    func(*demo) error
}

var steps = []step{
	{"An SSD and a slow disk", (*demo).makeDisks},
	{"Format the SSD, start the cache, put it in front of the disk", (*demo).makeCache},
	{"A filesystem on the cached disk", (*demo).makeFiles},
	{"Read the same data twice: cold, then warm", (*demo).readTwice},
	{"Write: acknowledged by the SSD, written back later", (*demo).writeBack},
	{"kill -9 of the daemon in the middle of writing", (*demo).killDaemon},
	{"Unmount, check the filesystem, compare the files", (*demo).checkFiles},
	{"Take the cache away: the disk alone has everything", (*demo).giveBack},
	{"Stop the cache and check the SSD", (*demo).checkSSD},
}

func run(ctx context.Context, dir string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("run as root: it makes block devices (make demo does that in a VM)")
	}
	if _, err := os.Stat("/dev/ublk-control"); err != nil {
		return errors.New("this kernel has no ublk: modprobe ublk_drv, or make demo, which uses a VM then")
	}
	d := &demo{ctx: ctx, dir: dir}
	defer func() { err = errors.Join(err, d.cleanUp()) }()
	start := time.Now()
	for i, s := range steps {
		fmt.Printf("\n\x1b[1m%d. %s\x1b[0m\n", i+1, s.title)
		if err := s.do(d); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	fmt.Printf("\n\x1b[1mAll as claimed, in %.0f s.\x1b[0m\n", time.Since(start).Seconds())
	return nil
}

// kernel is the release of the running kernel.
func kernel() string {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(uts.Release[:])
}

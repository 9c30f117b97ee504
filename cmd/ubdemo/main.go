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
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted && errors.Is(err, context.Canceled):
		fmt.Println("\nInterrupted.")
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
	{"Stop the cache and check the SSD", (*demo).checkSSD},
	{"Take the cache away: the disk alone has everything", (*demo).giveBack},
}

func run(ctx context.Context, dir string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("run as root: it makes block devices (make demo does that in a VM)")
	}
	if _, err := os.Stat("/dev/ublk-control"); err != nil {
		return errors.New("this kernel has no ublk: modprobe ublk_drv, or make demo, which uses a VM then")
	}
	d := &demo{ctx: ctx, dir: dir}
	defer func() {
		if e := d.cleanUp(); e != nil {
			err = fmt.Errorf("not everything could be removed: %w", errors.Join(e, err))
		}
	}()
	start := time.Now()
	for i, s := range steps {
		fmt.Printf("\n--- %d. %s ---\n", i+1, s.title)
		if err := s.do(d); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	fmt.Printf("\nAll as claimed, in %.0f s.\n", time.Since(start).Seconds())
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

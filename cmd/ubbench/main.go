// Command ubbench compares ubcache with its peers: the kernel's own ublk server, bcache, dm-cache,
// dm-writecache and the loop driver, all on RAM disks of one virtual machine, where ratios mean
// something and absolute figures do not. It also compares ubcache with itself: what attributes cost, and
// what priorities bring.
//
// On the host it runs the Go benchmarks, then boots the integration VM and itself in it. It prints
// a table, writes bench.json, and fails if a ratio is below its bar.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// options are those of both sides.
type options struct {
	rounds  int
	seconds time.Duration
	only    string
	out     string // folder of bench.json
	kernel  string // host only
	native  bool   // host only
	stage   int    // guest only: index into plan

	match *regexp.Regexp
}

// errMissed is a benchmark that worked and whose result is not good enough.
var errMissed = errors.New("a bar was missed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ubbench:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "ubbench",
		Short:         "Compare ubcache with its peers in the integration VM",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.match, err = regexp.Compile(o.only); err != nil {
				return fmt.Errorf("--only: %w", err)
			}
			if o.rounds < 1 {
				return fmt.Errorf("--rounds %d: want 1 or more", o.rounds)
			}
			if inGuest() {
				return o.guest(cmd.Context())
			}
			return o.host(cmd.Context())
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.rounds, "rounds", 5, "measurements of each side of a comparison with a bar")
	fs.DurationVar(&o.seconds, "time", 2*time.Second, "length of a measurement")
	fs.StringVar(&o.only, "only", "", "regular expression: only the comparisons that it matches")
	fs.StringVar(&o.out, "out", "", "folder of bench.json [bin/bench; in the VM its out folder]")
	fs.StringVar(&o.kernel, "kernel", "newest", "kernel of the VM")
	fs.IntVar(&o.stage, "stage", 0, "in the VM: the part of the plan to run")
	_ = fs.MarkHidden("stage")
	fs.BoolVar(&o.native, "native", true, "run the Go benchmarks first, on the host")
	return cmd
}

// inGuest tells whether this is the VM: then the devices are ours to play with.
func inGuest() bool { return os.Getenv("UBVM_BOOT") != "" }

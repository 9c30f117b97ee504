package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ubcache/internal/control"
)

func stopCommand(g *globals) *cobra.Command {
	var a control.StopArgs
	cmd := &cobra.Command{
		Use:   "stop [CACHE]…",
		Short: "Stop the daemon of each cache that runs",
		Long: `Stop answers what is under way, removes the block devices, writes the last metadata and ends the
daemon. Dirty data stays on the SSD; see flush. It refuses while a device is mounted or open.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			picked, err := pick(file, names)
			if err != nil {
				return err
			}
			var errs []error
			stopped := []string{}
			for _, n := range picked {
				err := call(cmd.Context(), file, n, control.CmdStop, a, nil, nil)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				waitGone(cmd.Context(), control.SocketPath(control.RuntimeDir(file.RuntimeDir), n))
				stopped = append(stopped, n)
				if !g.json {
					fmt.Fprintf(cmd.OutOrStdout(), "cache %s: stopped\n", n)
				}
			}
			if g.json {
				if err := printJSON(cmd.OutOrStdout(), stopped); err != nil {
					return err
				}
			}
			return firstOf(errs)
		},
	}
	cmd.Flags().BoolVar(&a.Force, "force", false,
		"stop although devices are in use; their users see I/O errors")
	return cmd
}

// goneTime bounds how long a daemon that has stopped its cache may take to end.
const goneTime = 10 * time.Second

// waitGone waits until the daemon's socket is gone, so that what comes next does not meet a daemon
// that is about to end.
func waitGone(ctx context.Context, socket string) {
	for end := time.Now().Add(goneTime); time.Now().Before(end) && ctx.Err() == nil; {
		if _, err := os.Stat(socket); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"ubcache/internal/daemon"
	"ubcache/internal/extents"
)

// watchFilesCommand is the process of a daemon that watches the files of rules. A daemon starts it; it
// ends when its standard input does, whatever its threads wait for.
func watchFilesCommand() *cobra.Command {
	pid := 0
	cmd := &cobra.Command{
		Use:    daemon.WatchFilesCommand,
		Hidden: true,
		Args:   args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_ = os.WriteFile("/proc/self/comm", []byte("ubcache-files"), 0)
			// The daemon must not be killed for lack of memory, which this process can be.
			_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
			if err := extents.SeeMounts(pid); err != nil {
				slog.Warn("rules for files find only what the daemon has mounted", "error", err)
			}
			if err := extents.Serve(os.Stdin, os.Stdout); err != nil {
				return fmt.Errorf("watch files: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&pid, "mounts-of", 1, "process whose mounts to see")
	return cmd
}

package main

import (
	"context"

	"github.com/spf13/cobra"

	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/report"
)

// openCache opens a cache for check and dump: a cache of the configuration by name, or a device.
func openCache(ctx context.Context, file *config.File, what, arg string) (*blockdev.Device, error) {
	device := arg
	if c := file.Caches[arg]; c != nil {
		device = c.Device
	}
	i, err := blockdev.Inspect(device)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	d, err := i.Open(ctx)
	if err != nil {
		return nil, report.Wrap(what+" "+arg, err, "stop the cache first")
	}
	return d, nil
}

func checkCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "check CACHE|DEVICE",
		Short: "Check the whole format of a stopped cache",
		Long: `Check reads everything that a cache keeps on its SSD and reports what contradicts itself. It
changes nothing. The cache must not be running.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			return report.Fail("check "+a[0], "not built in yet", "")
		},
	}
}

func dumpCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "dump CACHE|DEVICE",
		Short: "Print what is on the SSD of a stopped cache",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			return report.Fail("dump "+a[0], "not built in yet", "")
		},
	}
}

package main

import (
	"github.com/spf13/cobra"

	"ubcache/internal/config"
	"ubcache/internal/report"
)

const rootHelp = `ubcache puts a fast device (an SSD) as a cache in front of slow ones (disks, network volumes)
and serves each of them as a block device /dev/ublkbN, also known as /dev/ubcache/NAME.

Getting started:

  ubcache format /dev/nvme0n1           make the SSD a cache, named "main"
  ubcache start                         start its daemon
  ubcache attach /dev/sdb --name data   put it in front of a disk, whose data stays as it is
  mount /dev/ubcache/data /srv
  ubcache status

What format, attach, detach, set, rule and tenant change is written to the configuration file, which
tells start what to start. A daemon that was killed loses no acknowledged write, and mounted filesystems
survive: ubcache start goes on where it ended.

Modes of a backing device (attach --mode, set NAME mode=…):

  writeback     writes are acknowledged from the SSD and written back later
  writethrough  writes go to both (default)
  writearound   writes go to the backing device only; reads fill the cache
  writeonly     as writeback, but reads do not fill the cache
  none          the cache is passed by

Sizes take K, M, G, T (powers of 1024), durations s, m, h.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused because it would do harm (the device is in
use, holds data, is not the right one) with nothing changed, 4 the cache is not running.`

// globals are the flags of every command.
type globals struct {
	config string
	json   bool
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:           "ubcache",
		Short:         "SSD cache for block devices in user space",
		Long:          rootHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&g.config, "config", config.DefaultPath, "configuration file")
	root.PersistentFlags().BoolVar(&g.json, "json", false, "print JSON for scripts")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return report.Misuse("%v (see %s --help)", err, c.CommandPath())
	})
	root.AddCommand(
		formatCommand(g), startCommand(g), stopCommand(g), attachCommand(g), detachCommand(g),
		reopenCommand(g),
		setCommand(g), ruleCommand(g), tenantCommand(g), flushCommand(g), statusCommand(g),
		statsCommand(g), traceCommand(g), checkCommand(g), scrubCommand(g), badCommand(g),
		salvageCommand(g), dumpCommand(g), featuresCommand(g),
		ioCommand(g), runCommand(), watchFilesCommand(),
	)
	return root
}

// args makes a wrong number of arguments a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return report.Misuse("%v (see %s --help)", err, c.CommandPath())
		}
		return nil
	}
}

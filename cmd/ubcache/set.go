package main

import (
	"strings"

	"github.com/spf13/cobra"

	"ubcache/internal/control"
	"ubcache/internal/daemon"
	"ubcache/internal/report"
)

func setCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME SETTING=VALUE…",
		Short: "Change settings of a device, under load if need be",
		Long: `Set changes settings of a backing device, at once and in the configuration:

  mode               writeback, writethrough, writearound, writeonly or none
  sequential-cutoff  streams longer than this size pass the cache by; 0 for none
  dirty-target       share of the cache in percent that writeback lets stay dirty
  dirty-max          share at which writes go past the cache instead of making more dirty data
  writeback-delay    age that dirty data may reach on an idle device
  pin-quota          share of the cache in percent that requests with hint=pin may take; at most 50
  ordered            on or off: writeback keeps the backing device a consistent older image at all
                     times, so that losing the SSD loses the newest data and not the filesystem
  ordered-age        how old the data may be that would be lost with the SSD then; writes wait
                     where the backing device cannot keep up
  ordered-max        how much that data may be
  backing-loss       what becomes of I/O that needs the backing device when that is gone: fail, hold
                     (it waits) or hold=DURATION (it waits for that long after the loss)
  ssd-loss           if the SSD is lost with dirty data of the device: error (requests for that data
                     fail), read-only (changes, too) or stop (everything fails)
  ssd-loss-hold      how long I/O that needs a lost SSD waits for it before that`,
		Example: "  ubcache set data mode=writeback dirty-target=20",
		Args:    args(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			req := control.SetArgs{Name: a[0], Settings: map[string]string{}}
			for _, s := range a[1:] {
				k, v, ok := strings.Cut(s, "=")
				if !ok {
					return report.Misuse("%q is not SETTING=VALUE (settings: %s)", s,
						strings.Join(daemon.SettingNames(), ", "))
				}
				req.Settings[k] = v
			}
			if err := daemon.CheckSettingNames(req.Settings); err != nil {
				return err
			}
			name, err := cacheOf(file, a[0])
			if err != nil {
				return err
			}
			var d control.Device
			if err := call(cmd.Context(), file, name, control.CmdSet, req, &d, nil); err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), d)
			}
			rows := [][]string{}
			for _, n := range daemon.SettingNames() {
				rows = append(rows, []string{n, d.Settings[n]})
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
}

func flushCommand(g *globals) *cobra.Command {
	var cache string
	cmd := &cobra.Command{
		Use:   "flush [NAME]",
		Short: "Write dirty data back and keep it cached",
		Long: `Flush writes the dirty data of a backing device back, or of all of a cache, with progress. The
devices go on working; data that is written meanwhile is written back too. It ends with an error if a device
takes nothing of what is left, ten times in a row.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			var req control.NameArgs
			if len(a) > 0 {
				req.Name = a[0]
				cache, err = cacheOf(file, a[0])
			} else {
				cache, err = one(file, cache)
			}
			if err != nil {
				return err
			}
			m := newMeter("writing back", g.json)
			var list []control.Device
			err = call(cmd.Context(), file, cache, control.CmdFlush, req, &list, m.show)
			m.end()
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			for i := range list {
				if err := printDevice(cmd.OutOrStdout(), g, &control.Device{
					BackingStatus: list[i].BackingStatus,
				}, "flushed"); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&cache, "cache", "", "the cache, if no NAME is given [the only one]")
	return cmd
}

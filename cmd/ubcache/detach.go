package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ubcache/internal/control"
	"ubcache/internal/report"
)

func detachCommand(g *globals) *cobra.Command {
	var a control.DetachArgs
	var cancel bool
	cmd := &cobra.Command{
		Use:   "detach NAME",
		Short: "Write a device's data back and take the cache away from it",
		Long: `Detach writes all dirty data of a backing device back, with progress, and then removes it from
the cache and from the configuration. In the meantime the cached device goes on working, without
the cache.

If the device is there and takes nothing of what is left, ten times in a row, it ends with the error.
--force then gives that data up.

After that, interrupted (Ctrl-C), or with --no-wait, the daemon goes on writing, also after a restart; detach
again to see it through, or --cancel to put the device back in service. In the end the cached
device must not be in use.

It also removes what a crash in the middle of an attach or detach has left: a device that only the
configuration has, or only the cache. Where the cache has dirty data of it, --force loses that.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			a.Name = names[0]
			name, err := cacheOf(file, a.Name)
			if err != nil {
				if name = cacheServing(cmd.Context(), file, a.Name); name == "" {
					return err
				}
			}
			var d control.Device
			if cancel {
				err = call(cmd.Context(), file, name, control.CmdCancel,
					control.NameArgs{Name: a.Name}, &d, nil)
				if err != nil {
					return err
				}
				return printDevice(cmd.OutOrStdout(), g, &d, "back in service")
			}
			m := newMeter("writing back", g.json)
			err = call(cmd.Context(), file, name, control.CmdDetach, a, &d, m.show)
			m.end()
			if errors.Is(err, context.Canceled) {
				return report.Fail("detach "+a.Name, "interrupted; the daemon goes on writing back",
					"detach again to finish, or detach --cancel")
			}
			if err != nil {
				return err
			}
			verb := "detached"
			if a.NoWait && d.State != "detached" {
				verb = "being detached; detach again to finish, or detach --cancel"
			} else if d.DataOff != 0 {
				verb += fmt.Sprintf("; its data begins at byte %d", d.DataOff)
			}
			return printDevice(cmd.OutOrStdout(), g, &d, verb)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&cancel, "cancel", false, "give up a detach and put the device back in service")
	fs.BoolVar(&a.NoWait, "no-wait", false, "begin and return")
	fs.BoolVar(&a.Force, "force", false, "give up dirty data that cannot be written back: it is lost")
	cmd.MarkFlagsMutuallyExclusive("cancel", "no-wait")
	cmd.MarkFlagsMutuallyExclusive("cancel", "force")
	return cmd
}

package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"ubcache/internal/control"
)

func reopenCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "reopen NAME [DEVICE]",
		Short: "Bring a backing device back that was gone",
		Long: `Reopen looks for a backing device that is gone or was missing at the start, and takes it back: what
waits for it goes on, and dirty data is written back. The daemon does that by itself, once a second, for
a device that it finds by its header, serial number or old name; so this is for a DEVICE that has none of
them, whose new name is also written into the configuration, and for those who want to know why a device
is not taken.

The device must be the one that was attached: of its size and serial number, with its header if it has
one, and with the same data as the clean blocks that the cache has of it, of which some are compared.
Anything else is refused, and nothing is changed.`,
		Example: "  ubcache reopen data\n  ubcache reopen data /dev/sdc",
		Args:    args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			req := control.ReopenArgs{Name: a[0]}
			if len(a) > 1 {
				if req.Device, err = filepath.Abs(a[1]); err != nil {
					return err
				}
			}
			name, err := cacheOf(file, a[0])
			if err != nil {
				return err
			}
			var d control.Device
			if err := call(cmd.Context(), file, name, control.CmdReopen, req, &d, nil); err != nil {
				return err
			}
			return printDevice(cmd.OutOrStdout(), g, &d, "back on "+d.BackingDevice)
		},
	}
}

package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"ubcache/internal/control"
	"ubcache/internal/daemon"
)

type attachFlags struct {
	cache    string
	args     control.AttachArgs
	settings map[string]*string
}

func attachCommand(g *globals) *cobra.Command {
	f := attachFlags{settings: map[string]*string{}}
	cmd := &cobra.Command{
		Use:   "attach DEVICE",
		Short: "Put a running cache in front of a device",
		Long: `Attach makes a block device or an image file a backing device of a running cache and serves it.

The device keeps its data, which is read through the cache as it is, and what identifies it is
recorded: size, serial number, filesystem or partition table. From then on use the cached device
only: as long as the SSD has newer data, the backing device alone is out of date.

With --header the first MiB of the device is reserved for a header, so that it cannot be mounted
by accident; the cached device is that much smaller, and what the device held is lost.

With --integrity the block device has integrity metadata, 32 bytes for each logical block: the kernel,
or a program through io_uring, protects each block with a CRC64 that the cache verifies before
a write has any effect, and each block read is verified by the kernel. It costs speed.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			d, err := f.run(cmd, g, a[0])
			if err != nil {
				return err
			}
			return printDevice(cmd.OutOrStdout(), g, d, "attached")
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.cache, "cache", "", "the cache [the only one]")
	fs.StringVar(&f.args.Name, "name", "", "name of the cached device [last part of DEVICE]")
	fs.BoolVar(&f.args.Header, "header", false, "reserve a header at the start of the device")
	fs.BoolVar(&f.args.Force, "force", false, "take a device that a cache has already, or lose "+
		"what it holds to --header")
	fs.BoolVar(&f.args.Integrity, "integrity", false, "protect data on its way with checksums "+
		"(Linux 7.0)")
	fs.IntVar(&f.args.UblkID, "ublk-id", -1, "number N of /dev/ublkbN [the lowest free]")
	for _, s := range []struct{ name, help string }{
		{"mode", "writeback, writethrough, writearound, writeonly or none [writethrough]"},
		{"sequential-cutoff", "streams longer than this pass the cache by; 0 for none [4M]"},
		{"dirty-target", "share of the cache in percent that may stay dirty [10]"},
		{"dirty-max", "share at which writes go past the cache [70]"},
		{"writeback-delay", "age that dirty data may reach on an idle device [30s]"},
		{"pin-quota", "share of the cache in percent that may be pinned, at most 50 [25]"},
		{"ssd-loss", "if the SSD is lost with dirty data: error, read-only or stop [error]"},
		{"ssd-loss-hold", "how long I/O waits for a lost SSD before that [10s]"},
		{"ordered", "on: writeback keeps DEVICE a consistent older image at all times [off]"},
		{"ordered-age", "how old the data may be that an ordered DEVICE lacks [30s]"},
		{"ordered-max", "how much data an ordered DEVICE may lack [256M]"},
		{"backing-loss", "what becomes of I/O that needs the device when it is gone: fail, hold or " +
			"hold=DURATION [hold=30s]"},
	} {
		f.settings[s.name] = fs.String(s.name, "", s.help)
	}
	return cmd
}

func (f *attachFlags) run(cmd *cobra.Command, g *globals, device string) (*control.Device, error) {
	file, err := g.load()
	if err != nil {
		return nil, err
	}
	name, err := one(file, f.cache)
	if err != nil {
		return nil, err
	}
	if f.args.Device, err = filepath.Abs(device); err != nil {
		return nil, err
	}
	if f.args.Name == "" {
		f.args.Name = daemon.DefaultName(device)
	}
	f.args.Settings = map[string]string{}
	for k, v := range f.settings {
		if cmd.Flags().Changed(k) {
			f.args.Settings[k] = *v
		}
	}
	if err := daemon.CheckSettings(f.args.Settings); err != nil {
		return nil, err
	}
	var d control.Device
	return &d, call(cmd.Context(), file, name, control.CmdAttach, f.args, &d, nil)
}

// printDevice reports what became of a device.
func printDevice(w io.Writer, g *globals, d *control.Device, verb string) error {
	if g.json {
		return printJSON(w, d)
	}
	_, err := fmt.Fprintf(w, "%s: %s\n", d.Name, verb)
	if err == nil && d.Path != "" {
		_, err = fmt.Fprintf(w, "%s: %s\n", d.Name, d.Path)
	}
	return err
}

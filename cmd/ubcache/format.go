package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/report"
)

type formatFlags struct {
	name, label string
	bucket      config.Size
	noChecksums bool
	noDiscard   bool
	discard     bool
	force       bool
}

// formatted is what format reports.
type formatted struct {
	Name      string `json:"name"`
	UUID      string `json:"uuid"`
	Device    string `json:"device"`
	SizeBytes int64  `json:"size_bytes"` // for data
	Buckets   int    `json:"buckets"`
	Checksums bool   `json:"checksums"`
	Config    string `json:"config"`
}

func formatCommand(g *globals) *cobra.Command {
	f := formatFlags{bucket: 1 << 20}
	cmd := &cobra.Command{
		Use:   "format DEVICE",
		Short: "Make an SSD a cache; what was on it is lost",
		Long: `Format makes a block device or an image file a cache and adds it to the configuration.

It refuses a device that is in use or that holds anything it recognises; --force formats the
latter. What a cache held that is formatted again is lost, data not written back yet included.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			r, err := f.run(cmd.Context(), g, a[0])
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), r)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "cache %s: %s for data on %s, uuid %s\n", r.Name,
				human(r.SizeBytes), r.Device, r.UUID)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "main", "name of the cache in the configuration")
	fs.StringVar(&f.label, "label", "", "label in the superblock [the name]")
	fs.Var(&f.bucket, "bucket-size", "unit of reuse, best the SSD's erase block: 1M to 64M")
	fs.BoolVar(&f.noChecksums, "no-checksums", false,
		"keep no data checksums: requests pass without a copy (Linux 6.16), and what the SSD "+
			"returns is trusted")
	fs.BoolVar(&f.noDiscard, "no-discard", false, "do not discard the device first")
	fs.BoolVar(&f.discard, "online-discard", false, "tell the SSD of each bucket that becomes free")
	fs.BoolVar(&f.force, "force", false, "format a device that holds something")
	return cmd
}

// busyWait is for programs that look at a device for a moment, such as udev.
const busyWait = 2 * time.Second

func (f *formatFlags) run(ctx context.Context, g *globals, device string) (*formatted, error) {
	what := "format " + device
	file, err := g.load()
	if err != nil {
		return nil, err
	}
	if err := config.CheckName(f.name); err != nil {
		return nil, report.Misuse("--name: %v", err)
	}
	i, err := blockdev.Inspect(device)
	if err != nil {
		return nil, err
	}
	if by := i.Users(); by != "" {
		return nil, report.Refuse(what, by, "the device must not be in use")
	}
	if i.Content.Type != "" && !f.force {
		return nil, report.Refuse(what, "it holds "+i.Content.String(), "--force overwrites it")
	}
	if old := file.Caches[f.name]; old != nil && !f.force {
		return nil, report.Refuse(what, fmt.Sprintf("%s already has a cache %q on %s", g.config,
			f.name, old.Device), "choose another --name, or --force replaces it")
	}
	if err := cache.CheckSize(i.SizeBytes, int64(f.bucket)); err != nil {
		return nil, report.Refuse(what, err.Error(), "")
	}
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	dev, err := i.Open(ctx)
	if err != nil {
		return nil, report.Wrap(what, err, "")
	}
	defer dev.Close()
	sb, err := f.format(dev)
	if err != nil {
		return nil, report.Wrap(what, err, "")
	}
	err = config.Edit(g.config, func(file *config.File) error {
		if file.Caches == nil {
			file.Caches = map[string]*config.Cache{}
		}
		file.Caches[f.name] = &config.Cache{
			UUID: sb.UUID.String(), Device: i.StablePath, Discard: f.discard,
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &formatted{
		Name: f.name, UUID: sb.UUID.String(), Device: i.Path, Config: g.config,
		SizeBytes: int64(sb.Geometry.Buckets) * sb.Geometry.BucketBytes,
		Buckets:   int(sb.Geometry.Buckets), Checksums: sb.Checksums,
	}, nil
}

func (f *formatFlags) format(dev *blockdev.Device) (*cache.Superblock, error) {
	label := f.label
	if label == "" {
		label = f.name
	}
	if !f.noDiscard {
		dev.DiscardAll()
	}
	if err := dev.WipeTail(); err != nil {
		return nil, err
	}
	sb, err := cache.Format(dev, cache.FormatOptions{
		Label: label, BucketBytes: int64(f.bucket), NoChecksums: f.noChecksums,
	})
	if err != nil {
		return nil, err
	}
	return sb, dev.Reserve(sb.Geometry.DataOff)
}

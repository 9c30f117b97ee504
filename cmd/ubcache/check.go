package main

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/daemon"
	"ubcache/internal/report"
)

// openCache opens a stopped cache for check and dump: a cache of the configuration by its name, or
// a device. pending is what a killed daemon has left, if it did.
func openCache(ctx context.Context, file *config.File, what, arg string) (
	dev *blockdev.Device, pending []byte, err error,
) {
	device := arg
	if c := file.Caches[arg]; c != nil {
		device = c.Device
	}
	i, err := blockdev.Inspect(device)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	dev, err = i.Open(ctx)
	if err != nil {
		return nil, nil, report.Wrap(what+" "+arg, err, "stop the cache first")
	}
	sb, err := cache.ReadSuper(dev)
	if err == nil && !sb.Clean {
		pending, err = daemon.ReadPending(control.RuntimeDir(file.RuntimeDir), sb.UUID)
	}
	if err != nil {
		_ = dev.Close()
		return nil, nil, daemon.CacheError(what+" "+arg, err)
	}
	return dev, pending, nil
}

// checked is what check reports.
type checked struct {
	UUID           string   `json:"uuid"`
	Clean          bool     `json:"clean"` // stopped in order
	CachedBlocks   int64    `json:"cached_blocks"`
	DirtyBlocks    int64    `json:"dirty_blocks"`
	FreeBuckets    int      `json:"free_buckets"`
	PendingRecords int      `json:"pending_records"`
	ReadBlocks     int64    `json:"read_blocks"`
	Problems       []string `json:"problems"`
}

func checkCommand(g *globals) *cobra.Command {
	var data bool
	cmd := &cobra.Command{
		Use:   "check CACHE|DEVICE",
		Short: "Check the whole format of a stopped cache",
		Long: `Check reads all metadata that a cache keeps on its SSD, replays the journal in memory, and
reports what contradicts itself; with --data it also reads every cached block and verifies its
checksum. It changes nothing. The cache must not be running. The exit status is 1 if there are
problems.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			dev, pending, err := openCache(cmd.Context(), file, "check", a[0])
			if err != nil {
				return err
			}
			defer dev.Close()
			m := newMeter("checking", g.json)
			r, err := cache.Check(cmd.Context(), dev, cache.CheckOptions{
				Data: data, Pending: pending, Progress: func(share float64) {
					total := dev.Size()
					m.show(control.Progress{
						What: a[0], TotalBytes: total, LeftBytes: total - int64(share*float64(total)),
					})
				},
			})
			m.end()
			if err != nil {
				return daemon.CacheError("check "+a[0], err)
			}
			return printCheck(cmd.OutOrStdout(), g, a[0], r)
		},
	}
	cmd.Flags().BoolVar(&data, "data", false, "verify the checksum of every cached block too")
	return cmd
}

func printCheck(w io.Writer, g *globals, name string, r *cache.Report) error {
	out := checked{
		UUID: r.Super.UUID.String(), Clean: r.Super.Clean, CachedBlocks: r.CachedBlocks,
		DirtyBlocks: r.DirtyBlocks, FreeBuckets: r.FreeBuckets, PendingRecords: r.PendingRecords,
		ReadBlocks: r.ReadBlocks, Problems: r.Problems,
	}
	if g.json {
		if out.Problems == nil {
			out.Problems = []string{}
		}
		if err := printJSON(w, out); err != nil {
			return err
		}
	} else {
		for _, p := range r.Problems {
			fmt.Fprintln(w, p)
		}
		state := "stopped in order"
		if !out.Clean {
			state = fmt.Sprintf("not stopped in order, %d pending records", out.PendingRecords)
		}
		fmt.Fprintf(w, "%s: %d blocks cached, %d of them dirty, %d free buckets, %d blocks read; %s\n",
			name, out.CachedBlocks, out.DirtyBlocks, out.FreeBuckets, out.ReadBlocks, state)
	}
	if n := len(r.Problems); n > 0 {
		return report.Fail("check "+name, fmt.Sprintf("%d problems", n), "")
	}
	return nil
}

func dumpCommand(g *globals) *cobra.Command {
	var o cache.DumpOptions
	cmd := &cobra.Command{
		Use:   "dump CACHE|DEVICE",
		Short: "Print what is on the SSD of a stopped cache",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			dev, pending, err := openCache(cmd.Context(), file, "dump", a[0])
			if err != nil {
				return err
			}
			defer dev.Close()
			if g.json {
				sb, err := cache.ReadSuper(dev)
				if err != nil {
					return report.Wrap("dump "+a[0], err, "")
				}
				return printJSON(cmd.OutOrStdout(), superJSON(sb))
			}
			o.Pending = pending
			w := bufio.NewWriter(cmd.OutOrStdout())
			if err := cache.Dump(dev, w, o); err != nil {
				_ = w.Flush()
				return report.Wrap("dump "+a[0], err, "")
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&o.Journal, "journal", false, "the journal's records that a start would read")
	cmd.Flags().BoolVar(&o.Blocks, "blocks", false, "every cached block")
	return cmd
}

// dumped is the superblock for scripts.
type dumped struct {
	UUID        string          `json:"uuid"`
	Label       string          `json:"label"`
	Sequence    uint64          `json:"sequence"`
	Epoch       uint64          `json:"epoch"`
	Clean       bool            `json:"clean"`
	Checksums   bool            `json:"checksums"`
	DeviceBytes int64           `json:"device_bytes"`
	BucketBytes int64           `json:"bucket_bytes"`
	Buckets     uint32          `json:"buckets"`
	Backings    []dumpedBacking `json:"backings"`
}

type dumpedBacking struct {
	ID        cache.BackingID `json:"id"`
	Name      string          `json:"name"`
	UUID      string          `json:"uuid"`
	Mode      string          `json:"mode"`
	Detaching bool            `json:"detaching"`
	SizeBytes int64           `json:"size_bytes"`
	DataOff   int64           `json:"data_offset_bytes"`
	Serial    string          `json:"serial,omitempty"`
	FSType    string          `json:"fs_type,omitempty"`
	FSUUID    string          `json:"fs_uuid,omitempty"`
}

func superJSON(sb *cache.Superblock) *dumped {
	d := &dumped{
		UUID: sb.UUID.String(), Label: sb.Label, Sequence: sb.Seq, Epoch: sb.Epoch, Clean: sb.Clean,
		Checksums: sb.Checksums, DeviceBytes: sb.Geometry.DeviceBytes,
		BucketBytes: sb.Geometry.BucketBytes, Buckets: sb.Geometry.Buckets,
		Backings: []dumpedBacking{},
	}
	for _, r := range sb.Backings {
		d.Backings = append(d.Backings, dumpedBacking{
			ID: r.ID, Name: r.Name, UUID: r.UUID.String(), Mode: r.Mode.String(),
			Detaching: r.Detaching, SizeBytes: r.Size, DataOff: r.DataOff,
			Serial: r.Identity.Serial, FSType: r.Identity.FSType, FSUUID: r.Identity.FSUUID,
		})
	}
	return d
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

func dumpCommand(g *globals) *cobra.Command {
	var o cache.DumpOptions
	cmd := &cobra.Command{
		Use:   "dump CACHE|DEVICE",
		Short: "Print what is on the SSD of a stopped cache",
		Long: `Dump prints the superblock of a cache, the records of its backing devices and what a start would find;
with flags also the journal with the pending records, the state of the summaries, and every cached block.
Of a backing device with a header it prints both copies of that.

It changes nothing. The cache must not be running.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			if file.Caches[a[0]] == nil {
				i, err := blockdev.Inspect(a[0])
				if err != nil {
					return err
				}
				if i.Content.Type == blockdev.TypeHeader {
					return dumpHeader(cmd, g, a[0], i)
				}
			}
			s, err := openCache(cmd.Context(), file, "dump", a[0])
			if err != nil {
				return err
			}
			defer s.close()
			o.Pending = s.pending
			m := newMeter("loading", g.json)
			o.Progress = s.loading(m, a[0])
			d, err := cache.Dump(cmd.Context(), s.dev, o)
			m.end()
			if err != nil {
				return loadError("dump "+a[0], err)
			}
			defer d.Close()
			w := bufio.NewWriter(cmd.OutOrStdout())
			if g.json {
				err = printDumpJSON(cmd.Context(), w, d)
			} else {
				err = d.Print(cmd.Context(), w)
			}
			if e := w.Flush(); err == nil {
				err = e
			}
			if errors.Is(err, context.Canceled) {
				return report.Fail("dump "+a[0], "interrupted", "")
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.Journal, "journal", false, "the records that a start would read, and the pending ones")
	fs.BoolVar(&o.Summaries, "summaries", false, "the state of both copies of every summary page")
	fs.BoolVar(&o.Blocks, "blocks", false, "every cached block")
	return cmd
}

// printDumpJSON writes a dump as printJSON would if it had the blocks as its last field but the problems.
// They are too many to be encoded as a whole.
func printDumpJSON(ctx context.Context, w io.Writer, d *cache.Dumped) error {
	const indent = "  "
	part := func(before, prefix string, v any) error {
		text, err := json.MarshalIndent(v, prefix, indent)
		if err == nil {
			_, err = fmt.Fprintf(w, "%s%s", before, text)
		}
		return err
	}
	problems := d.Problems
	d.Problems = nil
	text, err := json.MarshalIndent(d, "", indent)
	d.Problems = problems
	if err != nil {
		return err
	}
	if _, err := w.Write(bytes.TrimSuffix(text, []byte("\n}"))); err != nil {
		return err
	}
	before, end := ",\n  \"blocks\": [\n    ", ""
	err = d.EachBucket(ctx, func(list []cache.DumpedBlock) error {
		for i := range list {
			if err := part(before, indent+indent, &list[i]); err != nil {
				return err
			}
			before, end = ",\n    ", "\n  ]"
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		if err := part(end+",\n  \"problems\": ", indent, problems); err != nil {
			return err
		}
		end = ""
	}
	_, err = fmt.Fprintf(w, "%s\n}\n", end)
	return err
}

// dumpedHeader is a copy of a backing header for scripts.
type dumpedHeader struct {
	Off         int64  `json:"offset_bytes"`
	Problem     string `json:"problem,omitempty"`
	Sequence    uint64 `json:"sequence,omitempty"`
	Cache       string `json:"cache,omitempty"` // zero: detached
	Backing     string `json:"backing,omitempty"`
	DataOff     int64  `json:"data_offset_bytes,omitempty"`
	SizeBytes   int64  `json:"size_bytes,omitempty"`
	DeviceBytes int64  `json:"device_bytes,omitempty"`
	Start       uint64 `json:"start_epoch,omitempty"`
}

func dumpHeader(cmd *cobra.Command, g *globals, name string, i *blockdev.Info) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), busyWait)
	defer cancel()
	dev, err := i.OpenRead(ctx)
	if err != nil {
		return report.Wrap("dump "+name, err, "stop the cache first")
	}
	defer dev.Close()
	var list []dumpedHeader
	for _, k := range header.ReadCopies(dev) {
		d := dumpedHeader{Off: k.Off}
		if h := k.Header; k.Err != nil {
			d.Problem = k.Err.Error()
		} else {
			d.Sequence, d.Cache, d.Backing = h.Seq, h.Cache.String(), h.Backing.String()
			d.DataOff, d.SizeBytes, d.DeviceBytes = h.DataOff, h.Size, h.DeviceSize
			d.Start = h.Start
		}
		list = append(list, d)
	}
	if g.json {
		return printJSON(cmd.OutOrStdout(), list)
	}
	printHeaders(cmd.OutOrStdout(), list)
	return nil
}

func printHeaders(w io.Writer, list []dumpedHeader) {
	for _, d := range list {
		if d.Problem != "" {
			fmt.Fprintf(w, "header at %d: %s\n", d.Off, d.Problem)
			continue
		}
		fmt.Fprintf(w, "header at %d: sequence=%d cache=%s backing=%s offset=%d size=%d device=%d start=%d\n", d.Off,
			d.Sequence, d.Cache, d.Backing, d.DataOff, d.SizeBytes, d.DeviceBytes, d.Start)
	}
}

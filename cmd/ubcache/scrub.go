package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

const scrubHelp = `Scrub reads all that is cached of a device while it is in use: it verifies the checksum of every block, and
compares clean blocks with the backing device. It makes way for requests, and --rate limits it.

A clean copy that fails its checksum is dropped, as a read would do. Dirty data that fails is lost; it
is listed, now and by ubcache bad, and reads of it fail until it is written again. A clean copy that
is right and yet differs from the backing device should never be: the backing device was changed without
the cache, or returns wrong data. It is listed, and dropped only with --fix.

Interrupted (Ctrl-C) it shows what it has found so far, and the next scrub goes on there; --restart
begins anew.

Exit status: 0 all is right, or was made right; 1 dirty data is lost, copies differ, the backing device
failed, the SSD is lost, or it was interrupted; 4 the cache is not running.`

func scrubCommand(g *globals) *cobra.Command {
	var a control.ScrubArgs
	var rate config.Size
	cmd := &cobra.Command{
		Use:   "scrub NAME…",
		Short: "Verify what is cached of a device in use",
		Long:  scrubHelp,
		Args:  args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			a.Rate = int64(rate)
			list := []control.Scrub{}
			var failed error
			for _, name := range names {
				out, err := scrubOne(cmd.Context(), g, file, name, a)
				if out == nil {
					return err
				}
				list = append(list, *out)
				if !g.json {
					printScrub(cmd.OutOrStdout(), out)
				}
				if failed == nil {
					failed = err
				}
				if cmd.Context().Err() != nil {
					break
				}
			}
			if g.json {
				if err := printJSON(cmd.OutOrStdout(), list); err != nil {
					return err
				}
			}
			return failed
		},
	}
	fs := cmd.Flags()
	fs.Var(&rate, "rate", "limit in bytes of cached data per second [none]")
	fs.BoolVar(&a.Fix, "fix", false, "drop clean copies that differ from the backing device")
	fs.BoolVar(&a.NoBacking, "no-backing", false, "verify checksums only, without reading the backing device")
	fs.BoolVar(&a.Restart, "restart", false, "begin anew where an earlier scrub was interrupted")
	return cmd
}

// scrubOne scrubs a device, and returns what was found with why that is not all well.
func scrubOne(ctx context.Context, g *globals, file *config.File, name string, a control.ScrubArgs) (
	*control.Scrub, error,
) {
	inCache, err := cacheOf(file, name)
	if err != nil {
		return nil, err
	}
	a.Name = name
	out := &control.Scrub{}
	m := newMeter("scrubbing", g.json)
	err = call(ctx, file, inCache, control.CmdScrub, a, out, m.show)
	m.end()
	if errors.Is(err, context.Canceled) {
		// What it has found is kept; it may take a moment to end.
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if e := call(again, file, inCache, control.CmdScrubbed, control.NameArgs{Name: name}, out, nil); e != nil {
			return nil, e
		}
		return out, report.Fail("scrub "+name, "interrupted", "scrub again to go on")
	}
	if err != nil {
		return nil, err
	}
	what := "scrub " + name
	left := out.Differs.Bytes() > 0 && out.Fixed == 0
	switch {
	case len(out.Bad) > 0:
		return out, report.Fail(what, human(out.Bad.Bytes())+" of dirty data are lost", "write them again: restore the "+
			"files that have them")
	case left:
		return out, report.Fail(what, human(out.Differs.Bytes())+" differ from the backing device",
			"find out who wrote to it; --fix drops the cached copies")
	case len(out.BackingErrors) > 0:
		return out, report.Fail(what, "the backing device failed to read "+human(out.BackingErrors.Bytes()), "")
	}
	return out, nil
}

func printScrub(w io.Writer, s *control.Scrub) {
	fmt.Fprintf(w, "%s: %s checked, %s compared with the backing device", s.Name,
		human(s.Checked*cache.BlockSize), human(s.Compared*cache.BlockSize))
	if !s.Complete {
		fmt.Fprintf(w, "; up to byte %d of %d", s.Next, s.Size)
	}
	fmt.Fprintln(w)
	if s.Healed > 0 {
		fmt.Fprintf(w, "  %s failed their checksum and were dropped; the backing device has them\n",
			human(s.Healed*cache.BlockSize))
	}
	if s.Fixed > 0 {
		fmt.Fprintf(w, "  %s differed and were dropped\n", human(s.Fixed*cache.BlockSize))
	}
	for _, l := range []struct {
		what string
		list cache.Ranges
	}{
		{"dirty data that is lost", s.Bad},
		{"differs from the backing device", s.Differs},
		{"the backing device failed to read", s.BackingErrors},
	} {
		if len(l.list) > 0 {
			fmt.Fprintf(w, "  %s, in bytes of the device:\n", l.what)
		}
		for _, r := range l.list {
			fmt.Fprintf(w, "    %d+%d\n", r.Off, r.Len)
		}
	}
	if s.Truncated {
		fmt.Fprintln(w, "  and more")
	}
}

func badCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "bad [NAME]…",
		Short: "List the sectors of dirty data that the SSD has lost",
		Long: `Bad lists where on the cached devices, or those that are named, data was written that the SSD does not
return any more and that the backing device does not have: offset+length in bytes, in whole sectors of
512. Reads of these sectors fail, all others are served. It ends when they are written again or discarded,
or by detach --force, which gives them up.

Only what a read, the writeback or a scrub has met is known: ubcache scrub finds all.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			list := []control.Bad{}
			ask := func(cache, name string) error {
				var part []control.Bad
				err := call(cmd.Context(), file, cache, control.CmdBad, control.NameArgs{Name: name}, &part, nil)
				list = append(list, part...)
				return err
			}
			if len(names) == 0 {
				all, err := pick(file, nil)
				if err != nil {
					return err
				}
				for _, c := range all {
					if err := ask(c, ""); err != nil {
						return err
					}
				}
			}
			for _, n := range names {
				c, err := cacheOf(file, n)
				if err != nil {
					return err
				}
				if err := ask(c, n); err != nil {
					return err
				}
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			printBad(cmd.OutOrStdout(), list)
			return nil
		},
	}
}

func printBad(w io.Writer, list []control.Bad) {
	for _, b := range list {
		if len(b.Ranges) == 0 {
			fmt.Fprintf(w, "%s: no bad sectors are known\n", b.Name)
			continue
		}
		fmt.Fprintf(w, "%s: %d bytes are lost\n", b.Name, b.Bytes)
		for _, r := range b.Ranges {
			fmt.Fprintf(w, "  %d+%d\n", r.Off, r.Len)
		}
		if b.Truncated {
			fmt.Fprintln(w, "  and more")
		}
	}
}

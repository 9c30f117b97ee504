package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// followEvery is how often a daemon is asked for new requests. Each of its threads remembers 256, so
// that more than that in this time are not all seen.
const followEvery = 200 * time.Millisecond

type traceFlags struct {
	id     string
	follow bool
	caches []string
	named  bool
	args   control.TraceArgs
}

func traceCommand(g *globals) *cobra.Command {
	f := traceFlags{}
	cmd := &cobra.Command{
		Use:   "trace [CACHE]…",
		Short: "Show the newest requests that carried a trace id",
		Long: `Trace shows requests that carried the attribute trace, a number by which their issuer recognises them:
when they were answered, what they were, where the data came from or went to, how long they waited
before their first I/O, were at the SSD and at the backing device, and took in all. A daemon remembers
the newest 256 of each of its threads.

With --follow it goes on until it is interrupted and prints each request once; with --json that is an
object per line. Of more than 256 requests of a thread within a fifth of a second, some are missed.

Traced requests that fail are in the daemon's log as well.`,
		Example: `  ubcache io read /dev/ubcache/data --length 4K --attrs trace=0xfeed
  ubcache trace --id 0xfeed
  ubcache trace main --follow`,
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			if f.caches, err = pick(file, names); err != nil {
				return err
			}
			f.named = len(names) > 0
			if cmd.Flags().Changed("id") {
				id, err := strconv.ParseUint(f.id, 0, 64)
				if err != nil {
					return report.Misuse("--id %q is not a number of 64 bits (as 42 or 0xfeed)", f.id)
				}
				f.args.ID = &id
			}
			if f.follow {
				return f.goOn(cmd, g, file)
			}
			list, err := f.ask(cmd.Context(), file)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "no traced requests")
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), traceHeading())
			return printTraces(cmd.OutOrStdout(), list)
		},
	}
	cmd.Flags().StringVar(&f.id, "id", "", "only requests with this id, decimal or 0x…")
	cmd.Flags().BoolVar(&f.follow, "follow", false, "go on with new requests until interrupted")
	return cmd
}

// ask returns the traces of all caches in the order in which they were answered. Caches that do not
// run are left out, unless they were named or none runs.
func (f *traceFlags) ask(ctx context.Context, file *config.File) ([]control.Trace, error) {
	all := []control.Trace{}
	var missing error
	ran := 0
	for _, name := range f.caches {
		var list []control.Trace
		err := call(ctx, file, name, control.CmdTrace, f.args, &list, nil)
		switch {
		case report.CodeOf(err) == report.NotRunning && !f.named:
			missing = err
		case err != nil:
			return nil, err
		default:
			ran++
			all = append(all, list...)
		}
	}
	if ran == 0 {
		return nil, missing
	}
	slices.SortStableFunc(all, func(a, b control.Trace) int { return a.Done.Compare(b.Done) })
	return all, nil
}

// goOn prints each request once until it is interrupted.
func (f *traceFlags) goOn(cmd *cobra.Command, g *globals, file *config.File) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // as in run
	w := cmd.OutOrStdout()
	if !g.json {
		fmt.Fprintln(w, traceHeading())
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var seen map[control.Trace]bool
	for {
		list, err := f.ask(ctx, file)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var fresh []control.Trace
		if fresh, seen = unseen(list, seen); g.json {
			err = printLines(w, fresh)
		} else {
			err = printTraces(w, fresh)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// unseen are those of a list that were not in the one before it. What a daemon has forgotten does not
// come back, so that the one before is all that has to be remembered.
func unseen(list []control.Trace, before map[control.Trace]bool) (fresh []control.Trace,
	now map[control.Trace]bool,
) {
	now = make(map[control.Trace]bool, len(list))
	for _, t := range list {
		t.Done = t.Done.UTC() // so that equal times are equal values
		if !before[t] {
			fresh = append(fresh, t)
		}
		now[t] = true
	}
	return fresh, now
}

// printLines writes an object per line.
func printLines(w io.Writer, list []control.Trace) error {
	enc := json.NewEncoder(w)
	for i := range list {
		if err := enc.Encode(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// traceColumns are as wide as what is usual, so that lines which come later stand below the others.
var traceColumns = []struct {
	name  string
	width int
}{
	{"TIME", 29},
	{"ID", 18},
	{"DEVICE", 10},
	{"OP", 9},
	{"OFFSET", 12},
	{"LENGTH", 8},
	{"ORIGIN", 8},
	{"QUEUED", 9},
	{"SSD", 9},
	{"BACKING", 9},
	{"TOTAL", 9},
	{"ERROR", 0},
}

func traceHeading() string {
	var cells []string
	for _, c := range traceColumns {
		cells = append(cells, c.name)
	}
	return traceLine(cells)
}

func traceLine(cells []string) string {
	var b strings.Builder
	for i, c := range cells {
		fmt.Fprintf(&b, "%-*s  ", traceColumns[i].width, c)
	}
	return strings.TrimRight(b.String(), " ")
}

func printTraces(w io.Writer, list []control.Trace) error {
	for i := range list {
		t := &list[i]
		op := t.Op
		if t.FUA {
			op += ",fua"
		}
		_, err := fmt.Fprintln(w, traceLine([]string{
			t.Done.Local().Format("2006-01-02T15:04:05.000Z07:00"), t.ID, t.Backing, op,
			config.Size(t.Off).String(), config.Size(t.Len).String(), t.Origin, brief(t.QueuedNs),
			brief(t.SSDNs), brief(t.BackingNs), brief(t.TotalNs), orDash(t.Err),
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// brief writes nanoseconds with three or four digits.
func brief(ns int64) string {
	d := time.Duration(ns)
	for unit := time.Second; unit >= time.Microsecond; unit /= 1000 {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/daemon"
	"ubcache/internal/report"
)

// stopped is a cache that is not running, opened for reading.
type stopped struct {
	dev     *blockdev.Device
	meta    int64         // where the data begins; as far as it is known
	pending []byte        // what a killed daemon has left
	conf    *config.Cache // nil: it is not in the configuration
	backing []*blockdev.Device
}

// openCache opens a stopped cache: one of the configuration by its name, or a device. A superblock that
// is lost is not its concern.
func openCache(ctx context.Context, file *config.File, what, arg string) (*stopped, error) {
	s := &stopped{conf: file.Caches[arg]}
	device := arg
	if s.conf != nil {
		device = s.conf.Device
	}
	i, err := blockdev.Inspect(device)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	s.dev, err = i.OpenRead(ctx)
	if err != nil {
		return nil, report.Wrap(what+" "+arg, err, "stop the cache first")
	}
	if err := s.readPending(file); err != nil {
		s.close()
		return nil, daemon.CacheError(what+" "+arg, err)
	}
	return s, nil
}

// readPending finds what a killed daemon has left, by the UUID in the superblock or else in the
// configuration.
func (s *stopped) readPending(file *config.File) error {
	sb, err := cache.ReadSuper(s.dev)
	if s.meta = s.dev.Size(); err == nil {
		s.meta = sb.Geometry.DataOff
	}
	var id cache.UUID
	switch {
	case errors.Is(err, cache.ErrNewer), errors.Is(err, cache.ErrTooSmall):
		return err
	case err != nil && s.conf != nil:
		if id, err = cache.ParseUUID(s.conf.UUID); err != nil {
			return nil
		}
	case err != nil || sb.Clean:
		return nil
	default:
		id = sb.UUID
	}
	s.findConf(file, id)
	s.pending, err = daemon.ReadPending(control.RuntimeDir(file.RuntimeDir), id)
	return err
}

// findConf finds the cache in the configuration by its UUID, if it was not named.
func (s *stopped) findConf(file *config.File, id cache.UUID) {
	for _, name := range file.CacheNames() {
		if c := file.Caches[name]; s.conf == nil && c.UUID == id.String() {
			s.conf = c
		}
	}
}

func (s *stopped) close() {
	for _, d := range s.backing {
		_ = d.Close()
	}
	_ = s.dev.Close()
}

// loading shows how far the metadata is loaded, once that takes a while.
func (s *stopped) loading(m *meter, name string) func(share float64) {
	return func(share float64) {
		if time.Since(m.start) > time.Second {
			m.share(name, s.meta, share)
		}
	}
}

// loadError is why the metadata cannot be read.
func loadError(what string, err error) error {
	if errors.Is(err, context.Canceled) {
		return report.Fail(what, "interrupted", "")
	}
	return daemon.CacheError(what, err)
}

// openBacking opens a backing device of the configuration for reading.
func (s *stopped) openBacking(ctx context.Context, r *cache.BackingRecord) (*blockdev.Device, error) {
	if s.conf == nil {
		return nil, report.Fail("", "the configuration does not say where its backing devices are", "")
	}
	for _, b := range s.conf.Backings {
		if b.UUID != r.UUID.String() {
			continue
		}
		i, err := blockdev.Inspect(b.Device)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, busyWait)
		defer cancel()
		d, err := i.OpenRead(ctx)
		if err != nil {
			return nil, err
		}
		s.backing = append(s.backing, d)
		return d, daemon.CheckIdentity(d, r)
	}
	return nil, report.Fail("", "the configuration does not say where backing device "+r.Name+" is", "")
}

// checked is what check reports.
type checked struct {
	UUID           string          `json:"uuid"`
	Clean          bool            `json:"clean"` // stopped in order
	CachedBlocks   int64           `json:"cached_blocks"`
	DirtyBlocks    int64           `json:"dirty_blocks"`
	FreeBuckets    int             `json:"free_buckets"`
	PendingRecords int             `json:"pending_records"`
	ReadBlocks     int64           `json:"read_blocks"`
	ComparedBlocks int64           `json:"compared_blocks"`
	Interrupted    bool            `json:"interrupted,omitempty"`
	Startable      bool            `json:"startable"`
	Refusal        string          `json:"refusal,omitempty"` // why a start refuses it
	Worst          string          `json:"worst,omitempty"`   // severity: harmless, clean-lost, dirty-lost
	Problems       []cache.Problem `json:"problems"`
	MoreProblems   int             `json:"more_problems,omitempty"`
}

const checkHelp = `Check reads all metadata that a cache keeps on its SSD, both copies of everything, replays the journal
and what a killed daemon left in memory, and reports what is damaged or contradicts itself: what it is,
what it means, and what to do. It goes on past damage, so that all of it is found, and says whether
the cache would start.

With --data it also reads every cached block and verifies its checksum. With --backing it compares
every clean block with the backing device of the configuration, which must not be in use either.

It changes nothing, and can be interrupted at any time. The cache must not be running; ubcache scrub
is for one that is.

Exit status: 0 no problem; 1 problems were found, or the check could not be made or was interrupted; 3 the
cache is running. With --json each problem has a severity: harmless (the next start repairs it), clean-lost
(copies of what the backing device has), dirty-lost (data is lost or may be).`

func checkCommand(g *globals) *cobra.Command {
	var o cache.CheckOptions
	var backing bool
	cmd := &cobra.Command{
		Use:   "check CACHE|DEVICE",
		Short: "Check the whole format of a stopped cache",
		Long:  checkHelp,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			s, err := openCache(cmd.Context(), file, "check", a[0])
			if err != nil {
				return err
			}
			defer s.close()
			o.Pending, o.Scan = s.pending, s.conf != nil
			var missing error
			if backing {
				o.Backing = func(r *cache.BackingRecord) io.ReaderAt {
					d, err := s.openBacking(cmd.Context(), r)
					if err != nil {
						missing = report.Wrap("compare with "+r.Name, err, "")
						return nil
					}
					return d
				}
			}
			m := newMeter("checking", g.json)
			o.Progress = s.loading(m, a[0])
			if o.Data || backing {
				o.Progress = func(share float64) { m.share(a[0], s.dev.Size(), share) }
			}
			r, err := cache.Check(cmd.Context(), s.dev, o)
			m.end()
			if r == nil {
				return loadError("check "+a[0], err)
			}
			perr := printCheck(cmd.OutOrStdout(), g, a[0], r, err != nil)
			if err != nil {
				return report.Fail("check "+a[0], "interrupted", "")
			}
			if missing != nil {
				return missing
			}
			return perr
		},
	}
	cmd.Flags().BoolVar(&o.Data, "data", false, "verify the checksum of every cached block too")
	cmd.Flags().BoolVar(&backing, "backing", false, "compare clean blocks with the backing devices too")
	return cmd
}

func printCheck(w io.Writer, g *globals, name string, r *cache.Report, interrupted bool) error {
	out := checked{
		UUID: r.Super.UUID.String(), Clean: r.Super.Clean, CachedBlocks: r.CachedBlocks,
		DirtyBlocks: r.DirtyBlocks, FreeBuckets: r.FreeBuckets, PendingRecords: r.PendingRecords,
		ReadBlocks: r.ReadBlocks, ComparedBlocks: r.ComparedBlocks, Problems: r.Problems,
		MoreProblems: r.MoreProblems, Startable: r.Startable, Refusal: r.Refusal,
		Worst: string(r.Worst()), Interrupted: interrupted,
	}
	if g.json {
		if out.Problems == nil {
			out.Problems = []cache.Problem{}
		}
		if err := printJSON(w, out); err != nil {
			return err
		}
	} else {
		printProblems(w, r)
		state := "stopped in order"
		if !out.Clean {
			state = fmt.Sprintf("not stopped in order, %d pending records", out.PendingRecords)
		}
		compared := ""
		if out.ComparedBlocks > 0 {
			compared = fmt.Sprintf(", %d compared", out.ComparedBlocks)
		}
		fmt.Fprintf(w, "%s: %d blocks cached, %d of them dirty, %d free buckets, %d blocks read%s; %s\n", name,
			out.CachedBlocks, out.DirtyBlocks, out.FreeBuckets, out.ReadBlocks, compared, state)
		if !r.Startable {
			fmt.Fprintf(w, "%s: a start is refused: %s\n", name, r.Refusal)
		}
	}
	if n := len(r.Problems) + r.MoreProblems; n > 0 {
		hint := ""
		if !r.Startable {
			hint = "ubcache salvage saves what is left of the dirty data"
		}
		return report.Fail("check "+name, plural(n, "problem"), hint)
	}
	return nil
}

// printProblems prints the problems, and with the first of each kind what it means and what to do.
func printProblems(w io.Writer, r *cache.Report) {
	told := map[cache.ProblemKind]bool{}
	for _, p := range r.Problems {
		fmt.Fprintln(w, p.Text)
		if !told[p.Kind] {
			fmt.Fprintf(w, "  %s\n  %s\n", p.Meaning, p.Todo)
			told[p.Kind] = true
		}
	}
	if r.MoreProblems > 0 {
		fmt.Fprintf(w, "and %d more\n", r.MoreProblems)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

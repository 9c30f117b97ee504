package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/daemon"
	"ubcache/internal/report"
)

type startFlags struct {
	foreground bool
	wait       time.Duration
	anyDir     bool
	noUblk     bool
	readyFD    int
	drop, keep []string
	without    []string
	backings   map[string][]string // of each cache
}

func startCommand(g *globals) *cobra.Command {
	f := startFlags{}
	cmd := &cobra.Command{
		Use:   "start [CACHE]…",
		Short: "Start the daemon of each cache in the configuration",
		Long: `Start opens each cache, or those that are named, and serves its backing devices. It returns when
the block devices are there and prints their names.

After a crash or kill -9 it waits until the last I/O of the dead daemon is over, replays the
journal, and takes the block devices over, so that mounted filesystems go on.

A backing device that was changed without the cache, mounted by itself for instance, or while the
cache was without its SSD, is noticed, and so is an SSD that is an older copy of itself. If the
cache has no newer data for it, what is cached of it is dropped. Otherwise start refuses: ubcache salvage
saves the newer data elsewhere, --drop NAME gives it up, --keep NAME keeps it, so that it is written over
the changes. After a crash or kill -9 it is noticed by some of the blocks that are clean in the cache, and by
the header of a device that has one. Where there is neither, what is cached is dropped, or, if there is newer
data, start warns and goes on: that will be written over whatever is there. Damaged metadata is
repaired where that loses nothing; where dirty data may be lost, start refuses, too.

If the SSD is not there, start waits for it for ten seconds, and then serves the backing devices of which it is
known that the SSD has no newer data: after a stop in order with nothing dirty, or after the cache has gone on
without its SSD. They have the speed of the disks, and what is changed is recorded, so that the SSD is used again
when it is back as far as it has not missed anything. --without-ssd NAME serves another one as it is on its disk,
and refuses what the SSD has of it from then on.

Each cache has a daemon of its own. In the background it logs to NAME.log in the runtime folder
(/run/ubcache, or /dev/shm/ubcache if /run is not on tmpfs). SIGTERM stops a daemon as ubcache
stop does; if a device is in use, its I/O waits instead for the next start, and nothing is lost.`,
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			names, err := pick(file, a)
			if err != nil {
				return err
			}
			if err := f.checkNames(file, names); err != nil {
				return err
			}
			if f.foreground {
				if len(names) != 1 {
					return report.Misuse("--foreground runs one cache: name it")
				}
				return f.run(g, names[0])
			}
			return f.spawnAll(cmd.OutOrStdout(), g, names)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.foreground, "foreground", false, "stay in the foreground, for service managers")
	fs.DurationVar(&f.wait, "wait", 30*time.Second, "how long to wait for devices of a dying daemon")
	fs.BoolVar(&f.anyDir, "any-runtime-dir", false,
		"allow a runtime folder that is not on tmpfs: kill -9 is still safe, but slow")
	fs.StringArrayVar(&f.drop, "drop", nil,
		"give up what is cached of this backing device, dirty data included: it is lost")
	fs.StringArrayVar(&f.keep, "keep", nil,
		"keep what is cached of this backing device although it was changed without the cache")
	fs.StringArrayVar(&f.without, "without-ssd", nil,
		"serve this backing device without the SSD if that is not there, and give up what it has")
	fs.BoolVar(&f.noUblk, "no-ublk", false, "run without block devices, for tests")
	fs.IntVar(&f.readyFD, "ready-fd", -1, "report to the command that waits for the start")
	_ = fs.MarkHidden("no-ublk")
	_ = fs.MarkHidden("ready-fd")
	return cmd
}

// checkNames makes sure that what is to be dropped or kept is a backing device of a cache to start.
func (f *startFlags) checkNames(file *config.File, caches []string) error {
	f.backings = map[string][]string{}
	var all []string
	for _, c := range caches {
		f.backings[c] = file.Caches[c].BackingNames()
		all = append(all, f.backings[c]...)
	}
	for _, n := range slices.Concat(f.drop, f.keep, f.without) {
		if !slices.Contains(all, n) {
			return report.Misuse("no backing device %q (there is %s)", n, strings.Join(all, ", "))
		}
		if slices.Contains(f.drop, n) && slices.Contains(f.keep, n) {
			return report.Misuse("--drop and --keep exclude each other for %s", n)
		}
	}
	return nil
}

// arguments are those that make this program run the daemon in the foreground.
func (f *startFlags) arguments(g *globals, name string) []string {
	o := f.options(g, name)
	list := []string{
		"start", name, "--foreground", "--config=" + g.config, "--wait=" + f.wait.String(),
	}
	if f.anyDir {
		list = append(list, "--any-runtime-dir")
	}
	if f.noUblk {
		list = append(list, "--no-ublk")
	}
	for _, n := range o.Drop {
		list = append(list, "--drop="+n)
	}
	for _, n := range o.Keep {
		list = append(list, "--keep="+n)
	}
	for _, n := range o.WithoutSSD {
		list = append(list, "--without-ssd="+n)
	}
	return list
}

func (f *startFlags) options(g *globals, name string) daemon.Options {
	mine := func(names []string) (list []string) {
		for _, n := range names {
			if slices.Contains(f.backings[name], n) {
				list = append(list, n)
			}
		}
		return list
	}
	return daemon.Options{
		Name: name, ConfigPath: g.config, Wait: f.wait, AnyRuntimeDir: f.anyDir, NoUblk: f.noUblk,
		Drop: mine(f.drop), Keep: mine(f.keep), WithoutSSD: mine(f.without), Anew: daemon.ExecAgain,
	}
}

// spawnAll starts the daemons in the background. One that fails does not keep the next from
// starting.
func (f *startFlags) spawnAll(w io.Writer, g *globals, names []string) error {
	all := []*control.Status{}
	var errs []error
	for _, name := range names {
		st, err := daemon.Spawn(f.options(g, name), f.arguments(g, name), func(s string) {
			fmt.Fprintf(os.Stderr, "ubcache: %s: %s\n", name, s)
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, st)
		if !g.json {
			printStarted(w, st)
		}
	}
	if g.json {
		if err := printJSON(w, all); err != nil {
			return err
		}
	}
	return firstOf(errs)
}

// firstOf prints all errors but the first, which is returned.
func firstOf(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	for _, err := range errs[1:] {
		fmt.Fprintln(os.Stderr, "ubcache:", err)
	}
	return errs[0]
}

func printStarted(w io.Writer, st *control.Status) {
	fmt.Fprintf(w, "cache %s: running as process %d\n", st.Name, st.PID)
	for _, d := range st.Devices {
		switch {
		case d.Path != "":
			fmt.Fprintf(w, "%s: %s\n", d.Name, d.Path)
		case d.Problem != "":
			fmt.Fprintf(w, "%s: %s: %s\n", d.Name, d.Service, d.Problem)
		}
	}
}

// run is the daemon.
func (f *startFlags) run(g *globals, name string) error {
	o := f.options(g, name)
	if !f.noUblk {
		if err := daemon.OwnNamespace(daemon.Needed(o)); err != nil {
			slog.Warn("the daemon shares its mount namespace", "error", err)
		}
	}
	rep := daemon.NewReporter(f.readyFD)
	o.Note = func(s string) {
		slog.Info(s, "cache", name)
		rep.Note(s)
	}
	err := daemon.Run(o, func(st control.Status) {
		if f.readyFD < 0 {
			printStarted(os.Stdout, &st)
		}
		rep.Ready(st)
	})
	if err == nil {
		return nil
	}
	if rep.Fail(err) {
		slog.Error(err.Error(), "cache", name)
		return errors.Join(errQuiet, err)
	}
	return err
}

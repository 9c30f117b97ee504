package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

func statusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "status [CACHE]…",
		Short: "Show caches and their devices",
		Long: `Status shows each cache of the configuration and its devices: how much is cached and dirty, the
mode, who uses them. The exit status is 4 if a cache that was named is not running.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			picked, err := pick(file, names)
			if err != nil {
				return err
			}
			list := []control.Status{}
			var missing error
			for _, n := range picked {
				st := control.Status{
					Name: n, SSD: file.Caches[n].Device, Config: g.config, Devices: []control.Device{},
				}
				err := call(cmd.Context(), file, n, control.CmdStatus, nil, &st, nil)
				switch {
				case report.CodeOf(err) == report.NotRunning && len(names) > 0:
					missing = err
				case err != nil && report.CodeOf(err) != report.NotRunning:
					return err
				}
				list = append(list, st)
			}
			if g.json {
				err = printJSON(cmd.OutOrStdout(), list)
			} else {
				err = printStatus(cmd.OutOrStdout(), file, list)
			}
			if err != nil {
				return err
			}
			return missing
		},
	}
}

func printStatus(w io.Writer, file *config.File, list []control.Status) error {
	for i, st := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if !st.Running {
			fmt.Fprintf(w, "cache %s on %s: not running\n", st.Name, st.SSD)
			for _, n := range file.Caches[st.Name].BackingNames() {
				fmt.Fprintf(w, "  %s on %s\n", n, file.Caches[st.Name].Backings[n].Device)
			}
			continue
		}
		c := st.Cache
		fmt.Fprintf(w, "cache %s on %s: running as process %d for %s\n", st.Name, st.SSD, st.PID,
			time.Since(st.Started).Round(time.Second))
		fmt.Fprintf(w, "  %s: %s cached (%s), %s dirty, checksums %s, %s of memory\n",
			human(c.SizeBytes), human(c.CachedBytes), percent(c.CachedBytes, c.SizeBytes),
			human(c.DirtyBytes), onOff(c.Checksums), human(c.MemoryBytes))
		printLoading(w, c.Loading)
		printHealth(w, &st)
		fmt.Fprintf(w, "  priorities and hints of programs: %s\n", seen(st.KernelAttributes))
		if len(st.Devices) == 0 {
			fmt.Fprintln(w, "  no backing devices (ubcache attach adds one)")
			continue
		}
		if err := table(w, deviceRows(st.Devices)); err != nil {
			return err
		}
		for _, d := range st.Devices {
			for _, p := range d.RuleProblems {
				fmt.Fprintf(w, "  %s: %s\n", d.Name, p)
			}
		}
	}
	return nil
}

// printLoading says how far the index is loaded after a start.
func printLoading(w io.Writer, l cache.Loading) {
	if l.Running {
		fmt.Fprintf(w, "  loading %d%%: I/O is served; what is not loaded yet is read from the backing devices\n",
			l.Percent)
	}
	if l.LostPages > 0 {
		fmt.Fprintf(w, "  %d pieces of the index were damaged on the SSD: the clean blocks in them are not cached "+
			"any more\n", l.LostPages)
	}
}

// printHealth says what is wrong with the SSD, and what can be done.
func printHealth(w io.Writer, st *control.Status) {
	c := &st.Cache
	since := c.SSDSince.Round(time.Second)
	switch c.SSDState {
	case cache.HealthSlow.String():
		fmt.Fprintf(w, "  SSD SLOW for %s: %s; reads go to the backing devices\n", since, c.SSDProblem)
	case cache.HealthLost.String():
		fmt.Fprintf(w, "  SSD LOST for %s: %s\n", since, c.SSDProblem)
		for _, d := range st.Devices {
			switch {
			case d.Missed && d.DirtyBytes > 0:
				fmt.Fprintf(w, "  %s: changed without the SSD, which has %s of it that is nowhere else: that is "+
					"lost unless salvaged\n", d.Name, human(d.DirtyBytes))
			case d.Missed:
				fmt.Fprintf(w, "  %s: changed without the SSD, which starts empty for it when it is back\n", d.Name)
			case d.DirtyBytes > 0:
				fmt.Fprintf(w, "  %s: %s of it is on the SSD only; bring it back\n", d.Name, human(d.DirtyBytes))
			}
		}
	}
}

// seen says whether the attributes are seen that the kernel knows of a request.
func seen(state string) string {
	if state == "on" {
		return "seen"
	}
	return "not seen (" + state + ")"
}

// deviceRows have a column for what is pinned only if something is.
func deviceRows(list []control.Device) [][]string {
	rows := [][]string{{
		"  NAME", "DEVICE", "BACKING", "SIZE", "MODE", "STATE", "CACHED", "DIRTY", "PINNED", "USED BY",
	}}
	pinned := false
	for i := range list {
		rows = append(rows, deviceRow(&list[i]))
		pinned = pinned || list[i].PinnedBytes > 0
	}
	for at, i := slices.Index(rows[0], "PINNED"), 0; !pinned && i < len(rows); i++ {
		rows[i] = slices.Delete(rows[i], at, at+1)
	}
	return rows
}

func deviceRow(d *control.Device) []string {
	state := d.State
	if d.Service != "served" {
		state += ", " + d.Service
	}
	if d.Presence != "present" && d.Service != "missing" {
		state += ", backing device gone"
	}
	if d.BadBytes > 0 {
		state += fmt.Sprintf(", %s lost by the SSD", human(d.BadBytes))
	}
	state += orderState(d)
	path, used := d.Path, d.UsedBy
	if path == "" {
		path = "-"
	}
	if used == "" {
		used = "-"
	}
	if d.Problem != "" {
		used = d.Problem
	}
	return []string{
		"  " + d.Name, path, d.BackingDevice, human(d.SizeBytes), d.Mode, state,
		human(d.CachedBytes), human(d.DirtyBytes), human(d.PinnedBytes), used,
	}
}

// orderState says of an ordered device what it would lose with the SSD now.
func orderState(d *control.Device) (s string) {
	switch d.Ordered {
	case "on":
		s = ", ordered"
	case "starting":
		s = ", becoming ordered"
	default:
		return ""
	}
	if d.UnsettledBytes > 0 {
		s += fmt.Sprintf(" (%s behind by %v)", human(d.UnsettledBytes),
			(time.Duration(d.UnsettledMs) * time.Millisecond).Round(100*time.Millisecond))
	}
	if d.OrderedLost > 0 {
		s += fmt.Sprintf(", %d blocks missing on the disk", d.OrderedLost)
	}
	return s
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func statsCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "stats [CACHE]…",
		Short: "Show counters and hit ratios since the start",
		Long: `Stats shows the counters of each backing device and of the cache since the daemon's start. If requests
came with attributes, it shows what became of those, who said them, and how the requests fared by hint,
priority and tenant: how many there were and how many failed, and of the others the bytes, the share
of blocks read that came from the SSD, and the times within which half and 99 of 100 were answered.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			picked, err := pick(file, names)
			if err != nil {
				return err
			}
			list := []control.Stats{}
			for _, n := range picked {
				var st control.Stats
				if err := call(cmd.Context(), file, n, control.CmdStats, nil, &st, nil); err != nil {
					return err
				}
				list = append(list, st)
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			for i := range list {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if err := printStats(cmd.OutOrStdout(), &list[i]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ubcache/internal/blkbpf"
	"ubcache/internal/control"
	"ubcache/ublk"
)

// use says what ubcache does with a feature of the kernel, and what is lost without it.
type use struct {
	bit      ublk.Features
	name     string
	gives    string
	without  string
	required bool
}

var uses = []use{
	{
		ublk.FeatureRecovery | ublk.FeatureRecoveryReissue, "user recovery",
		"devices and mounts survive the daemon", "ubcache does not run", true,
	},
	{
		ublk.FeatureUserCopy, "user copy", "part of a request is copied when needed",
		"ubcache does not run", true,
	},
	{
		ublk.FeatureAutoBuffers | ublk.FeatureZeroCopy, "zero copy",
		"caches without checksums move data without touching it", "each request is copied", false,
	},
	{
		ublk.FeatureQuiesce, "quiesce", "a restart hands devices over in order",
		"a restart ends the process, and what is under way is done again", false,
	},
	{
		ublk.FeatureSafeStop, "safe stop", "stop asks the kernel whether a device is open",
		"stop looks through /proc, which leaves a small gap", false,
	},
	{
		ublk.FeatureIntegrity, "integrity metadata",
		"attach --integrity protects data on its way, and carries attributes beside the checksums",
		"--integrity is refused", false,
	},
	{
		ublk.FeatureSharedMemory, "shared memory",
		"attributes and their results travel with requests through the block device",
		"they need the direct ring", false,
	},
}

// featureReport is one line of the report.
type featureReport struct {
	Name     string `json:"name"`
	Present  bool   `json:"present"`
	Required bool   `json:"required,omitempty"`
	Needs    string `json:"needs_linux"`
	Gives    string `json:"gives"`
	Without  string `json:"without"`
	Problem  string `json:"problem,omitempty"` // why it is not there, if that is known
}

// row is the feature's line of the table.
func (f *featureReport) row() []string {
	switch {
	case f.Present:
		return []string{"  " + f.Name, "yes", f.Gives}
	case f.Problem != "":
		return []string{"  " + f.Name, "no", f.Without + ": " + f.Problem}
	}
	return []string{"  " + f.Name, "no", f.Without + " (Linux " + f.Needs + " has it)"}
}

type featuresReport struct {
	Kernel     string          `json:"kernel"`
	Ublk       bool            `json:"ublk"`
	Problem    string          `json:"problem,omitempty"`
	Driver     string          `json:"driver_features,omitempty"`
	RuntimeDir string          `json:"runtime_dir"`
	Tmpfs      bool            `json:"runtime_dir_on_tmpfs"`
	Features   []featureReport `json:"features"`
}

func featuresCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "features",
		Short: "Show what this kernel gives, and what is lost without the rest",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			r := probeFeatures(control.RuntimeDir(file.RuntimeDir))
			if g.json {
				return printJSON(cmd.OutOrStdout(), r)
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "Linux %s, ublk: %s\n", r.Kernel, orElse(r.Problem, r.Driver))
			rows := [][]string{}
			for i := range r.Features {
				rows = append(rows, r.Features[i].row())
			}
			if !r.Tmpfs {
				fmt.Fprintf(w, "  %s is not on tmpfs: set runtime-dir in the configuration\n", r.RuntimeDir)
			}
			return table(w, rows)
		},
	}
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func probeFeatures(dir string) *featuresReport {
	r := &featuresReport{RuntimeDir: dir, Tmpfs: control.OnTmpfs(dir)}
	if _, err := os.Stat(dir); err != nil {
		r.Tmpfs = control.OnTmpfs("/run") || control.OnTmpfs("/dev/shm")
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	have, err := ublk.Probe()
	if err != nil {
		r.Problem = err.Error()
	} else {
		r.Ublk, r.Driver = true, have.String()
	}
	for _, u := range uses {
		r.Features = append(r.Features, featureReport{
			Name: u.name, Present: r.Ublk && have.Has(u.bit), Required: u.required,
			Needs: needs(u.bit), Gives: u.gives, Without: u.without,
		})
	}
	r.Features = append(r.Features, probeBPF())
	return r
}

// probeBPF tries to load and attach the program; the driver of ublk is not needed for that.
func probeBPF() featureReport {
	f := featureReport{
		Name: "BPF", Present: true, Needs: "6.12",
		Gives:   "I/O priorities with hints, write hints, cgroups of any program count (ubcache run)",
		Without: "hints of programs that are not made for it are lost",
	}
	if err := blkbpf.Probe(); err != nil {
		f.Present, f.Problem = false, err.Error()
	}
	return f
}

// needs is the release that has all features of a set. The table is in order of bits, and a later
// release's number is the larger one when compared by its parts.
func needs(set ublk.Features) string {
	best, bestMajor, bestMinor := "", 0, 0
	for _, f := range ublk.FeatureList() {
		var major, minor int
		_, _ = fmt.Sscanf(f.NeedsLinux, "%d.%d", &major, &minor)
		if set&f.Bit != 0 && (major > bestMajor || major == bestMajor && minor > bestMinor) {
			best, bestMajor, bestMinor = f.NeedsLinux, major, minor
		}
	}
	return best
}

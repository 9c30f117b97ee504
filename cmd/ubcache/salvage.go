package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

const salvageHelp = `Salvage finds the dirty data of a stopped cache: what was written to the SSD and not yet to the backing
device. It is for a cache that start refuses, because metadata is lost or the backing device was
changed without it, and for one whose backing device is gone. It takes what is left, also where both
superblocks are lost; check says what is damaged.

Without --write it only reports, with --list also where the data belongs. What it finds is

  proved      the newest version, and its checksum says that the data is right
  unverified  the newest version, of a cache without data checksums
  uncertain   right, but part of the journal is lost, in which a newer version may have been; or, without data
              checksums, written to the SSD shortly before it failed, so that it may not have it
  unreadable  the SSD does not return it right; it is lost

and it says how much may be lost without a trace.

With --to PATH --write what is proved or unverified is written: to a new file, which becomes a sparse image
of the cached device with the dirty data alone, or to what exists, best a copy of the backing device, or
that itself. A device or image that exists must show that it is not newer than the dirty data: by the
clean blocks of the cache, which it must have, too, or by the fingerprint of the last stop in order; else, or
if it is known to have changed while the cache was without its SSD, --overwrite is needed. --uncertain writes that, too. The cache itself is left as it is, so that it can be
tried again; afterwards ubcache start --drop NAME, or format.

Exit status: 0 all dirty data could be saved (or was, with --write); 1 some could not, or it failed or was interrupted;
3 refused, with nothing written.`

type salvageFlags struct {
	backing   string
	to        string
	write     bool
	list      bool
	uncertain bool
	overwrite bool
	offset    config.Size
	stateDir  string
	hasOffset bool
}

func salvageCommand(g *globals) *cobra.Command {
	f := salvageFlags{}
	cmd := &cobra.Command{
		Use:   "salvage CACHE|DEVICE",
		Short: "Save the dirty data of a damaged or orphaned cache",
		Long:  salvageHelp,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			f.hasOffset = cmd.Flags().Changed("offset")
			if f.write != (f.to != "") {
				return report.Misuse("--to PATH and --write go together")
			}
			file, err := g.load()
			if err != nil {
				return err
			}
			f.stateDir = missed.Dir(file.StateDir)
			s, err := openCache(cmd.Context(), file, "salvage", a[0])
			if err != nil {
				return err
			}
			defer s.close()
			m := newMeter("loading", g.json)
			v, err := cache.OpenSalvage(cmd.Context(), s.dev, s.pending, s.loading(m, a[0]))
			m.end()
			if err != nil {
				return loadError("salvage "+a[0], err)
			}
			defer v.Close()
			return f.run(cmd, g, a[0], v)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.backing, "backing", "", "of this backing device only: its name, number or UUID")
	fs.StringVar(&f.to, "to", "", "device or image to write to, or a new file")
	fs.BoolVar(&f.write, "write", false, "write to what --to names")
	fs.BoolVar(&f.list, "list", false, "list where on the cached device the data belongs")
	fs.BoolVar(&f.uncertain, "uncertain", false, "write what may be older than what is lost, too")
	fs.BoolVar(&f.overwrite, "overwrite", false, "write although --to may have newer data")
	fs.Var(&f.offset, "offset", "where the cached device begins on --to [0, or as its header says]")
	return cmd
}

// salvagedPart is the data of one certainty.
type salvagedPart struct {
	Certainty string       `json:"certainty"`
	Bytes     int64        `json:"bytes"`
	Written   int64        `json:"written_bytes"`
	Ranges    cache.Ranges `json:"ranges,omitempty"`
}

// salvaged is what salvage reports of a backing device.
type salvaged struct {
	Backing cache.BackingID `json:"backing"`
	Name    string          `json:"name"`
	UUID    string          `json:"uuid"`
	Size    int64           `json:"size_bytes,omitempty"` // of the cached device; 0: not known
	Parts   []salvagedPart  `json:"parts"`
	To      string          `json:"to,omitempty"`
	Saved   bool            `json:"saved"` // all of it, or with --write all was written
}

// salvageReport is all that salvage has to say.
type salvageReport struct {
	Damage  []cache.Problem `json:"damage"`
	Unknown int64           `json:"unknown_blocks"` // that may be lost without a trace; -1: no bound is known
	Devices []salvaged      `json:"devices"`
	// Interrupted: not all has been looked at.
	Interrupted bool `json:"interrupted,omitempty"`
}

func (f *salvageFlags) run(cmd *cobra.Command, g *globals, name string, v *cache.Salvage) error {
	what := "salvage " + name
	picked, err := f.pick(what, v)
	if err != nil {
		return err
	}
	var t *salvageTarget
	if f.write {
		if len(picked) != 1 {
			return report.Misuse("there is dirty data of %d backing devices: choose one with --backing",
				len(picked))
		}
		if t, err = f.openTarget(cmd.Context(), what, v, &picked[0]); err != nil {
			return err
		}
		defer t.close()
	}
	rep := salvageReport{Damage: v.Damage().Problems, Unknown: v.UnknownBlocks(), Devices: []salvaged{}}
	if rep.Damage == nil {
		rep.Damage = []cache.Problem{}
	}
	m := newMeter("salvaging", g.json)
	for i := range picked {
		d, werr := f.one(cmd.Context(), v, &picked[i], t, m)
		rep.Devices = append(rep.Devices, d)
		if err = werr; err != nil {
			rep.Interrupted = errors.Is(err, context.Canceled)
			break
		}
	}
	m.end()
	if g.json {
		if e := printJSON(cmd.OutOrStdout(), rep); e != nil {
			return e
		}
	} else {
		f.print(cmd.OutOrStdout(), &rep)
	}
	switch {
	case rep.Interrupted:
		return report.Fail(what, "interrupted", "")
	case err != nil:
		return report.Wrap(what, err, "")
	}
	return verdict(what, &rep)
}

// verdict is the exit status: whether all could be saved.
func verdict(what string, rep *salvageReport) error {
	lost := int64(0)
	for i := range rep.Devices {
		for _, p := range rep.Devices[i].Parts {
			if rep.Devices[i].To != "" {
				lost += p.Bytes - p.Written
			} else if p.Certainty == cache.Uncertain.String() || p.Certainty == cache.Unreadable.String() {
				lost += p.Bytes
			}
		}
	}
	switch {
	case lost > 0 && rep.Unknown != 0:
		return report.Fail(what, human(lost)+" of dirty data are uncertain or lost, and there may have been more", "")
	case lost > 0:
		return report.Fail(what, human(lost)+" of dirty data are uncertain or lost", "")
	case rep.Unknown != 0:
		return report.Fail(what, "there may have been more dirty data", "")
	}
	return nil
}

// pick finds the backing devices that are meant: those that have dirty data, or the one that was named.
func (f *salvageFlags) pick(what string, v *cache.Salvage) ([]cache.BackingRecord, error) {
	var list []cache.BackingRecord
	names := ""
	for _, r := range v.Backings() {
		if names != "" {
			names += ", "
		}
		names += r.Name
		named := f.backing == r.Name || f.backing == r.UUID.String() || f.backing == strconv.Itoa(int(r.ID))
		if named || f.backing == "" && v.DirtyBlocks(r.ID) > 0 {
			list = append(list, r)
		}
	}
	if f.backing != "" && len(list) == 0 {
		return nil, report.Fail(what, "no backing device "+f.backing+" in the cache", "there is "+names)
	}
	return list, nil
}

// one looks at the dirty data of a backing device, and writes it if there is a target.
func (f *salvageFlags) one(ctx context.Context, v *cache.Salvage, r *cache.BackingRecord,
	t *salvageTarget, m *meter,
) (salvaged, error) {
	d := salvaged{Backing: r.ID, Name: r.Name, UUID: r.UUID.String(), Size: r.Size}
	if v.Nameless() {
		d.UUID, d.Size = "", 0
	}
	for c := cache.Proved; c <= cache.Unreadable; c++ {
		d.Parts = append(d.Parts, salvagedPart{Certainty: c.String()})
	}
	total, done := v.DirtyBlocks(r.ID), int64(0)
	err := v.Walk(ctx, r.ID, func(b *cache.SalvageBlock) error {
		p := &d.Parts[b.Certainty]
		p.Ranges.AddBlock(b.Off, b.Sectors)
		if done++; done%256 == 0 {
			m.show(control.Progress{
				What: r.Name, LeftBytes: (total - done) * cache.BlockSize, TotalBytes: total * cache.BlockSize,
			})
		}
		if t == nil || b.Certainty == cache.Unreadable || b.Certainty == cache.Uncertain && !f.uncertain {
			return nil
		}
		n, err := t.put(b)
		p.Written += n
		return err
	})
	if t != nil {
		d.To = f.to
		if e := t.sync(); err == nil {
			err = e
		}
	}
	d.Saved = err == nil
	for i := range d.Parts {
		p := &d.Parts[i]
		if p.Bytes = p.Ranges.Bytes(); p.Bytes > 0 && (i >= int(cache.Uncertain) && p.Written < p.Bytes) {
			d.Saved = false
		}
	}
	return d, err
}

// fewRanges is how many are listed without --list, of what is not saved.
const fewRanges = 16

func (f *salvageFlags) print(w io.Writer, rep *salvageReport) {
	for _, p := range rep.Damage {
		fmt.Fprintln(w, p.Text)
	}
	switch {
	case rep.Unknown < 0:
		fmt.Fprintln(w, "changes are lost: there may have been dirty data of which nothing is known")
	case rep.Unknown > 0:
		fmt.Fprintf(w, "of up to %d blocks (%s) nothing is known; some of them may have been dirty\n", rep.Unknown,
			human(rep.Unknown*cache.BlockSize))
	}
	if len(rep.Devices) == 0 {
		fmt.Fprintln(w, "no dirty data is known")
	}
	for i := range rep.Devices {
		d := &rep.Devices[i]
		for _, p := range d.Parts {
			if p.Bytes == 0 {
				continue
			}
			fate := ""
			switch {
			case d.To != "" && p.Written == p.Bytes:
				fate = ", written to " + d.To
			case d.To != "":
				fate = fmt.Sprintf(", %s written to %s", human(p.Written), d.To)
			}
			fmt.Fprintf(w, "%s: %s %s%s\n", d.Name, human(p.Bytes), p.Certainty, fate)
			bad := p.Certainty == cache.Uncertain.String() || p.Certainty == cache.Unreadable.String()
			printRanges(w, p.Ranges, f.list, bad)
		}
	}
}

// printRanges lists ranges: all, or if they are few.
func printRanges(w io.Writer, list cache.Ranges, all, few bool) {
	for i, r := range list {
		if !all && (!few || i == fewRanges) {
			if few {
				fmt.Fprintf(w, "  and %d more ranges (--list)\n", len(list)-i)
			}
			return
		}
		fmt.Fprintf(w, "  %d+%d\n", r.Off, r.Len)
	}
}

// exists reports whether there is something at a path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

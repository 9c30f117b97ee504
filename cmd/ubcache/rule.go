package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ubcache/attrs/rules"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

const ruleHelp = `Rules give attributes to the requests of programs that say nothing themselves. A rule has conditions,
all of which must hold, and attributes. Where several rules of a device match, the first one that gives
an attribute wins; what a request brings with it beats all rules.

Rules take effect at once and are written to the configuration. They are numbered in their order.`

func ruleCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rule",
		Short: "Give attributes to requests by place, file, cgroup, user, size or kind",
		Long:  ruleHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(ruleAddCommand(g), ruleListCommand(g), ruleDelCommand(g))
	return cmd
}

type ruleFlags struct {
	args        control.RuleAddArgs
	read, write bool
}

func ruleAddCommand(g *globals) *cobra.Command {
	f := ruleFlags{}
	r := &f.args.Rule
	cmd := &cobra.Command{
		Use:   "add NAME --set ATTRIBUTES",
		Short: "Add a rule to a device",
		Long: `Add makes a rule for the cached device NAME.

A request matches --path or --range if it lies wholly in the file, the files of the folder, or the
ranges; one that reaches out of them does not. Files are found on ext2, ext3, ext4 and xfs, on the
device itself, its partitions, and linear (LVM) or encrypted mappings on those. When files change, the
rule follows within a second if the kernel tells of it, else within a minute.

--cgroup takes a cgroup with all below it; a buffered write is on account of the cgroup that wrote,
where the io controller is on. --uid is the user of the process that issues the request, which for
buffered writes is the kernel. These two, and the kinds sync and background, need BPF: ubcache rule
list says so where it is missing.

Attributes are those of ubcache io, such as hint=bypass,prio=idle.`,
		Example: `  ubcache rule add data --name backups --path /srv/backups --set hint=bypass
  ubcache rule add data --range 0-1G --set hint=pin
  ubcache rule add data --kind readahead --min-size 256K --read --set hint=once
  ubcache rule add data --cgroup /sys/fs/cgroup/batch.slice --set prio=idle --before backups`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			f.args.Name = a[0]
			return f.run(cmd, g)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&r.Name, "name", "", "name of the rule [none: it only has a number]")
	fs.StringVar(&r.Set, "set", "", "what it gives: ATTRIBUTE=VALUE, separated by commas")
	fs.StringVar(&r.Path, "path", "", "file or folder on the device")
	fs.StringSliceVar(&r.Ranges, "range", nil, "bytes of the device: 0-1G, 1G+64K, 1G- to the end; repeatable")
	fs.StringVar(&r.Cgroup, "cgroup", "", "cgroup: a folder below /sys/fs/cgroup, or an id")
	fs.StringVar(&r.UID, "uid", "", "user: a number or a name")
	fs.Var(&r.MinSize, "min-size", "size of the smallest requests")
	fs.Var(&r.MaxSize, "max-size", "size of the largest requests")
	fs.StringSliceVar(&r.Kinds, "kind", nil, "one of "+strings.Join(rules.KindNames(), ", ")+"; repeatable")
	fs.BoolVar(&f.read, "read", false, "reads only")
	fs.BoolVar(&f.write, "write", false, "writes and discards only")
	fs.StringVar(&f.args.Before, "before", "", "put it before the rule of that name or number [last]")
	return cmd
}

func (f *ruleFlags) run(cmd *cobra.Command, g *globals) error {
	r := &f.args.Rule
	switch {
	case f.read && f.write:
		return report.Misuse("--read and --write exclude each other; without them it is both")
	case f.read:
		r.Direction = "read"
	case f.write:
		r.Direction = "write"
	}
	if r.Set == "" {
		return report.Misuse("a rule has to give something: --set hint=bypass (see %s --help)",
			cmd.CommandPath())
	}
	for _, p := range []*string{&r.Path, &r.Cgroup} {
		if _, err := strconv.ParseUint(*p, 10, 64); *p == "" || err == nil && p == &r.Cgroup {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if err := r.Check(); err != nil {
		return report.Misuse("%v", err)
	}
	file, err := g.load()
	if err != nil {
		return err
	}
	name, err := cacheOf(file, f.args.Name)
	if err != nil {
		return err
	}
	var st control.Rule
	if err := call(cmd.Context(), file, name, control.CmdRuleAdd, f.args, &st, nil); err != nil {
		return err
	}
	return printRule(cmd.OutOrStdout(), g, &st, "added")
}

func ruleListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "list [NAME]",
		Short: "Show the rules of a device, or of all",
		Long: `List shows rules in their order: conditions, attributes, how many extents (runs of bytes of the device)
they have resolved to, how many requests have matched since the daemon's start, and what keeps a rule
from matching.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			caches, err := pick(file, nil)
			if err != nil {
				return err
			}
			var req control.NameArgs
			if len(a) > 0 {
				name, err := cacheOf(file, a[0])
				if err != nil {
					return err
				}
				req.Name, caches = a[0], []string{name}
			}
			all := []control.Rule{}
			for _, name := range caches {
				var list []control.Rule
				err := call(cmd.Context(), file, name, control.CmdRuleList, req, &list, nil)
				if err != nil && (len(a) > 0 || len(caches) == 1 ||
					report.CodeOf(err) != report.NotRunning) {
					return err
				}
				all = append(all, list...)
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return printRules(cmd.OutOrStdout(), all)
		},
	}
}

func ruleDelCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "del NAME RULE",
		Short: "Delete a rule of a device, by its name or number",
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			name, err := cacheOf(file, a[0])
			if err != nil {
				return err
			}
			var st control.Rule
			req := control.RuleArgs{Name: a[0], Rule: a[1]}
			if err := call(cmd.Context(), file, name, control.CmdRuleDel, req, &st, nil); err != nil {
				return err
			}
			return printRule(cmd.OutOrStdout(), g, &st, "deleted")
		},
	}
}

// printRule says what became of a rule.
func printRule(w io.Writer, g *globals, r *control.Rule, verb string) error {
	if g.json {
		return printJSON(w, r)
	}
	_, err := fmt.Fprintf(w, "%s: rule %s %s\n", r.Device, r.Label(r.Number), verb)
	if err == nil && verb == "added" && r.Path != "" {
		_, err = fmt.Fprintf(w, "%s: rule %s: %s\n", r.Device, r.Label(r.Number), extentsOf(r))
	}
	if err == nil && r.Problem != "" && verb == "added" {
		_, err = fmt.Fprintf(w, "%s: rule %s: %s\n", r.Device, r.Label(r.Number), r.Problem)
	}
	return err
}

func printRules(w io.Writer, list []control.Rule) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no rules (ubcache rule add makes one)")
		return err
	}
	rows := [][]string{{
		"DEVICE", "NO", "NAME", "CONDITIONS", "GIVES", "EXTENTS", "MATCHED", "PROBLEM",
	}}
	for i := range list {
		r := &list[i]
		rows = append(rows, []string{
			r.Device, strconv.Itoa(r.Number), orDash(r.Name), conditions(&r.Rule), r.Set, extentsOf(r),
			fmt.Sprintf("%d (%s)", r.Requests, human(int64(r.RequestBytes))), orDash(r.Problem),
		})
	}
	return table(w, rows)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// extentsOf says what a rule has resolved to.
func extentsOf(r *control.Rule) string {
	switch {
	case r.Path == "" && len(r.Ranges) == 0:
		return "-"
	case r.Resolving:
		return "looking"
	case r.Path == "":
		return fmt.Sprintf("%d (%s)", r.Extents, human(r.Bytes))
	}
	files := fmt.Sprintf("%d files", r.Files)
	if r.Files == 1 {
		files = "1 file"
	}
	return fmt.Sprintf("%d of %s (%s)", r.Extents, files, human(r.Bytes))
}

// conditions writes the conditions as the flags that they come from.
func conditions(r *config.Rule) string {
	var list []string
	add := func(flag, value string) {
		if value != "" {
			list = append(list, flag+" "+value)
		}
	}
	add("path", r.Path)
	add("range", strings.Join(r.Ranges, ","))
	add("cgroup", r.Cgroup)
	add("uid", r.UID)
	if r.MinSize > 0 {
		add("min-size", r.MinSize.String())
	}
	if r.MaxSize > 0 {
		add("max-size", r.MaxSize.String())
	}
	add("kind", strings.Join(r.Kinds, ","))
	if r.Direction != "" {
		list = append(list, r.Direction)
	}
	if len(list) == 0 {
		return "every request"
	}
	return strings.Join(list, ", ")
}

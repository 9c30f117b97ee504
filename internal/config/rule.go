package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"ubcache/attrs"
	"ubcache/attrs/rules"
)

// Rule gives attributes to the requests of a backing device that meet all of its conditions. In the
// file it is a table [[cache.NAME.backing.NAME.rule]], in the order in which they count.
type Rule struct {
	// Name is unique on the device. It may be missing; then the rule has only its number.
	Name string `toml:"name,omitempty" json:"name,omitempty"`

	// Path is a file or folder on a filesystem on the device.
	Path string `toml:"path,omitempty" json:"path,omitempty"`
	// Ranges are bytes of the device; see ParseRange.
	Ranges []string `toml:"range,omitempty" json:"range,omitempty"`
	// Cgroup is a folder of the cgroup filesystem, with those in it, or the id of one.
	Cgroup string `toml:"cgroup,omitempty" json:"cgroup,omitempty"`
	// UID is a number or the name of a user.
	UID string `toml:"uid,omitempty" json:"uid,omitempty"`
	// MinSize and MaxSize bound the size of a request.
	MinSize Size `toml:"min-size,omitzero" json:"min_size,omitzero"`
	MaxSize Size `toml:"max-size,omitzero" json:"max_size,omitzero"`
	// Kinds are those of which a request must be one: readahead, meta, swap, sync, background.
	Kinds []string `toml:"kind,omitempty" json:"kind,omitempty"`
	// Direction is read or write; empty for both.
	Direction string `toml:"direction,omitempty" json:"direction,omitempty"`

	// Set is what the rule gives, as attrs.ParseSet reads it.
	Set string `toml:"set" json:"set"`
}

// Label is the name of rule number n, counted from 1, or that number.
func (r *Rule) Label(n int) string {
	if r.Name != "" {
		return r.Name
	}
	return strconv.Itoa(n)
}

// Parse makes the rule one for the matcher. What has to be looked up is left to the caller: the extents
// of Path, the cgroups of Cgroup and the user of UID, for which the rule says that it needs them.
func (r *Rule) Parse() (rules.Rule, error) {
	out := rules.Rule{
		Ranged: r.Path != "" || len(r.Ranges) > 0, InCgroups: r.Cgroup != "", OfUID: r.UID != "",
		MinBytes: int64(r.MinSize), MaxBytes: int64(r.MaxSize),
	}
	switch {
	case r.Path != "" && len(r.Ranges) > 0:
		return out, errors.New("path and range exclude each other")
	case r.Path != "" && !filepath.IsAbs(r.Path):
		return out, fmt.Errorf("path %q does not begin with /", r.Path)
	case r.MaxSize != 0 && r.MinSize > r.MaxSize:
		return out, fmt.Errorf("min-size %v is above max-size %v", r.MinSize, r.MaxSize)
	}
	if _, err := strconv.ParseUint(r.Cgroup, 10, 64); r.Cgroup != "" && err != nil &&
		!filepath.IsAbs(r.Cgroup) {
		return out, fmt.Errorf("cgroup %q is neither an id nor a path as /sys/fs/cgroup/x", r.Cgroup)
	}
	for _, text := range r.Ranges {
		a, err := ParseRange(text)
		if err != nil {
			return out, err
		}
		out.Ranges = append(out.Ranges, a)
	}
	switch r.Direction {
	case "":
	case attrs.Read.String():
		out.Direction = attrs.Read
	case attrs.Write.String():
		out.Direction = attrs.Write
	default:
		return out, fmt.Errorf("direction %q is neither read nor write", r.Direction)
	}
	var err error
	if len(r.Kinds) > 0 {
		if out.Kinds, err = rules.ParseKinds(strings.Join(r.Kinds, ",")); err != nil {
			return out, err
		}
	}
	out.Set, err = rules.ParseSet(r.Set)
	return out, err
}

// CheckRules reports the first fault of the rules of a device.
func CheckRules(list []Rule) error {
	if len(list) > rules.MaxRules {
		return fmt.Errorf("%d rules; a device can have %d", len(list), rules.MaxRules)
	}
	seen := map[string]bool{}
	for i := range list {
		r := &list[i]
		if r.Name != "" && seen[r.Name] {
			return fmt.Errorf("there are two rules named %s", r.Name)
		}
		seen[r.Name] = true
		if err := r.Check(); err != nil {
			return fmt.Errorf("rule %s: %w", r.Label(i+1), err)
		}
	}
	return nil
}

// Check reports the first fault of a rule by itself.
func (r *Rule) Check() error {
	if r.Name != "" {
		if _, err := strconv.Atoi(r.Name); err == nil {
			return fmt.Errorf("name %q: it must not be a number", r.Name)
		}
		if err := CheckName(r.Name); err != nil {
			return err
		}
	}
	_, err := r.Parse()
	return err
}

// FindRule is the index of a rule, by its name or its number from 1 on; -1 if there is none.
func FindRule(list []Rule, which string) int {
	for i := range list {
		if which != "" && list[i].Name == which {
			return i
		}
	}
	if n, err := strconv.Atoi(which); err == nil && n >= 1 && n <= len(list) {
		return n - 1
	}
	return -1
}

// ParseRange reads a range of bytes: "1G-2G" up to but not including 2G, "1G+4K" for 4K from 1G on,
// "1G-" to the end of the device.
func ParseRange(text string) (rules.Range, error) {
	bad := func() (rules.Range, error) {
		return rules.Range{}, fmt.Errorf("%q is no range of bytes (as 0-1G, 1G+64K, or 1G- to the end)",
			text)
	}
	from, to, ok := strings.Cut(text, "-")
	length := false
	if !ok {
		if from, to, length = strings.Cut(text, "+"); !length {
			return bad()
		}
	}
	off, err := ParseSize(from)
	if err != nil {
		return bad()
	}
	r := rules.Range{Off: int64(off), End: 1<<63 - 1}
	if to != "" || length {
		end, err := ParseSize(to)
		if err != nil || length && end > 1<<62 || length && off > 1<<62 {
			return bad()
		}
		if length {
			end += off
		}
		r.End = int64(end)
	}
	if r.End <= r.Off {
		return rules.Range{}, fmt.Errorf("range %q is empty", text)
	}
	return r, nil
}

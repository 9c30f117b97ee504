package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"ubcache/attrs"
	"ubcache/cache"
)

// printAttributes writes what became of the attributes of requests, if there were any.
func printAttributes(w io.Writer, s *cache.AttributesStats) error {
	if len(s.ByAttribute) == 0 && s.Unreadable == 0 {
		return nil
	}
	rows := [][]string{{
		"  attribute", "requests", "handled", "ignored", "unsupported", "invalid", "said by",
	}}
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, name := range slices.SortedFunc(maps.Keys(s.ByAttribute), byRank(attributeRank)) {
		a := s.ByAttribute[name]
		rows = append(rows, []string{
			"  " + name, count(a.Seen), count(a.Handled), count(a.Ignored), count(a.Unsupported),
			count(a.Invalid), sources(a.Sources),
		})
	}
	if s.Unreadable > 0 {
		rows = append(rows, []string{"  unreadable", count(s.Unreadable)})
	}
	fmt.Fprintln(w)
	if err := table(w, rows); err != nil {
		return err
	}
	for _, g := range []struct {
		name   string
		groups map[string]cache.GroupStats
		rank   func(string) int
	}{
		{"hint", s.ByHint, hintRank},
		{"priority", s.ByPriority, priorityRank},
		{"tenant", s.ByTenant, tenantRank},
	} {
		if err := printGroups(w, g.name, g.groups, g.rank); err != nil {
			return err
		}
	}
	return nil
}

func printGroups(w io.Writer, name string, groups map[string]cache.GroupStats,
	rank func(string) int,
) error {
	if len(groups) == 0 {
		return nil
	}
	rows := [][]string{{"  " + name, "requests", "errors", "bytes", "hit ratio", "p50", "p99"}}
	for _, value := range slices.SortedFunc(maps.Keys(groups), byRank(rank)) {
		g := groups[value]
		ratio := "-"
		if g.ReadBlocks > 0 {
			ratio = fmt.Sprintf("%.1f%%", 100*g.HitRatio)
		}
		rows = append(rows, []string{
			"  " + value, strconv.FormatInt(g.Requests, 10), strconv.FormatInt(g.Errors, 10),
			human(g.Bytes), ratio, brief(g.P50Ns), brief(g.P99Ns),
		})
	}
	fmt.Fprintln(w)
	return table(w, rows)
}

// sources lists who an attribute's values came from, the most frequent first.
func sources(m map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b))
	})
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, m[n])
	}
	return orDash(strings.Join(names, ", "))
}

// byRank compares by a rank, then as numbers if they are as long as that, then as texts.
func byRank(rank func(string) int) func(a, b string) int {
	return func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	}
}

// What has no number of its own comes last.
const lastRank = 1 << 30

func attributeRank(name string) int {
	for _, a := range attrs.Attributes() {
		if a.Name == name {
			return int(a.ID)
		}
	}
	return lastRank
}

func hintRank(name string) int {
	for h := attrs.HintDefault; h <= attrs.HintPrefetch; h++ {
		if h.String() == name {
			return int(h)
		}
	}
	return lastRank
}

func priorityRank(name string) int {
	for c := attrs.ClassRT; c <= attrs.ClassIdle; c++ {
		if strings.HasPrefix(name, c.String()+"/") {
			return int(c)
		}
	}
	return lastRank
}

func tenantRank(name string) int {
	switch {
	case strings.HasPrefix(name, "cgroup:"):
		return 1
	case name == "other":
		return lastRank
	}
	return 0
}

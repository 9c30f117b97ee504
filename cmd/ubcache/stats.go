package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"ubcache/cache"
	"ubcache/internal/control"
)

// printStats writes a table with a column for each backing device, then the cache's own counters.
func printStats(w io.Writer, st *control.Stats) error {
	fmt.Fprintf(w, "cache %s, %.0f s since its start\n", st.Name, st.Seconds)
	names := slices.Sorted(maps.Keys(st.Devices))
	head := []string{""}
	head = append(head, names...)
	rows := [][]string{head}
	add := func(label string, value func(b *control.BackingStats) string) {
		row := []string{"  " + label}
		for _, n := range names {
			b := st.Devices[n]
			row = append(row, value(&b))
		}
		rows = append(rows, row)
	}
	count := func(label string, of func(b *control.BackingStats) int64) {
		add(label, func(b *control.BackingStats) string { return strconv.FormatInt(of(b), 10) })
	}
	bytes := func(label string, of func(b *control.BackingStats) int64) {
		add(label, func(b *control.BackingStats) string { return human(of(b)) })
	}
	const block = cache.BlockSize
	count("reads", func(b *control.BackingStats) int64 { return b.Reads })
	bytes("read", func(b *control.BackingStats) int64 { return b.ReadBytes })
	count("writes", func(b *control.BackingStats) int64 { return b.Writes })
	bytes("written", func(b *control.BackingStats) int64 { return b.WriteBytes })
	count("flushes", func(b *control.BackingStats) int64 { return b.Flushes })
	count("discards", func(b *control.BackingStats) int64 { return b.Discards })
	add("hit ratio", func(b *control.BackingStats) string {
		if b.HitBlocks+b.MissBlocks == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f%%", 100*b.HitRatio)
	})
	bytes("read hits", func(b *control.BackingStats) int64 { return b.HitBlocks * block })
	bytes("read misses", func(b *control.BackingStats) int64 { return b.MissBlocks * block })
	bytes("filled", func(b *control.BackingStats) int64 { return b.FillBlocks * block })
	bytes("writes cached", func(b *control.BackingStats) int64 { return b.CachedWriteBlocks * block })
	bytes("bypassed", func(b *control.BackingStats) int64 { return b.BypassBytes })
	bytes("written back", func(b *control.BackingStats) int64 { return b.WritebackBlocks * block })
	count("healed blocks", func(b *control.BackingStats) int64 { return b.HealedBlocks })
	count("lost blocks", func(b *control.BackingStats) int64 { return b.BadBlocks })
	count("SSD errors", func(b *control.BackingStats) int64 { return b.SSDErrors })
	count("backing errors", func(b *control.BackingStats) int64 { return b.BackingErrors })
	if err := table(w, rows); err != nil {
		return err
	}
	c := &st.Cache
	err := table(w, [][]string{
		{"  SSD read", human(c.SSDReadBytes)},
		{"  SSD written", human(c.SSDWriteBytes)},
		{"  of that metadata", human(c.MetadataBytes)},
		{"  backing read", human(c.BackingReadBytes)},
		{"  backing written", human(c.BackingWriteBytes)},
		{"  journal flushes", strconv.FormatInt(c.JournalFlushes, 10)},
		{"  journal errors", strconv.FormatInt(c.JournalErrors, 10)},
		{"  SSD slow, lost, back", fmt.Sprintf("%d, %d, %d", c.SSDSlows, c.SSDLosses, c.SSDReturns)},
		{"  checkpoints", strconv.FormatInt(c.Checkpoints, 10)},
		{"  evicted", human(c.EvictedBlocks * block)},
	})
	if err != nil {
		return err
	}
	return printAttributes(w, &c.Attributes)
}

package daemon

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
)

var corruptionSeed = flag.Uint64("corruption-seed", 1, "seed of TestCorruption")

const (
	// minCorruptions is how many TestCorruption injects at least, the harmless ones apart, in so many
	// classes.
	minCorruptions    = 10_000
	corruptionClasses = 18
)

// TestCorruption changes data that has checksums wherever it passes: on its way from the client, on
// the SSD, on the backing device, beside integrity metadata. Each change has to be reported or
// healed, and neither be stored nor given out as good. A client of the direct channel sees the cache
// as an application does; the devices are files, which are changed behind the daemon's back and
// searched for what must not be there.
func TestCorruption(t *testing.T) {
	t.Logf("seed %d (-corruption-seed)", *corruptionSeed)
	table := &corruptionTable{}
	const summed, plain = "SSD, clean, client's checksums", "SSD, clean, none from the client"
	for _, c := range []struct {
		name string
		o    directOptions
		run  func(*corruptor)
	}{
		{"own checksums", directOptions{inMemory: true}, func(c *corruptor) {
			c.writeChanged(2000)
			c.writeChangedAfter(400)
			c.writeRace(800)
			c.clean(cleanOptions{name: summed, cells: 400, sums: true})
			c.clean(cleanOptions{name: plain, cells: 400})
			c.clean(cleanOptions{name: "SSD, clean, parts of blocks", cells: 300, partial: true})
			c.dirty(250)
			c.writebackFinds(250)
			c.backing(1500)
			c.both(400)
			c.metadata(1000)
		}},
		{"no checksums of its own", directOptions{noChecksums: true, inMemory: true}, func(c *corruptor) {
			c.writeChanged(600)
			c.writeRace(300)
			c.clean(cleanOptions{name: summed, cells: 600, sums: true})
			c.dirty(400)
			c.backing(1500)
			c.both(400)
		}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			table.cache = c.name
			k := newCorruptor(t, c.o, table)
			c.run(k)
			if bad := k.b.cache.Verify(); len(bad) > 0 {
				t.Errorf("the cache is not in order: %v", bad)
			}
		})
	}
	table.judge(t)
}

// corruptionRow counts what became of one class of corruptions.
type corruptionRow struct {
	cache, where string
	injected     int
	reported     int // by an error, for the right block
	healed       int // good data was returned, and the statistics count the bad
	harmless     int // too late or undone in time: all that was stored is the good data
	stored       int
	good         int // returned as good
}

func (r *corruptionRow) add(o *corruptionRow) {
	r.injected += o.injected
	r.reported += o.reported
	r.healed += o.healed
	r.harmless += o.harmless
	r.stored += o.stored
	r.good += o.good
}

type corruptionTable struct {
	cache string
	rows  []*corruptionRow
}

func (c *corruptionTable) row(where string) *corruptionRow {
	r := &corruptionRow{cache: c.cache, where: where}
	c.rows = append(c.rows, r)
	return r
}

// judge prints the table and fails if a corruption was missed, or if there were too few.
func (c *corruptionTable) judge(t *testing.T) {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(r *corruptionRow) {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", r.cache, r.where, r.injected,
			r.reported, r.healed, r.harmless, r.stored, r.good)
	}
	_, _ = fmt.Fprintln(w,
		"cache\twhere\tinjected\treported\thealed\tharmless\tstored\treturned as good\t")
	all := &corruptionRow{where: "all"}
	for _, r := range c.rows {
		line(r)
		all.add(r)
		if r.injected == 0 || r.injected != r.reported+r.healed+r.harmless || r.stored+r.good != 0 {
			t.Errorf("%s: %s: not every corruption was reported or healed", r.cache, r.where)
		}
	}
	line(all)
	_ = w.Flush()
	t.Logf("corruptions:\n%s", out.String())
	if n := all.reported + all.healed; len(c.rows) != corruptionClasses || n < minCorruptions {
		t.Errorf("%d classes with %d corruptions, want %d with %d", len(c.rows), n,
			corruptionClasses, minCorruptions)
	}
}

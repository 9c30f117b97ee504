package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

const resultFile = "bench.json"

// row is a line of the result: what we do, what the peer does, and how that compares.
type row struct {
	Name string  `json:"name"`
	Ours float64 `json:"ours"`
	Peer float64 `json:"peer"` // or the limit of a figure that must not be exceeded
	// Ratio is the median of the rounds' ratios, or of those of several starts; more is better.
	Ratio float64 `json:"ratio"`
	// Bar is what Ratio must reach, 0 if it may be anything.
	Bar float64 `json:"bar"`
	Met bool    `json:"met"`

	Unit   string    `json:"unit"`
	Ratios []float64 `json:"ratios,omitempty"` // of the rounds or starts
	// 99th percentiles of the latency in µs.
	OursP99 float64 `json:"ours_p99_us,omitempty"`
	PeerP99 float64 `json:"peer_p99_us,omitempty"`
	// HitRatio is the share of hits while our side was measured.
	HitRatio float64 `json:"hit_ratio,omitempty"`
}

// limitRow is a figure of ours that must not exceed a limit.
func limitRow(name, unit string, v, limit float64) row {
	r := row{Name: name, Ours: v, Unit: unit, Met: true}
	if limit < 0 {
		return r
	}
	r.Peer, r.Bar, r.Met = limit, 1, v <= limit
	switch {
	case v > 0:
		r.Ratio = limit / v
	case r.Met:
		r.Ratio = 1
	}
	return r
}

// merge makes the rows that several starts have measured one each.
func merge(starts [][]row) []row {
	rows := starts[0]
	if len(starts) == 1 {
		return rows
	}
	for i := range rows {
		r := &rows[i]
		of := func(figure func(*row) float64) (v []float64) {
			for _, s := range starts {
				v = append(v, figure(&s[i]))
			}
			return v
		}
		ours, peer := of(func(r *row) float64 { return r.Ours }), of(func(r *row) float64 { return r.Peer })
		r.Ratios = of(func(r *row) float64 { return r.Ratio })
		r.Ours, r.Peer, r.Ratio = median(ours), median(peer), median(r.Ratios)
		r.Met = r.Ratio >= r.Bar
	}
	return rows
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

func printRows(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "ours\tpeer\tunit\tratio\tbar\tp99 µs\tpeer's\t\t  comparison")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t  %s\n", figure(r.Ours), figure(r.Peer),
			r.Unit, optional("%.2f", r.Ratio), optional("%.2f", r.Bar), figure(r.OursP99),
			figure(r.PeerP99), mark(r), r.Name)
	}
	_ = t.Flush()
}

func mark(r row) string {
	switch {
	case r.Bar == 0:
		return ""
	case r.Met:
		return "met"
	}
	return "MISSED"
}

func figure(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v >= 10_000:
		return fmt.Sprintf("%.1fk", v/1000)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func optional(format string, v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

func readRows(file string) (rows []row, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return rows, json.Unmarshal(text, &rows)
}

func writeRows(file string, rows []row) error {
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

func allMet(rows []row) bool {
	return !slices.ContainsFunc(rows, func(r row) bool { return !r.Met })
}

// verdict is the error of rows that missed their bars.
func verdict(rows []row) error {
	if allMet(rows) {
		return nil
	}
	var names []string
	for _, r := range rows {
		if !r.Met {
			names = append(names, r.Name)
		}
	}
	return fmt.Errorf("%w: %q", errMissed, names)
}

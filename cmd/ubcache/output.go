package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/config"
	"ubcache/internal/control"
)

// printJSON writes v for scripts.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table writes rows of cells under each other, the first row as the heading.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(t, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

func human(n int64) string { return config.Size(n).Human() }

func percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}

// isTerminal reports whether f is a terminal.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// meter shows the progress of something long on standard error: one line that is overwritten on a
// terminal, a line from time to time elsewhere.
type meter struct {
	verb  string
	tty   bool
	quiet bool
	start time.Time
	last  time.Time
	drawn bool
}

// lineEvery is how often a log gets a line of progress.
const lineEvery = 10 * time.Second

func newMeter(verb string, quiet bool) *meter {
	now := time.Now()
	return &meter{verb: verb, tty: isTerminal(os.Stderr), quiet: quiet, start: now, last: now}
}

func (m *meter) show(p control.Progress) {
	now := time.Now()
	if m.quiet || p.TotalBytes == 0 || !m.tty && now.Sub(m.last) < lineEvery {
		return
	}
	m.last = now
	done := p.TotalBytes - p.LeftBytes
	line := fmt.Sprintf("%s %s: %s left, %s done", m.verb, p.What, human(p.LeftBytes),
		percent(done, p.TotalBytes))
	if took := now.Sub(m.start).Seconds(); done > 0 && took > 1 {
		rate := float64(done) / took
		left := time.Duration(float64(p.LeftBytes)/rate) * time.Second
		line += fmt.Sprintf(", %s/s, %s to go", human(int64(rate)), left.Round(time.Second))
	}
	if m.tty {
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line)
		m.drawn = true
		return
	}
	fmt.Fprintln(os.Stderr, line)
}

// share shows that a share of something is done.
func (m *meter) share(what string, total int64, share float64) {
	m.show(control.Progress{What: what, TotalBytes: total, LeftBytes: total - int64(share*float64(total))})
}

// end leaves the terminal's line.
func (m *meter) end() {
	if m.drawn {
		fmt.Fprintln(os.Stderr)
	}
}

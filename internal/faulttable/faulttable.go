// Package faulttable collects what tests have done to a cache and how it bore that, and prints it as
// the table that ends make test: fault, times tried, data lost, wrong data, errors that should not be.
//
// A test appends rows to a file ([Append]), one JSON object on a line, so that programs of several
// packages and several boots can share one. [Merge] adds up the rows of the same fault.
package faulttable

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
)

// EnvFile names the file that a test appends to where there is no better place for it.
const EnvFile = "UBCACHE_FAULT_TABLE"

// Row is a fault and what became of it.
type Row struct {
	Fault string `json:"fault"` // such as "SSD: writes fail"
	Place string `json:"place"` // "simulator", or the kernel of the VM
	Times int64  `json:"times"` // how often it was tried
	// What must not be. Lost is data that had been acknowledged (and flushed, where the fault is a power
	// cut) and reads as an older version; Wrong is data that was never written there.
	Lost   int64 `json:"lost"`
	Wrong  int64 `json:"wrong"`
	Errors int64 `json:"errors"` // requests that failed and should not have
	// Failed says that the test failed for whatever reason.
	Failed bool `json:"failed,omitempty"`
}

// Good reports whether the fault was tried and nothing went wrong.
func (r *Row) Good() bool {
	return r.Times > 0 && r.Lost == 0 && r.Wrong == 0 && r.Errors == 0 && !r.Failed
}

// Append writes a row to a file, which it makes if need be.
func Append(file string, r Row) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("note a fault: %w", err)
	}
	text, err := json.Marshal(r)
	if err == nil {
		_, err = f.Write(append(text, '\n'))
	}
	return errors.Join(err, f.Close())
}

// Read returns the rows of a file.
func Read(file string) (rows []Row, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		// What a reset has cut short was never a row.
		if len(strings.Trim(s.Text(), "\x00 \t")) == 0 {
			continue
		}
		var r Row
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", file, n, err)
		}
		rows = append(rows, r)
	}
	return rows, s.Err()
}

// Merge adds up the rows of the same fault in the same place and keeps the order in which they came.
func Merge(rows []Row) (merged []Row) {
	type key struct{ fault, place string }
	at := map[key]int{}
	for _, r := range rows {
		k := key{r.Fault, r.Place}
		i, ok := at[k]
		if !ok {
			i = len(merged)
			at[k] = i
			merged = append(merged, Row{Fault: r.Fault, Place: r.Place})
		}
		m := &merged[i]
		m.Times += r.Times
		m.Lost += r.Lost
		m.Wrong += r.Wrong
		m.Errors += r.Errors
		m.Failed = m.Failed || r.Failed
	}
	return merged
}

// Print writes the table with a line of sums and reports whether each row is good.
func Print(w io.Writer, rows []Row) (good bool, err error) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "fault\twhere\ttimes\tdata lost\twrong data\terrors\t")
	good = true
	var sum Row
	for _, r := range rows {
		verdict := ""
		if !r.Good() {
			good, verdict = false, "FAIL"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", r.Fault, r.Place, r.Times, r.Lost, r.Wrong,
			r.Errors, verdict)
		sum.Times += r.Times
		sum.Lost += r.Lost
		sum.Wrong += r.Wrong
		sum.Errors += r.Errors
	}
	fmt.Fprintf(t, "all %d\t\t%d\t%d\t%d\t%d\t\n", len(rows), sum.Times, sum.Lost, sum.Wrong, sum.Errors)
	return good, t.Flush()
}

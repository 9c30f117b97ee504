package main

import (
	"fmt"
	"strings"

	"ubcache/attrs"
)

// resultRows are the answers for a request as a table.
func resultRows(r *ioResult, explain bool) [][]string {
	res := r.Results
	by := "answered by nobody"
	switch list := res.Devices(); len(list) {
	case 0:
	case 1:
		by = fmt.Sprintf("answered by device %d", list[0])
	default:
		by = fmt.Sprintf("answered by %d devices", len(list))
	}
	rows := [][]string{{"  data", res.Origin.String(), by}}
	if why := res.Frame(); why != attrs.ReasonNone {
		rows = append(rows, []string{"  attributes", "unreadable", why.String()})
	}
	for _, a := range attrs.Attributes() {
		answer := res.For(a.ID)
		if !r.Attrs.Has(a.ID) && answer == (attrs.Answer{}) {
			continue
		}
		more := returned(res, a.ID, answer)
		if explain {
			more = strings.TrimSpace(source(answer) + "  " + more)
		}
		row := []string{"  " + a.Name, answer.String()}
		if more != "" {
			row = append(row, more)
		}
		rows = append(rows, row)
	}
	for _, id := range r.Attrs.Unknown() {
		rows = append(rows, []string{"  " + id.String(), res.For(id).String()})
	}
	return rows
}

// source says where the value came from that counted, and who else had one.
func source(a attrs.Answer) string {
	if a.Source == attrs.SourceNone {
		return ""
	}
	text := a.Source.String()
	if lost := a.Offered &^ (1 << a.Source); lost != 0 {
		text += ", over " + lost.String()
	}
	return text
}

// returned is what came with an answer.
func returned(r *attrs.Results, id attrs.ID, a attrs.Answer) string {
	switch {
	case id == attrs.IDTiming && a.Status == attrs.Handled:
		t, _ := r.Timing()
		return fmt.Sprintf("queued %v, ssd %v, backing %v, total %v", t.Queued, t.SSD, t.Backing, t.Total)
	case id == attrs.IDChecksum:
		if block, bad := r.Mismatch(); bad {
			return fmt.Sprintf("block %d is the first that differs", block)
		}
		if algorithm, sums := r.Checksums(); algorithm != 0 {
			return attrs.Checksum{Algorithm: algorithm, Sums: sums}.String()
		}
	}
	return ""
}

package attrs

import (
	"fmt"
	"strings"
)

// String writes the set as [ParseSet] reads it, in order of the ids; where the values came from is
// not part of it. What is invalid is appended in brackets, which ParseSet refuses.
func (s *Set) String() string {
	var items, required, bad []string
	note := func(id ID, why Reason) {
		if s.Required(id) {
			required = append(required, "required:"+id.String())
		}
		if why != ReasonNone {
			bad = append(bad, fmt.Sprintf("[%v: %v]", id, why))
		}
	}
	for id := ID(1); id < idEnd; id++ {
		if s.Has(id) {
			items = append(items, s.item(id))
		}
		note(id, s.reason[id])
	}
	for i := range int(s.nUnknown) {
		u := &s.unknown[i]
		if u.reason == ReasonNone {
			items = append(items, fmt.Sprintf("%v=%x", u.id, s.raw[u.off:u.off+u.size]))
		}
		note(u.id, u.reason)
	}
	if s.frame != ReasonNone {
		bad = append(bad, fmt.Sprintf("[unreadable: %v]", s.frame))
	}
	return strings.Join(append(append(items, required...), bad...), ",")
}

// item writes one attribute, which is there.
func (s *Set) item(id ID) string {
	if v := s.value(id); v != "" {
		return id.String() + "=" + v
	}
	return id.String()
}

// value writes the value of an attribute, which is there.
func (s *Set) value(id ID) string {
	switch id {
	case IDPriority:
		return s.Priority().String()
	case IDChecksum:
		return s.Checksum().String()
	case IDTenant:
		return s.Tenant().String()
	case IDDeadline:
		return fmt.Sprintf("%dus", s.val[id])
	case IDTiming:
		return ""
	case IDTrace:
		return fmt.Sprintf("%#x", s.val[id])
	}
	return valueName(id, s.val[id])
}

// String writes the attribute's value as ParseSet reads it.
func (c Checksum) String() string {
	var b strings.Builder
	b.WriteString(c.Algorithm.String())
	if c.Return && len(c.Sums) != 0 {
		b.WriteString("+return")
	}
	for i := range c.Blocks() {
		b.WriteString(":" + c.sumText(i))
	}
	return b.String()
}

// sumText is a checksum in hexadecimal.
func (c Checksum) sumText(i int) string {
	return fmt.Sprintf("%0*x", 2*c.Algorithm.Width(), c.Sum(i))
}

// Explain says line by line what the set has and which source won:
//
//	hint      bypass            explicit, over rule     required
func (s *Set) Explain() string {
	var b strings.Builder
	line := func(id ID, value, source string) {
		text := fmt.Sprintf("%-9s %-17s %s", id, value, source)
		if s.Required(id) {
			text = fmt.Sprintf("%-51s required", text)
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	for id := ID(1); id < idEnd; id++ {
		if s.Has(id) {
			value := s.value(id)
			if value == "" {
				value = "requested"
			}
			line(id, value, sourceText(s.source[id], s.offered[id]))
		}
		if why := s.reason[id]; why != ReasonNone {
			line(id, "invalid", why.String())
		}
	}
	for i := range int(s.nUnknown) {
		u := &s.unknown[i]
		if u.reason != ReasonNone {
			line(u.id, "invalid", u.reason.String())
		} else {
			line(u.id, fmt.Sprintf("%x", s.raw[u.off:u.off+u.size]), SourceExplicit.String())
		}
	}
	if s.frame != ReasonNone {
		fmt.Fprintf(&b, "unreadable: %v\n", s.frame)
	}
	return b.String()
}

// sourceText names the source that won and those that did not.
func sourceText(won Source, offered Sources) string {
	if lost := offered &^ (1 << won); lost != 0 {
		return fmt.Sprintf("%v, over %v", won, lost)
	}
	return won.String()
}

// String writes an answer: status, and reason if there is one.
func (a Answer) String() string {
	if a.Reason == ReasonNone {
		return a.Status.String()
	}
	return fmt.Sprintf("%v (%v)", a.Status, a.Reason)
}

// String writes the results line by line; the first says where the data was and who answered.
func (r *Results) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "data      %v, %d blocks, answered by %s\n", r.Origin, r.Blocks, r.deviceText())
	if r.frame != ReasonNone {
		fmt.Fprintf(&b, "attributes unreadable: %v\n", r.frame)
	}
	for id := ID(1); id < idEnd; id++ {
		a := r.answer[id]
		if a == (Answer{}) {
			continue
		}
		fmt.Fprintf(&b, "%-9s %v", id, a)
		if a.Source != SourceNone && a.Source != SourceExplicit || a.Offered&^(1<<a.Source) != 0 {
			fmt.Fprintf(&b, " [%s]", sourceText(a.Source, a.Offered))
		}
		b.WriteString(r.returned(id) + "\n")
	}
	for _, u := range r.unknown[:r.nUnknown] {
		fmt.Fprintf(&b, "%-9s %v\n", u.id, Answer{Status: u.status, Reason: u.reason})
	}
	return b.String()
}

func (r *Results) deviceText() string {
	switch r.nDevices {
	case 0:
		return "nobody"
	case 1:
		return fmt.Sprintf("device %d", r.devices[0])
	}
	return fmt.Sprintf("%d devices", r.nDevices)
}

// returned writes the values that came with an answer.
func (r *Results) returned(id ID) string {
	if r.answer[id].Status != Handled {
		return ""
	}
	switch id {
	case IDTiming:
		t := r.timing
		return fmt.Sprintf(": queued %v, ssd %v, backing %v, total %v",
			t.Queued, t.SSD, t.Backing, t.Total)
	case IDChecksum:
		if block, bad := r.Mismatch(); bad {
			return fmt.Sprintf(": %v, first in block %d", r.algorithm, block)
		}
		if a, sums := r.Checksums(); a != 0 {
			return ": " + Checksum{Algorithm: a, Sums: sums}.String()
		}
	}
	return ""
}

package attrs

import (
	"encoding/hex"
	"encoding/json"
)

// attributeJSON is an attribute of a set as scripts see it.
type attributeJSON struct {
	Value    string   `json:"value,omitempty"`
	Source   string   `json:"source,omitempty"`
	Over     []string `json:"over,omitempty"` // weaker sources that had a value too
	Required bool     `json:"required,omitempty"`
	Invalid  string   `json:"invalid,omitempty"` // why it was not taken
}

// MarshalJSON writes an object with a member for each attribute, by its name: value as text, source,
// and the sources it won over.
func (s *Set) MarshalJSON() ([]byte, error) {
	out := map[string]attributeJSON{}
	for id := ID(1); id < idEnd; id++ {
		var a attributeJSON
		if s.Has(id) {
			a.Value, a.Source = s.value(id), s.source[id].String()
			a.Over = s.offered[id].without(s.source[id])
		}
		if why := s.reason[id]; why != ReasonNone {
			a.Invalid = why.String()
		}
		if a.Required = s.Required(id); s.Has(id) || a.Invalid != "" {
			out[id.String()] = a
		}
	}
	for i := range int(s.nUnknown) {
		u := &s.unknown[i]
		a := attributeJSON{Source: SourceExplicit.String(), Required: u.required}
		if u.reason != ReasonNone {
			a.Source, a.Invalid = "", u.reason.String()
		} else {
			a.Value = hex.EncodeToString(s.raw[u.off : u.off+u.size])
		}
		out[u.id.String()] = a
	}
	return json.Marshal(out)
}

// answerJSON is an answer as scripts see it.
type answerJSON struct {
	Status string   `json:"status"`
	Reason string   `json:"reason,omitempty"`
	Source string   `json:"source,omitempty"`
	Over   []string `json:"over,omitempty"`
}

// resultsJSON is what MarshalJSON writes.
type resultsJSON struct {
	Origin     string                `json:"origin"`
	Blocks     uint32                `json:"blocks"`
	Devices    []Device              `json:"devices"` // that answered
	Unreadable string                `json:"unreadable,omitempty"`
	Attributes map[string]answerJSON `json:"attributes"`
	Timing     *timingJSON           `json:"timing,omitempty"`
	Checksums  *checksumsJSON        `json:"checksums,omitempty"`
}

type timingJSON struct {
	Queued  int64 `json:"queued_ns"`
	SSD     int64 `json:"ssd_ns"`
	Backing int64 `json:"backing_ns"`
	Total   int64 `json:"total_ns"`
}

type checksumsJSON struct {
	Algorithm string   `json:"algorithm"`
	Values    []string `json:"values,omitempty"`
	// Mismatch is the first block whose data did not match.
	Mismatch *uint32 `json:"mismatch_block,omitempty"`
}

// MarshalJSON writes who answered, where the data was, an answer for each attribute that has one, and
// what was returned. An attribute that is missing was not handled.
func (r *Results) MarshalJSON() ([]byte, error) {
	out := resultsJSON{
		Origin: r.Origin.String(), Blocks: r.Blocks, Devices: append([]Device{}, r.Devices()...),
		Attributes: map[string]answerJSON{},
	}
	if r.frame != ReasonNone {
		out.Unreadable = r.frame.String()
	}
	for id := ID(1); id < idEnd; id++ {
		if a := r.answer[id]; a.Status != NotHandled {
			out.Attributes[id.String()] = a.json()
		}
	}
	for _, u := range r.unknown[:r.nUnknown] {
		out.Attributes[u.id.String()] = Answer{Status: u.status, Reason: u.reason}.json()
	}
	if t, ok := r.Timing(); ok {
		out.Timing = &timingJSON{
			t.Queued.Nanoseconds(), t.SSD.Nanoseconds(), t.Backing.Nanoseconds(),
			t.Total.Nanoseconds(),
		}
	}
	if r.answer[IDChecksum].Status == Handled && r.algorithm != 0 {
		out.Checksums = r.checksumsJSON()
	}
	return json.Marshal(out)
}

func (a Answer) json() answerJSON {
	j := answerJSON{Status: a.Status.String()}
	if a.Reason != ReasonNone {
		j.Reason = a.Reason.String()
	}
	if a.Source != SourceNone {
		j.Source, j.Over = a.Source.String(), a.Offered.without(a.Source)
	}
	return j
}

func (r *Results) checksumsJSON() *checksumsJSON {
	out := &checksumsJSON{Algorithm: r.algorithm.String()}
	if block, bad := r.Mismatch(); bad {
		out.Mismatch = &block
	}
	c := Checksum{Algorithm: r.algorithm, Sums: r.sums}
	for i := range c.Blocks() {
		out.Values = append(out.Values, c.sumText(i))
	}
	return out
}

// without are the names of the sources but one.
func (m Sources) without(won Source) (names []string) {
	for src := SourceNone; src < sourceEnd; src++ {
		if m.Has(src) && src != won {
			names = append(names, src.String())
		}
	}
	return names
}

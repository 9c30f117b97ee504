package attrs

import (
	"strings"
	"testing"
)

func TestParseSet(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{fullText, fullText},
		{
			"hint=bypass,prio=rt/2,lifetime=short,tenant=7,deadline=500us,required:hint",
			"hint=bypass,prio=rt/2,lifetime=short,tenant=7,deadline=500us,required:hint",
		},
		{" required:trace, trace=10 ,hint=once", "hint=once,trace=0xa,required:trace"},
		{"prio=idle", "prio=idle/0"},
		{"deadline=1.5ms", "deadline=1500us"},
		{"checksum=crc32c:DEADBEEF", "checksum=crc32c:deadbeef"},
		{"0xf001=C0FFEE,61442", "0xf001=c0ffee,0xf002="},
	} {
		s, err := ParseSet(c.text)
		if err != nil || s.String() != c.want {
			t.Errorf("%q: %q, %v", c.text, s.String(), err)
		}
	}
}

func TestParseSetErrors(t *testing.T) {
	for text, want := range map[string]string{
		"hint":                         "one of default, cache",
		"hint=":                        "one of default, cache",
		"hint=Bypass":                  "one of default, cache",
		"mode=writeonly":               "one of writethrough, writeback, writearound",
		"mode=":                        "one of writethrough",
		"color=red":                    "one of hint, mode, prio",
		"":                             "",
		",":                            "no such attribute",
		"hint=once,":                   "no such attribute",
		"hint=once,hint=once":          "given twice",
		"0xf001,0xf001":                "given twice",
		"prio=rt":                      "needs a level of 0 to 7, as in rt/4",
		"prio=rt/8":                    "needs a level",
		"prio=rt/-1":                   "needs a level",
		"prio=none/1":                  "one of rt, be, idle",
		"lifetime=7":                   "one of none, short",
		"tenant=x":                     "not a number",
		"tenant=cgroup:":               "not a number",
		"tenant=18446744073709551616":  "not a number",
		"deadline=500":                 "a time with a unit",
		"deadline=0s":                  "from 1us",
		"deadline=-1s":                 "from 1us",
		"deadline=1ns":                 "whole microseconds",
		"deadline=1500ns":              "whole microseconds",
		"deadline=2h":                  "to 4294967295us",
		"timing=yes":                   "no value",
		"trace=":                       "not a number",
		"checksum=md5":                 "one of xxh64, crc32c, crc64-nvme",
		"checksum=crc32c:":             "8 hexadecimal digits",
		"checksum=crc32c:123":          "8 hexadecimal digits",
		"checksum=xxh64:0000000g":      "16 hexadecimal digits",
		"0xf001=abc":                   "two digits for a byte",
		"0=00":                         "no such attribute",
		"0xffff=00":                    "no such attribute",
		"5=01":                         "called lifetime",
		"required:hint":                "not given",
		"hint=once,required:mode":      "not given",
		"hint=once,required:":          "no such attribute",
		"hint=once,required:0xf001":    "not given",
		"checksum=crc32c" + many(257):  "at most 256",
		"checksum=crc32c" + many(4000): "at most 256",
	} {
		s, err := ParseSet(text)
		if text == "" {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || !s.Empty() {
			t.Errorf("%.40q: %v, %q; want %q", text, err, s.String(), want)
		}
	}
}

func many(n int) string { return strings.Repeat(":00000000", n) }

func TestExplain(t *testing.T) {
	s := *parsed(t, "hint=bypass,timing,0xf001=c0ffee,required:hint")
	rule := parsed(t, "hint=once,tenant=7")
	rule.Mark(SourceRule)
	s.Merge(rule)
	deflt := parsed(t, "tenant=1,prio=be/5")
	deflt.Mark(SourceDefault)
	s.Merge(deflt)
	bad := Set{}
	if err := bad.Decode(frame(ent(5, 0, 77))); err != nil {
		t.Fatal(err)
	}
	s.Merge(&bad)
	want := `hint      bypass            explicit, over rule     required
prio      be/5              default
lifetime  invalid           value out of range
tenant    7                 rule, over default
timing    requested         explicit
0xf001    c0ffee            explicit
`
	if got := s.Explain(); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestStringOfInvalid(t *testing.T) {
	var s Set
	if err := s.Decode(frame(ent(1, 1, 77), ent(9, 0, make([]byte, 8)...), ent(100, 2))); err != nil {
		t.Fatal(err)
	}
	want := "trace=0x0,required:hint,[hint: value out of range],[0x0064: reserved bits set]"
	if got := s.String(); got != want {
		t.Errorf("got %s", got)
	}
	if _, err := ParseSet(s.String()); err == nil {
		t.Error("the text of an invalid set was parsed")
	}
	if err := s.Decode(with(frame(), 4, 7)); err != ReasonVersion || s.String() != "[unreadable: other version]" {
		t.Errorf("%v: %v", err, &s)
	}
}

// TestNames: every number has a text, also those that nobody has defined.
func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		HintEvict.String(): "evict", Hint(9).String(): "hint(9)", WriteMode(0).String(): "mode(0)",
		Writeback.String(): "writeback", Class(9).String(): "prio(9)", Both.String(): "both",
		LifetimeExtreme.String(): "extreme", CRC64NVMe.String(): "crc64-nvme", Status(9).String(): "status(9)",
		NotHandled.String(): "not handled", OriginRAM.String(): "ram", SourceIntegrity.String(): "integrity",
		Source(200).String(): "source(200)", ReasonNone.String(): "none", Reason(255).String(): "reason(255)",
		ReasonOrder.Error():                      "ids not ascending",
		Sources(1<<SourceRule | 1<<6).String():   "explicit+rule",
		ID(100).String() + " " + IDHint.String(): "0x0064 hint",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

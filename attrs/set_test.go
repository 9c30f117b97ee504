package attrs

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// fullText is a set with every attribute; only timing has no value that could be mixed up.
const fullText = "hint=pin,mode=writeback,prio=rt/2,checksum=crc32c+return:01020304:a0b0c0d0," +
	"lifetime=long,tenant=cgroup:4242,deadline=500us,timing,trace=0xfeedfacecafebeef"

func parsed(t testing.TB, text string) *Set {
	t.Helper()
	s, err := ParseSet(text)
	if err != nil {
		t.Fatal(err)
	}
	return &s
}

// fullSet is that of fullText, made by the setters.
func fullSet() *Set {
	var s Set
	s.SetHint(HintPin)
	s.SetMode(Writeback)
	s.SetPriority(Priority{ClassRT, 2})
	s.SetChecksum(Checksum{
		Algorithm: CRC32C, Return: true, Sums: CRC32C.AppendSum(CRC32C.AppendSum(nil, 0x01020304), 0xa0b0c0d0),
	})
	s.SetLifetime(LifetimeLong)
	s.SetTenant(Tenant{4242, true})
	s.SetDeadline(500 * time.Microsecond)
	s.SetTiming()
	s.SetTrace(0xfeedfacecafebeef)
	return &s
}

func TestSetters(t *testing.T) {
	s := fullSet()
	for id := ID(1); id < idEnd; id++ {
		if !s.Has(id) || s.Source(id) != SourceExplicit || s.Required(id) {
			t.Errorf("%v: has %t, source %v, required %t", id, s.Has(id), s.Source(id), s.Required(id))
		}
	}
	c := s.Checksum()
	if s.Hint() != HintPin || s.Mode() != Writeback || s.Priority() != (Priority{ClassRT, 2}) ||
		s.Lifetime() != LifetimeLong || s.Tenant() != (Tenant{4242, true}) ||
		s.Deadline() != 500*time.Microsecond || !s.Timing() || s.Trace() != 0xfeedfacecafebeef ||
		c.Algorithm != CRC32C || !c.Return || c.Blocks() != 2 || c.Sum(1) != 0xa0b0c0d0 {
		t.Errorf("got %v", s)
	}
	if s.Empty() {
		t.Error("the set counts as empty")
	}
	var none Set
	if !none.Empty() || none.Has(0) || none.Has(IDHint) || none.Has(idEnd) || none.Timing() ||
		none.Tenant() != (Tenant{}) || none.Checksum().Blocks() != 0 {
		t.Error("the zero set has something")
	}
}

func TestSettersRefuse(t *testing.T) {
	for _, c := range []struct {
		id  ID
		set func(*Set)
	}{
		{IDHint, func(s *Set) { s.SetHint(HintPrefetch + 1) }},
		{IDMode, func(s *Set) { s.SetMode(0) }},
		{IDMode, func(s *Set) { s.SetMode(Writearound + 1) }},
		{IDPriority, func(s *Set) { s.SetPriority(Priority{ClassBE, 8}) }},
		{IDPriority, func(s *Set) { s.SetPriority(Priority{0, 1}) }},
		{IDPriority, func(s *Set) { s.SetPriority(Priority{ClassIdle + 1, 1}) }},
		{IDChecksum, func(s *Set) { s.SetChecksum(Checksum{Algorithm: XXH64}) }},
		{IDChecksum, func(s *Set) { s.SetChecksum(Checksum{Algorithm: 4, Return: true}) }},
		{IDChecksum, func(s *Set) { s.SetChecksum(Checksum{Algorithm: XXH64, Sums: make([]byte, 12)}) }},
		{IDChecksum, func(s *Set) { s.SetChecksum(Checksum{Algorithm: CRC32C, Sums: make([]byte, 257*4)}) }},
		{IDLifetime, func(s *Set) { s.SetLifetime(LifetimeExtreme + 1) }},
		{IDDeadline, func(s *Set) { s.SetDeadline(0) }},
		{IDDeadline, func(s *Set) { s.SetDeadline(-time.Second) }},
		{IDDeadline, func(s *Set) { s.SetDeadline(72 * time.Minute) }},
	} {
		s := fullSet()
		c.set(s)
		if s.Has(c.id) || s.Invalid(c.id) == ReasonNone {
			t.Errorf("%v: taken: %v", c.id, s)
		}
		if _, err := s.Encode(make([]byte, MaxBytes)); err != ErrInvalid {
			t.Errorf("%v: encoded: %v", c.id, err)
		}
		s.Merge(fullSet())
		if !s.Has(c.id) || s.Invalid(c.id) == ReasonNone {
			t.Errorf("%v: a valid value of another source was not used, or the error forgotten: %v", c.id, s)
		}
	}
	// What is set again properly is valid again.
	var s Set
	s.SetHint(99)
	s.SetHint(HintOnce)
	if s.Hint() != HintOnce || s.Invalid(IDHint) != ReasonNone || s.String() != "hint=once" {
		t.Errorf("set again: %v", &s)
	}
}

// TestMergePrecedence merges a value of each source in every order of two and of three.
func TestMergePrecedence(t *testing.T) {
	one := func(src Source) *Set {
		var s Set
		s.SetDeadline(time.Duration(src) * time.Second)
		s.Mark(src)
		return &s
	}
	for a := SourceDefault; a < sourceEnd; a++ {
		for b := SourceDefault; b < sourceEnd; b++ {
			for c := SourceDefault; c < sourceEnd; c++ {
				s := *one(a)
				s.Merge(one(b))
				s.Merge(one(c))
				want := max(a, b, c)
				if s.Source(IDDeadline) != want || s.Deadline() != time.Duration(want)*time.Second {
					t.Fatalf("%v, %v, %v: %v from %v", a, b, c, s.Deadline(), s.Source(IDDeadline))
				}
				if s.Offered(IDDeadline) != 1<<a|1<<b|1<<c {
					t.Fatalf("%v, %v, %v: offered by %v", a, b, c, s.Offered(IDDeadline))
				}
			}
		}
	}
	if SourceExplicit < SourceRule || SourceIOPrio < SourceRule || SourceIntegrity < SourceRule ||
		SourceKernel < SourceRule || SourceRule < SourceDefault {
		t.Error("given with the request > rule > default does not hold")
	}
}

func TestMergeEachAttribute(t *testing.T) {
	// Every attribute of a strong set replaces that of a weak one, with all that belongs to it.
	weak := parsed(t, "hint=cache,mode=writearound,prio=idle/7,checksum=xxh64,lifetime=short,tenant=1,"+
		"deadline=1s,timing,trace=1,required:tenant")
	weak.Mark(SourceRule)
	s := *weak
	s.Merge(fullSet())
	if s.String() != fullText {
		t.Errorf("strong into weak: %v", &s)
	}
	s = *fullSet()
	s.Merge(weak)
	if s.String() != fullText {
		t.Errorf("weak into strong: %v", &s)
	}
	s = Set{}
	s.Merge(weak)
	if s.String() != weak.String() || s.Source(IDTrace) != SourceRule {
		t.Errorf("into nothing: %v", &s)
	}
	// One source alone in each of two: both are there.
	s = *parsed(t, "hint=once,required:hint")
	s.Merge(parsed(t, "trace=7,0xf001=aa,required:trace"))
	if got := s.String(); got != "hint=once,trace=0x7,0xf001=aa,required:hint,required:trace" {
		t.Errorf("union: %s", got)
	}
}

func TestMergeInvalid(t *testing.T) {
	var explicit Set
	if err := explicit.Decode(frame(ent(1, flagRequired, 99))); err != nil {
		t.Fatal(err)
	}
	rule := parsed(t, "hint=once")
	rule.Mark(SourceRule)
	for name, s := range map[string]Set{"into rule": *rule, "into explicit": explicit} {
		if name == "into rule" {
			s.Merge(&explicit)
		} else {
			s.Merge(rule)
		}
		if s.Hint() != HintOnce || s.Source(IDHint) != SourceRule || s.Invalid(IDHint) != ReasonValue {
			t.Errorf("%s: %v", name, &s)
		}
		var r Results
		r.Begin(&s, Request{Direction: Read, Bytes: 4096}, 1)
		if a := r.For(IDHint); a.Status != Invalid || a.Source != SourceRule {
			t.Errorf("%s: answered %+v", name, a)
		}
		if id, errno := s.CheckRequired(&r); id != IDHint || errno != ErrnoInvalid {
			t.Errorf("%s: %v, %v", name, id, errno)
		}
	}
}

func TestPiece(t *testing.T) {
	s := parsed(t, "checksum=crc32c:00000000:11111111:22222222:33333333")
	p := *s
	p.Piece(1, 2)
	if got := p.String(); got != "checksum=crc32c:11111111:22222222" {
		t.Errorf("piece: %s", got)
	}
	if s.Checksum().Blocks() != 4 {
		t.Error("the whole was changed")
	}
	for _, c := range [][2]int{{0, 5}, {4, 1}, {5, 1}, {-1, 1}, {0, 0}, {1, -1}, {1, int(^uint(0) >> 1)}} {
		p := *s
		if p.Piece(c[0], c[1]); p.Has(IDChecksum) || p.Invalid(IDChecksum) != ReasonCount {
			t.Errorf("piece %v: %v", c, &p)
		}
	}
	// Nothing to verify: nothing changes.
	r := *parsed(t, "hint=once,checksum=xxh64")
	if r.Piece(7, 9); r.String() != "hint=once,checksum=xxh64" {
		t.Errorf("piece of a set without sums: %v", &r)
	}
}

func TestUnknown(t *testing.T) {
	var s Set
	for _, id := range []ID{0xf002, PrivateMin, 0x800, PrivateMax} {
		if err := s.AddUnknown(id, []byte{byte(id), 1}); err != nil {
			t.Fatal(err)
		}
	}
	want := []ID{0x800, 0xf000, 0xf002, 0xfffe}
	if got := s.Unknown(); !slices.Equal(got, want) {
		t.Errorf("order %v", got)
	}
	for _, id := range want {
		if v, ok := s.UnknownValue(id); !ok || v[0] != byte(id) || len(v) != 2 || s.Has(id) {
			t.Errorf("%v: %x, %t", id, v, ok)
		}
	}
	for id, want := range map[ID]error{0: errBadID, 0xffff: errBadID, IDHint: errKnown, 0x800: errTwice} {
		if err := s.AddUnknown(id, nil); err != want {
			t.Errorf("%v: %v", id, err)
		}
	}
	for i := range ID(MaxUnknown - 4) {
		if err := s.AddUnknown(0x900+i, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddUnknown(0x1000, nil); err != errTooMany {
		t.Errorf("one too many: %v", err)
	}
	if PrivateMin.Known() || !PrivateMin.Private() || !PrivateMax.Private() || (PrivateMin - 1).Private() ||
		idNone.Private() {
		t.Error("range of private ids")
	}
	if !strings.HasPrefix(s.String(), "0x0800=0001,0x0900=,") {
		t.Errorf("text %v", &s)
	}
}

// TestMergeEqual: of two values from one source the first stays.
func TestMergeEqual(t *testing.T) {
	s := *parsed(t, "hint=once")
	s.Merge(parsed(t, "hint=pin,required:hint"))
	if s.String() != "hint=once" {
		t.Errorf("%v", &s)
	}
}

// TestMergeUnreadable: a rule does not hide that the issuer's set could not be read.
func TestMergeUnreadable(t *testing.T) {
	var broken Set
	if err := broken.Decode(with(frame(ent(1, flagRequired, 2)), 12, 1)); err != ReasonHeader {
		t.Fatal(err)
	}
	s := *parsed(t, "hint=once")
	s.Mark(SourceRule)
	s.Merge(&broken)
	if s.Frame() != ReasonHeader || s.Hint() != HintOnce {
		t.Errorf("%v", &s)
	}
	if id, errno := s.CheckRequired(&Results{}); id != 0 || errno != ErrnoInvalid {
		t.Errorf("%v, %v", id, errno)
	}
}

// TestRefusedLeavesNothing: what is invalid has neither the old value nor a source.
func TestRefusedLeavesNothing(t *testing.T) {
	s := *parsed(t, "hint=once")
	s.SetHint(99)
	if s.Hint() != HintDefault || s.Source(IDHint) != SourceNone || s.Offered(IDHint) != 0 {
		t.Errorf("%v from %v, offered by %v", s.Hint(), s.Source(IDHint), s.Offered(IDHint))
	}
}

// TestUnknownCopies: two copies of a set do not write into each other's values, nor into the buffer
// that they were decoded from.
func TestUnknownCopies(t *testing.T) {
	buf := append(frame(ent(0xf001, 0, 1)), 0xee, 0xee, 0xee, 0xee)
	var a Set
	if err := a.Decode(buf); err != nil {
		t.Fatal(err)
	}
	if err := a.AddUnknown(0xf002, []byte{2}); err != nil {
		t.Fatal(err)
	}
	b := a
	if a.AddUnknown(0xf003, []byte{3}) != nil || b.AddUnknown(0xf004, []byte{4}) != nil {
		t.Fatal("not added")
	}
	if a.String() != "0xf001=01,0xf002=02,0xf003=03" || b.String() != "0xf001=01,0xf002=02,0xf004=04" {
		t.Errorf("%v and %v", &a, &b)
	}
	if buf[len(buf)-4] != 0xee {
		t.Error("the buffer was written to")
	}
}

func TestCame(t *testing.T) {
	s := parsed(t, "hint=cache,timing")
	s.SetPriority(Priority{Class: 9})
	if got, want := s.Came(), uint16(1<<IDHint|1<<IDTiming|1<<IDPriority); got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
}

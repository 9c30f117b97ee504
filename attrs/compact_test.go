package attrs

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func TestCompactSet(t *testing.T) {
	for _, text := range []string{
		"", "hint=default", "hint=prefetch", "mode=writearound", "prio=idle/7", "lifetime=extreme", "timing",
		"deadline=71m", "tenant=4294967295", "tenant=cgroup:1",
		"hint=pin,mode=writeback,prio=rt/2,lifetime=long,tenant=cgroup:4242,deadline=500us,timing," +
			"required:hint,required:timing",
	} {
		s := parsed(t, text)
		b := bytes.Repeat([]byte{0xee}, CompactBytes+1)
		if err := s.EncodeCompact(b); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var got Set
		if err := got.DecodeCompact(b); err != nil || got.String() != s.String() {
			t.Errorf("%s: %v, back comes %s", text, err, got.String())
		}
		for id := ID(1); id < idEnd; id++ {
			if got.Has(id) && got.Source(id) != SourceIntegrity {
				t.Errorf("%s: %v is from %v", text, id, got.Source(id))
			}
		}
		if b[CompactBytes] != 0xee {
			t.Errorf("%s: writes beyond its bytes", text)
		}
	}
}

func TestCompactRefuses(t *testing.T) {
	for _, text := range []string{
		"checksum=xxh64", "trace=1", "0xf001=00", "tenant=0", "tenant=4294967296",
	} {
		s := parsed(t, text)
		if err := s.EncodeCompact(make([]byte, CompactBytes)); !errors.Is(err, ErrCompact) {
			t.Errorf("%s: %v, want ErrCompact", text, err)
		}
	}
	if err := new(Set).EncodeCompact(make([]byte, CompactBytes-1)); !errors.Is(err, ErrSpace) {
		t.Errorf("too little room: %v", err)
	}
	for _, c := range []struct {
		name  string
		b     []byte
		err   error
		errno error
	}{
		{"zeroes", make([]byte, CompactBytes), ErrNone, nil},
		{"short", []byte{compactSet, 1}, ErrNone, nil},
		{"newer", []byte{0xa7, 2, 15: 0}, ReasonVersion, nil},
		{"newer, required", []byte{0xa7, 2, 6: 2, 15: 0}, ReasonVersion, ErrnoRefused},
		{"flags", []byte{0xa7, 1, 5: 4, 15: 0}, ReasonReserved, nil},
		{"requires what is not there", []byte{0xa7, 1, 6: 2, 15: 0}, ReasonHeader, ErrnoInvalid},
		{"a bad value", []byte{0xa7, 1, 4: 9, 15: 0}, nil, nil},
		{"a bad value, required", []byte{0xa7, 1, 4: 9, 6: 1 << 5, 15: 0}, nil, ErrnoInvalid},
	} {
		var s Set
		if err := s.DecodeCompact(c.b); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
		var r Results
		r.Begin(&s, Request{Direction: Write, Bytes: 4096}, 1)
		if _, errno := s.CheckRequired(&r); errno != 0 && error(errno) != c.errno ||
			errno == 0 && c.errno != nil {
			t.Errorf("%s: fails with %v, want %v", c.name, errno, c.errno)
		}
	}
}

func TestCompactResults(t *testing.T) {
	s := parsed(t, "hint=once,prio=rt/0,timing,tenant=7")
	var r, got Results
	r.Begin(s, Request{Direction: Read, Bytes: 4096}, 0x1234)
	r.Origin = OriginSSD
	r.Handle(IDHint)
	r.Ignore(IDPriority, ReasonDisabled)
	r.SetTiming(Timing{Total: 1500 * time.Microsecond})
	b := bytes.Repeat([]byte{0xee}, CompactBytes)
	if err := r.EncodeCompact(b); err != nil {
		t.Fatal(err)
	}
	if err := got.DecodeCompact(b); err != nil {
		t.Fatal(err)
	}
	if got.Origin != OriginSSD || got.Blocks != 1 || len(got.Devices()) != 1 ||
		got.Devices()[0] != 0x1234 {
		t.Errorf("got %v", &got)
	}
	for id := ID(1); id < idEnd; id++ {
		if got.For(id).Status != r.For(id).Status {
			t.Errorf("%v: %v, want %v", id, got.For(id).Status, r.For(id).Status)
		}
	}
	if tm, ok := got.Timing(); !ok || tm.Total != 1500*time.Microsecond {
		t.Errorf("timing %v %v", tm, ok)
	}
	for _, c := range []struct {
		at, v byte
		err   error
	}{
		{0, 0, ErrNone},
		{1, 2, ReasonVersion},
		{1, 1 | 15<<4, ReasonHeader},
		{4, 0xff, ReasonValue},
		{8, 0x10, ReasonHeader},
		{10, 1, ReasonHeader},
	} {
		bad := bytes.Clone(b)
		bad[c.at] = c.v
		if err := got.DecodeCompact(bad); !errors.Is(err, c.err) || got.Origin != OriginUnknown {
			t.Errorf("byte %d = %#x: %v, want %v and silence", c.at, c.v, err, c.err)
		}
	}
}

func FuzzCompact(f *testing.F) {
	f.Add([]byte{0xa7, 1, 0x35, 0x21, 3, 3, 2, 0, 1, 0, 0, 0, 9, 0, 0, 0})
	f.Add([]byte{0xa8, 0x31, 1, 0, 0x21, 0x43, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Set
		if s.DecodeCompact(b) == nil && s.bad == 0 {
			again := make([]byte, CompactBytes)
			if err := s.EncodeCompact(again); err != nil {
				t.Fatalf("%x is taken, but cannot be written: %v", b, err)
			}
			var o Set
			if err := o.DecodeCompact(again); err != nil || o.String() != s.String() {
				t.Fatalf("%x: %s, then %s", b, s.String(), o.String())
			}
		}
		var r Results
		if r.DecodeCompact(b) == nil {
			again := make([]byte, CompactBytes)
			if err := r.EncodeCompact(again); err != nil || !bytes.Equal(again[:9], b[:9]) {
				t.Fatalf("%x, then %x (%v)", b, again, err)
			}
		}
	})
}

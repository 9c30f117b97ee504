package attrs

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// ent is the bytes of an entry: id, flags, value and padding.
func ent(id ID, flags byte, value ...byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(id))
	b = append(b, flags, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	b = append(append(b, 0, 0), value...)
	return append(b, make([]byte, padded(len(value))-len(value))...)
}

// frame is a set of these entries, with the right header.
func frame(entries ...[]byte) []byte {
	b := []byte(setMagic)
	b = append(b, version, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(entries)))
	b = append(b, make([]byte, 8)...)
	for _, e := range entries {
		b[5] |= e[2] & flagRequired
		b = append(b, e...)
	}
	le.PutUint32(b[8:], uint32(len(b)))
	return b
}

// with is b with bytes overwritten at off.
func with(b []byte, off int, bytes ...byte) []byte {
	b = append([]byte(nil), b...)
	copy(b[off:], bytes)
	return b
}

// TestDecodeUnreadable has a case for each way a frame can be wrong.
func TestDecodeUnreadable(t *testing.T) {
	good := frame(ent(1, 0, 2), ent(9, 0, 1, 2, 3, 4, 5, 6, 7, 8))
	required := frame(ent(1, flagRequired, 2))
	many := make([][]byte, MaxUnknown+1)
	for i := range many {
		many[i] = ent(100+ID(i), 0)
	}
	long := frame(ent(PrivateMin, 0, make([]byte, MaxBytes-16)...))
	for _, c := range []struct {
		name     string
		b        []byte
		want     error
		required bool
	}{
		{"good", good, nil, false},
		{"more behind it", append(append([]byte(nil), good...), 1, 2, 3), nil, false},
		{"no entries", frame(), nil, false},
		{"as many unknown ones as may be", frame(many[1:]...), nil, false},
		{"nothing", nil, ErrNone, false},
		{"zeroes", make([]byte, 512), ErrNone, false},
		{"three bytes", good[:3], ErrNone, false},
		{"other magic", with(good, 3, 'R'), ErrNone, false},
		{"magic only", good[:4], ReasonLength, false},
		{"version", with(good, 4, 2), ReasonVersion, false},
		{"version 0", with(good, 4, 0), ReasonVersion, false},
		{"version, required", with(required, 4, 2), ReasonVersion, true},
		{"cut header", good[:15], ReasonLength, false},
		{"cut entry", good[:len(good)-1], ReasonLength, false},
		{"length 0", with(good, 8, 0), ReasonLength, false},
		{"length below the header", with(good, 8, 8), ReasonLength, false},
		{"length not a multiple of 8", with(good, 8, 44), ReasonLength, false},
		{"length beyond the buffer", with(good, 8, 56), ReasonLength, false},
		{"length huge", with(good, 8, 0xf8, 0xff, 0xff, 0xff), ReasonLength, false},
		{"length beyond the limit", long, ReasonLength, false},
		{"length, required", with(required, 8, 0xff), ReasonLength, true},
		{"header flags", with(good, 5, 2), ReasonHeader, false},
		{"header reserved", with(good, 13, 1), ReasonHeader, false},
		{"required flag without need", with(good, 5, 1), ReasonHeader, true},
		{"required flag missing", with(required, 5, 0), ReasonHeader, true},
		{"count too small", with(good, 6, 1), ReasonTrailing, false},
		{"count too large", with(good, 6, 3), ReasonTruncated, false},
		{"value beyond the length", with(good, 36, 9), ReasonTruncated, false},
		{"value huge", with(good, 36, 0xff, 0xff), ReasonTruncated, false},
		{"descending", frame(ent(9, 0, make([]byte, 8)...), ent(1, 0, 2)), ReasonOrder, false},
		{"descending, required before", frame(ent(9, 1, make([]byte, 8)...), ent(1, 0, 2)), ReasonOrder, true},
		{"id 0", with(good, 16, 0), ReasonOrder, false},
		{"id 65535", with(good, 32, 0xff, 0xff), ReasonOrder, false},
		{"too many unknown", frame(many...), ReasonTooMany, false},
	} {
		var s Set
		s.SetTrace(1) // must be gone
		err := s.Decode(c.b)
		if err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
			continue
		}
		why, _ := c.want.(Reason)
		if s.Frame() != why || s.frameRequired != c.required {
			t.Errorf("%s: frame %v, required %t", c.name, s.Frame(), s.frameRequired)
		}
		if c.want != nil && (s.has != 0 || s.nUnknown != 0 || s.Empty() != (c.want == ErrNone)) {
			t.Errorf("%s: something was taken: %v", c.name, &s)
		}
		var r Results
		r.Begin(&s, Request{Direction: Read, Bytes: 4096}, 1)
		want := unix.Errno(0)
		if c.required {
			want = ErrnoInvalid
			if why == ReasonVersion {
				want = ErrnoRefused
			}
		}
		if _, errno := s.CheckRequired(&r); errno != want || r.Frame() != why {
			t.Errorf("%s: fails with %v, results say %v", c.name, errno, r.Frame())
		}
	}
}

// TestDecodeInvalid has, for each attribute, what must not be taken; the others of the set stand.
func TestDecodeInvalid(t *testing.T) {
	sums := func(n int) []byte { return make([]byte, n) }
	u64 := func(head ...byte) []byte { return append(head, make([]byte, 8-len(head))...) }
	for _, c := range []struct {
		name string
		id   ID
		want Reason
		e    [][]byte
	}{
		{"hint too large", 1, ReasonValue, [][]byte{ent(1, 0, 8)}},
		{"hint empty", 1, ReasonSize, [][]byte{ent(1, 0)}},
		{"hint too long", 1, ReasonSize, [][]byte{ent(1, 0, 1, 0)}},
		{"hint twice", 1, ReasonDuplicate, [][]byte{ent(1, 0, 1), ent(1, 0, 1)}},
		{"hint three times", 1, ReasonDuplicate, [][]byte{ent(1, 0, 1), ent(1, 0, 1), ent(1, 0, 1)}},
		{"flags", 1, ReasonReserved, [][]byte{ent(1, 2, 1)}},
		{"reserved 3", 1, ReasonReserved, [][]byte{with(ent(1, 0, 1), 3, 1)}},
		{"reserved 6", 1, ReasonReserved, [][]byte{with(ent(1, 0, 1), 6, 1)}},
		{"reserved 7", 1, ReasonReserved, [][]byte{with(ent(1, 0, 1), 7, 1)}},
		{"padding, first", 1, ReasonReserved, [][]byte{with(ent(1, 0, 1), 9, 1)}},
		{"padding, last", 1, ReasonReserved, [][]byte{with(ent(1, 0, 1), 15, 1)}},
		{"mode 0", 2, ReasonValue, [][]byte{ent(2, 0, 0)}},
		{"mode 4", 2, ReasonValue, [][]byte{ent(2, 0, 4)}},
		{"mode size", 2, ReasonSize, [][]byte{ent(2, 0, 1, 1)}},
		{"class 0", 3, ReasonValue, [][]byte{ent(3, 0, 0, 4)}},
		{"class 4", 3, ReasonValue, [][]byte{ent(3, 0, 4, 4)}},
		{"level 8", 3, ReasonValue, [][]byte{ent(3, 0, 1, 8)}},
		{"prio size", 3, ReasonSize, [][]byte{ent(3, 0, 1)}},
		{"algorithm 0", 4, ReasonValue, [][]byte{ent(4, 0, u64(0, 2)...)}},
		{"algorithm 4", 4, ReasonValue, [][]byte{ent(4, 0, u64(4, 2)...)}},
		{"nothing to do", 4, ReasonValue, [][]byte{ent(4, 0, u64(1, 0)...)}},
		{"checksum flags", 4, ReasonReserved, [][]byte{ent(4, 0, u64(1, 6)...)}},
		{"checksum reserved", 4, ReasonReserved, [][]byte{ent(4, 0, u64(1, 2, 1)...)}},
		{"checksum reserved at the end", 4, ReasonReserved, [][]byte{ent(4, 0, 1, 2, 0, 0, 0, 0, 0, 1)}},
		{"checksum short", 4, ReasonSize, [][]byte{ent(4, 0, 1, 2, 0, 0)}},
		{"none to verify", 4, ReasonSize, [][]byte{ent(4, 0, u64(1, 1)...)}},
		{"sums without verify", 4, ReasonSize, [][]byte{ent(4, 0, append(u64(1, 2), sums(8)...)...)}},
		{"half a sum", 4, ReasonSize, [][]byte{ent(4, 0, append(u64(1, 1), sums(12)...)...)}},
		{"half a crc32c", 4, ReasonSize, [][]byte{ent(4, 0, append(u64(2, 1), sums(6)...)...)}},
		{"257 sums", 4, ReasonSize, [][]byte{ent(4, 0, append(u64(2, 1), sums(4*257)...)...)}},
		{"lifetime 0", 5, ReasonValue, [][]byte{ent(5, 0, 0)}},
		{"lifetime 6", 5, ReasonValue, [][]byte{ent(5, 0, 6)}},
		{"lifetime size", 5, ReasonSize, [][]byte{ent(5, 0, 1, 0, 0, 0)}},
		{"tenant kind", 6, ReasonValue, [][]byte{ent(6, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2)}},
		{"tenant short", 6, ReasonSize, [][]byte{ent(6, 0, 1, 0, 0, 0, 0, 0, 0, 0)}},
		{"tenant long", 6, ReasonSize, [][]byte{ent(6, 0, sums(16)...)}},
		{"deadline 0", 7, ReasonValue, [][]byte{ent(7, 0, 0, 0, 0, 0)}},
		{"deadline size", 7, ReasonSize, [][]byte{ent(7, 0, sums(8)...)}},
		{"timing with a value", 8, ReasonSize, [][]byte{ent(8, 0, 1)}},
		{"trace short", 9, ReasonSize, [][]byte{ent(9, 0, 1)}},
		{"unknown twice", 100, ReasonDuplicate, [][]byte{ent(100, 0, 1), ent(100, 0, 2)}},
		{"unknown with flags", 100, ReasonReserved, [][]byte{ent(100, 0x80, 1)}},
		{"unknown with padding", 100, ReasonReserved, [][]byte{with(ent(100, 0, 1), 12, 1)}},
	} {
		for _, required := range []bool{false, true} {
			// A valid attribute before or after it, which must stand.
			other, beside := ID(1), ent(1, 0, 2)
			if c.id == 1 {
				other, beside = 9, ent(9, 0, 1, 2, 3, 4, 5, 6, 7, 8)
			}
			var entries [][]byte
			for i, e := range c.e {
				if required && i == len(c.e)-1 {
					e = with(e, 2, e[2]|flagRequired)
				}
				entries = append(entries, e)
			}
			if other < c.id {
				entries = append([][]byte{beside}, entries...)
			} else {
				entries = append(entries, beside)
			}
			var s Set
			if err := s.Decode(frame(entries...)); err != nil {
				t.Errorf("%s: the whole set was refused: %v", c.name, err)
				continue
			}
			if s.Has(c.id) || s.Invalid(c.id) != c.want || s.Required(c.id) != required || !s.Has(other) {
				t.Errorf("%s: %v, want %v", c.name, &s, c.want)
			}
			if _, ok := s.UnknownValue(c.id); ok {
				t.Errorf("%s: an invalid value is given out", c.name)
			}
			var r Results
			r.Begin(&s, Request{Direction: Write, Bytes: 4096}, 1)
			if a := r.For(c.id); a.Status != Invalid || a.Reason != c.want {
				t.Errorf("%s: answered %v", c.name, a)
			}
			r.Handle(other)
			if id, errno := s.CheckRequired(&r); required != (errno == ErrnoInvalid && id == c.id) {
				t.Errorf("%s, required %t: %v, %v", c.name, required, id, errno)
			}
		}
	}
}

// TestDecodeLimits takes the least and the largest value of everything.
func TestDecodeLimits(t *testing.T) {
	for _, text := range []string{
		"hint=default", "hint=prefetch", "mode=writethrough", "mode=writearound", "prio=rt/0", "prio=idle/7",
		"lifetime=none", "lifetime=extreme", "tenant=0", "tenant=cgroup:18446744073709551615",
		"deadline=1us", "deadline=4294967295us", "timing", "trace=0x0", "trace=0xffffffffffffffff",
		"checksum=xxh64", "checksum=crc64-nvme:0000000000000001", "checksum=crc32c+return:ffffffff",
	} {
		s := parsed(t, text)
		b := make([]byte, SlotBytes)
		n, err := s.Encode(b)
		if err != nil {
			t.Fatal(err)
		}
		var got Set
		if err := got.Decode(b[:n]); err != nil || got.String() != text {
			t.Errorf("%s: %v, %v", text, &got, err)
		}
	}
}

// TestDecodeAnywhere decodes every beginning of a set, and every set with one byte changed, without
// a panic; what is accepted encodes to the same bytes.
func TestDecodeAnywhere(t *testing.T) {
	s := fullSet()
	if err := s.AddUnknown(0xf001, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	s.Require(IDHint, 0xf001)
	b := make([]byte, s.EncodedSize())
	if _, err := s.Encode(b); err != nil {
		t.Fatal(err)
	}
	for n := range b {
		var got Set
		if err := got.Decode(b[:n:n]); err == nil {
			t.Errorf("%d of %d bytes were accepted", n, len(b))
		}
	}
	for i := range b {
		for _, x := range []byte{1, 2, 0x10, 0x80, 0xff} {
			checkLaw(t, with(b, i, b[i]^x))
		}
	}
}

// checkLaw is what holds of all input.
func checkLaw(t *testing.T, b []byte) {
	t.Helper()
	before := bytes.Clone(b)
	var s Set
	err := s.Decode(b)
	if !bytes.Equal(b, before) {
		t.Fatal("Decode wrote to its input")
	}
	_, _ = s.String(), s.Explain()
	out := make([]byte, MaxBytes)
	n, encErr := s.Encode(out)
	switch {
	case err != nil:
		if s.has != 0 || s.nUnknown != 0 {
			t.Fatalf("%v, but it has %v", err, &s)
		}
	case encErr == nil:
		if !bytes.Equal(out[:n], b[:n]) || int(le.Uint32(b[8:])) != n {
			t.Fatalf("decoded\n%x\nencodes to\n%x", b, out[:n])
		}
		if text, err := ParseSet(s.String()); err != nil || text.String() != s.String() {
			t.Fatalf("%q: %v", s.String(), err)
		}
	case encErr != ErrInvalid:
		t.Fatalf("accepted, but does not encode: %v", encErr)
	}
}

func FuzzDecodeSet(f *testing.F) {
	s := fullSet()
	b := make([]byte, s.EncodedSize())
	if _, err := s.Encode(b); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(frame(ent(1, 1, 99), ent(1, 0, 1), ent(100, 0), ent(100, 1, 1), ent(0xf001, 0, 1, 2, 3)))
	f.Add(frame())
	f.Fuzz(func(t *testing.T, b []byte) { checkLaw(t, b) })
}

func FuzzParseSet(f *testing.F) {
	f.Add(fullText)
	f.Add("hint=bypass,prio=rt/2,lifetime=short,tenant=7,deadline=500us,required:hint")
	f.Add("0xf001=c0ffee, required:0xf001,timing,checksum=xxh64")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSet(text)
		if err != nil {
			return
		}
		canonical := s.String()
		again, err := ParseSet(canonical)
		if err != nil || again.String() != canonical {
			t.Fatalf("%q: %q: %v", text, canonical, err)
		}
		b := make([]byte, MaxBytes)
		n, err := s.Encode(b)
		if err == ErrSpace {
			return
		}
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		var got Set
		if err := got.Decode(b[:n]); err != nil || got.String() != canonical {
			t.Fatalf("%q: decoded %v, %v", canonical, &got, err)
		}
	})
}

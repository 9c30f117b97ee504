package attrs

import (
	"bytes"
	"testing"
)

// TestDecodersRemember decodes all kinds of sets and results in every order of two: what was decoded
// before changes nothing, and nothing that is remembered refers to the buffer.
func TestDecodersRemember(t *testing.T) {
	var sets [][]byte
	for _, text := range []string{
		"", "hint=pin", "hint=bypass,required:hint", "hint=cache,tenant=7", "hint=cache,tenant=8",
		"timing,trace=7", "checksum=crc32c+return:01020304:a0b0c0d0", "deadline=500us",
	} {
		s, err := ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		var b [MaxBytes]byte
		n, err := s.Encode(b[:])
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, b[:n:n])
	}
	bad := bytes.Clone(sets[1])
	bad[16+8] = 99 // no such hint
	sets = append(sets, bad, []byte("UBAS"), nil)

	var results [][]byte
	for _, enc := range sets {
		var s Set
		_ = s.Decode(enc)
		var r Results
		r.Begin(&s, Request{Read, 0, BlockSize}, 3)
		for _, id := range []ID{IDHint, IDTenant, IDTrace} {
			if r.Pending(&s, id) {
				r.Handle(id)
			}
		}
		if s.Has(IDTiming) {
			r.SetTiming(Timing{Total: 5})
		}
		var b [MaxBytes]byte
		n, err := r.Encode(b[:])
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, b[:n:n])
	}
	results = append(results, []byte("UBAR"), nil)

	var sd SetDecoder
	var rd ResultsDecoder
	decodeSet := func(b []byte) {
		t.Helper()
		b = bytes.Clone(b)
		var got, want Set
		errGot, errWant := sd.Decode(&got, b), want.Decode(b)
		if errGot != errWant || got.String() != want.String() || got.Frame() != want.Frame() ||
			got.Invalid(IDHint) != want.Invalid(IDHint) {
			t.Fatalf("% x: %q %v, want %q %v", b, got.String(), errGot, want.String(), errWant)
		}
		clear(b)
	}
	for _, a := range sets {
		for _, b := range sets {
			decodeSet(a)
			decodeSet(b)
			decodeSet(b)
		}
	}
	decodeResults := func(b []byte) {
		t.Helper()
		b = bytes.Clone(b)
		var got, want Results
		errGot, errWant := rd.Decode(&got, b), want.Decode(b)
		if errGot != errWant || got.String() != want.String() || got.Blocks != want.Blocks {
			t.Fatalf("% x: %q %v, want %q %v", b, got.String(), errGot, want.String(), errWant)
		}
		clear(b)
	}
	for _, a := range results {
		for _, b := range results {
			decodeResults(a)
			decodeResults(b)
			decodeResults(b)
		}
	}
}

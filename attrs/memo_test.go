package attrs

import (
	"bytes"
	"testing"
	"unsafe"
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

	var re ResultsEncoder
	encodeResults := func(enc []byte) {
		t.Helper()
		var r Results
		_ = r.Decode(enc)
		var got, want [MaxBytes]byte
		nGot, errGot := re.Encode(&r, got[:])
		nWant, errWant := r.Encode(want[:])
		if errGot != errWant || !bytes.Equal(got[:nGot], want[:nWant]) {
			t.Fatalf("% x, %v, want % x, %v", got[:nGot], errGot, want[:nWant], errWant)
		}
		if n, err := re.Encode(&r, got[:16]); err == nil {
			t.Fatalf("%d bytes in 16", n)
		}
		clear(got[:])
	}
	for _, a := range results {
		for _, b := range results {
			encodeResults(a)
			encodeResults(b)
			encodeResults(b)
		}
	}
}

// TestRepeat repeats answers in every order of two, for requests of several sizes and from several places, and
// changes them: what is encoded is what the results say.
func TestRepeat(t *testing.T) {
	var list []Results
	for _, text := range []string{"hint=pin", "hint=cache,tenant=7", "hint=cache,tenant=8,prio=rt/1", "timing,trace=7"} {
		var r Results
		s := parsed(t, text)
		r.Begin(s, Request{Read, 0, BlockSize}, 3)
		for id := ID(1); id < idEnd; id++ {
			if r.Pending(s, id) {
				r.Handle(id)
			}
		}
		if !r.Repeatable() {
			t.Fatalf("%s cannot be repeated", text)
		}
		list = append(list, r)
	}
	changes := []func(r *Results){
		func(*Results) {},
		func(r *Results) { r.Origin = OriginSSD },
		func(r *Results) { r.Ignore(IDHint, ReasonBusy) },
		func(r *Results) { r.SetTiming(Timing{Total: 5}) },
		func(r *Results) { r.SetChecksums(CRC32C, []byte{1, 2, 3, 4}) },
		func(r *Results) { r.SetMismatch(CRC32C, 1) },
		func(r *Results) { r.Join(&Results{}) },
		func(r *Results) { r.Combine(&list[0]) },
		func(r *Results) { r.Clear() },
	}
	var e ResultsEncoder
	var r Results
	check := func(from *Results, bytes int64, change func(r *Results)) {
		t.Helper()
		r.Repeat(from, bytes)
		want := *from
		if want.Blocks = uint32(bytes / BlockSize); r.String() != want.String() {
			t.Fatalf("%v repeats %v", &r, from)
		}
		change(&r)
		var got, direct [MaxBytes]byte
		nGot, errGot := e.Encode(&r, got[:])
		nWant, errWant := r.Encode(direct[:])
		if errGot != errWant || string(got[:nGot]) != string(direct[:nWant]) {
			t.Fatalf("%v: % x, %v, want % x, %v", &r, got[:nGot], errGot, direct[:nWant], errWant)
		}
		clear(got[:])
	}
	for i := range list {
		for k := range list {
			for _, change := range changes {
				check(&list[i], BlockSize, change)
				check(&list[k], BlockSize, changes[0])
				check(&list[k], 2*BlockSize, changes[0])
				check(&list[k], 2*BlockSize, change)
			}
		}
	}
	r.Begin(parsed(t, "checksum=crc32c+return"), Request{Read, 0, BlockSize}, 3)
	if r.SetChecksums(CRC32C, []byte{1, 2, 3, 4}); r.Repeatable() {
		t.Error("checksums are repeated")
	}
}

// TestStamp: sets have a stamp in common while they say the same and are as they were decoded.
func TestStamp(t *testing.T) {
	var d SetDecoder
	decode := func(text string) *Set {
		t.Helper()
		s, err := ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		if s.Stamp() != 0 {
			t.Errorf("%s has a stamp", text)
		}
		var b [MaxBytes]byte
		n, err := s.Encode(b[:])
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Decode(&s, b[:n]); err != nil {
			t.Fatal(err)
		}
		return &s
	}
	const text = "hint=cache,tenant=7"
	a, b := decode(text), decode(text)
	if a.Stamp() == 0 || a.Stamp() != b.Stamp() {
		t.Errorf("stamps %d and %d", a.Stamp(), b.Stamp())
	}
	if c := decode("hint=cache,tenant=8"); c.Stamp() == 0 || c.Stamp() == a.Stamp() {
		t.Errorf("another set has stamp %d, the first has %d", c.Stamp(), a.Stamp())
	}
	if c := decode("checksum=crc32c:01020304:a0b0c0d0"); c.Stamp() != 0 {
		t.Error("checksums have a stamp")
	}
	other := parsed(t, "prio=rt/1")
	other.Mark(SourceRule)
	for name, change := range map[string]func(s *Set){
		"clear":    func(s *Set) { s.Clear() },
		"hint":     func(s *Set) { s.SetHint(HintBypass) },
		"invalid":  func(s *Set) { s.SetHint(99) },
		"mode":     func(s *Set) { s.SetMode(Writeback) },
		"priority": func(s *Set) { s.SetPriority(Priority{Class: ClassRT}) },
		"lifetime": func(s *Set) { s.SetLifetime(LifetimeLong) },
		"trace":    func(s *Set) { s.SetTrace(1) },
		"timing":   func(s *Set) { s.SetTiming() },
		"tenant":   func(s *Set) { s.SetTenant(Tenant{ID: 7, Cgroup: true}) },
		"deadline": func(s *Set) { s.SetDeadline(1000) },
		"checksum": func(s *Set) { s.SetChecksum(Checksum{Algorithm: CRC32C, Return: true}) },
		"required": func(s *Set) { s.Require(IDHint) },
		"source":   func(s *Set) { s.Mark(SourceRule) },
		"merge":    func(s *Set) { s.Merge(other) },
		"ioprio":   func(s *Set) { s.AddIOPrio(uint16(2<<13 | 1)) },
		"cgroup":   func(s *Set) { s.AddCgroup(9) },
		"unknown":  func(s *Set) { _ = s.AddUnknown(0xf001, []byte{1}) },
	} {
		s := decode(text)
		if change(s); s.Stamp() != 0 {
			t.Errorf("%s: the stamp stays", name)
		}
		// What was prepared is of no use any more, either.
		s, plain := decode(text), decode(text)
		s.Prepare()
		change(s)
		change(plain)
		var got, want [MaxBytes]byte
		nGot, errGot := s.Encode(got[:])
		nWant, errWant := plain.Encode(want[:])
		if errGot != errWant || string(got[:nGot]) != string(want[:nWant]) {
			t.Errorf("%s: % x, %v, want % x, %v", name, got[:nGot], errGot, want[:nWant], errWant)
		}
	}
}

func TestPrepare(t *testing.T) {
	for _, text := range []string{
		"", "hint=pin", "hint=cache,tenant=7,required:tenant", "timing,trace=7", "checksum=crc32c+return:01020304", "0xf001=aabb",
	} {
		s := parsed(t, text)
		s.changed()
		var got, want [MaxBytes]byte
		n, err := s.Encode(want[:])
		if err != nil {
			t.Fatal(err)
		}
		s.Prepare()
		if (s.ready == nil) != (len(s.sums) != 0 || s.nUnknown != 0) {
			t.Errorf("%q: prepared %t", text, s.ready != nil)
		}
		if m, err := s.Encode(got[:]); err != nil || string(got[:m]) != string(want[:n]) {
			t.Errorf("%q: % x, %v", text, got[:m], err)
		}
		if m, err := s.Encode(got[:n-1]); err != ErrSpace {
			t.Errorf("%q in %d bytes: %d, %v", text, n-1, m, err)
		}
	}
}

// TestShort: what goes out with a short encoding, and is compared with it, has nothing of what was said or answered before,
// perhaps to others.
func TestShort(t *testing.T) {
	const long, short = "hint=cache,tenant=7,trace=1,prio=rt/4,lifetime=short", "hint=cache"
	encoded := func(text string) []byte {
		t.Helper()
		set, err := ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, MaxBytes)
		n, err := set.Encode(b)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n:n]
	}
	set, err := ParseSet(short)
	if err != nil {
		t.Fatal(err)
	}
	slot := bytes.Repeat([]byte{0xee}, MaxBytes)
	words, size := set.Short()
	n := int(size)
	words.CopyTo(slot)
	if !bytes.Equal(slot[:n], encoded(short)) || !bytes.Equal(slot[n:unsafe.Sizeof(*words)], make([]byte, unsafe.Sizeof(*words)-uintptr(n))) {
		t.Errorf("a set of %d bytes goes out as % x", n, slot[:unsafe.Sizeof(*words)])
	}
	var dec SetDecoder
	var e ResultsEncoder
	for _, text := range []string{short, long, short} {
		var s Set
		if err := dec.Decode(&s, encoded(text)); err != nil {
			t.Fatal(err)
		}
		last, size := dec.Last()
		if got := int(size) == n && last.Other(words) == 0; got != (text == short) {
			t.Errorf("after %q it is the same: %v", text, got)
		}
		if text == long && size != NoShort {
			t.Errorf("a set of %d bytes is short", size)
		}
		var r Results
		r.Begin(&s, Request{Direction: Read, Bytes: BlockSize}, Device(9))
		if !r.Repeatable() {
			t.Fatal("cannot be repeated")
		}
		if _, err := e.Encode(&r, make([]byte, MaxBytes)); err != nil {
			t.Fatal(err)
		}
		if words, n := e.Short(&r); n != NoShort {
			b := make([]byte, MaxBytes)
			words.CopyTo(b)
			if !bytes.Equal(b[n:], make([]byte, MaxBytes-n)) {
				t.Errorf("the answer to %q goes out as % x", text, b[:unsafe.Sizeof(*words)])
			}
		} else if text == short {
			t.Error("the answer is not short")
		}
	}
	for i := range words {
		if other := *words; true {
			other[i] ^= 1 << (9 * i)
			if words.Other(&other) == 0 {
				t.Errorf("word %d is not compared", i)
			}
		}
	}
	if _, size := new(SetDecoder).Last(); size != NoShort {
		t.Errorf("nothing has %d bytes", size)
	}
}

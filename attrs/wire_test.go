package attrs

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
)

// fullResults answers everything there is.
func fullResults(t testing.TB) *Results {
	t.Helper()
	s := *parsed(t, fullText+",0xf001=c0ffee")
	rule := parsed(t, "hint=cache,tenant=7")
	rule.Mark(SourceRule)
	s.Merge(rule)
	var r Results
	r.Begin(&s, Request{Write, 8192, 8192}, 3)
	r.Origin = OriginSSD
	r.Ignore(IDHint, ReasonQuota)
	for _, id := range []ID{IDMode, IDPriority, IDTenant, IDDeadline, IDTrace} {
		r.Handle(id)
	}
	r.SetChecksums(CRC32C, s.Checksum().Sums)
	r.Answer(IDLifetime, Unsupported, ReasonKernel)
	r.SetTiming(Timing{Queued: 1000, SSD: 20000, Backing: 0, Total: 21500})
	return &r
}

// goldenCases are what testdata/v1.txt has, in order.
func goldenCases(t *testing.T) []struct {
	name, text string
	b          []byte
} {
	var list []struct {
		name, text string
		b          []byte
	}
	add := func(name, text string, encode func([]byte) (int, error)) {
		b := make([]byte, MaxBytes)
		n, err := encode(b)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, struct {
			name, text string
			b          []byte
		}{name, text, b[:n]})
	}
	for _, c := range [][2]string{
		{"set: empty", ""},
		{"set: a hint, required", "hint=bypass,required:hint"},
		{"set: everything", fullText},
		{"set: private ids", "timing,0xf001=c0ffee,0xfffe=,required:0xf001"},
		{"set: crc64-nvme to verify", "checksum=crc64-nvme:0102030405060708"},
	} {
		s := parsed(t, c[1])
		add(c[0], s.String(), s.Encode)
	}
	r := fullResults(t)
	add("results: everything", r.String(), r.Encode)
	m := sumPiece(4, nil)
	m.SetMismatch(CRC32C, 2)
	add("results: a mismatch in block 2", m.String(), m.Encode)
	var u Results
	u.Begin(&Set{setHead: setHead{frame: ReasonOrder}}, Request{Read, 0, 4096}, 9)
	add("results: of a set that is unreadable", u.String(), u.Encode)
	return list
}

// TestGolden keeps the format: what version 1 looks like, all later programs must read and write.
func TestGolden(t *testing.T) {
	const file = "testdata/v1.txt"
	var b strings.Builder
	b.WriteString("# The wire format of attributes and results, version 1. Written by go test ./attrs -update.\n")
	for _, c := range goldenCases(t) {
		fmt.Fprintf(&b, "\n## %s\n", c.name)
		for line := range strings.Lines(c.text) {
			b.WriteString("| " + strings.TrimSpace(line) + "\n")
		}
		for i := 0; i < len(c.b); i += 8 {
			fmt.Fprintf(&b, "%03x: % x\n", i, c.b[i:i+8])
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Errorf("%s differs from what is encoded now:\n%s", file, b.String())
	}
	// And from the file's bytes back to the text beside them.
	sections := strings.Split(string(have), "\n## ")[1:]
	if len(sections) != len(goldenCases(t)) {
		t.Fatalf("%d sections", len(sections))
	}
	for _, section := range sections {
		name, text, raw := goldenSection(t, section)
		var got string
		if strings.HasPrefix(name, "set") {
			var s Set
			if err := s.Decode(raw); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = s.String()
		} else {
			var r Results
			if err := r.Decode(raw); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = strings.TrimSuffix(r.String(), "\n")
		}
		if got != text {
			t.Errorf("%s: decoded\n%s\nwant\n%s", name, got, text)
		}
	}
}

func goldenSection(t *testing.T, section string) (name, text string, raw []byte) {
	t.Helper()
	name, rest, _ := strings.Cut(section, "\n")
	var lines []string
	for line := range strings.Lines(rest) {
		line = strings.TrimSuffix(line, "\n")
		if after, ok := strings.CutPrefix(line, "| "); ok {
			lines = append(lines, after)
		} else if _, digits, ok := strings.Cut(line, ": "); ok {
			b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, b...)
		}
	}
	return name, strings.Join(lines, "\n"), raw
}

func TestEncodeSpace(t *testing.T) {
	s, r := fullSet(), fullResults(t)
	for name, encode := range map[string]func([]byte) (int, error){"set": s.Encode, "results": r.Encode} {
		n, err := encode(make([]byte, MaxBytes))
		if err != nil {
			t.Fatal(err)
		}
		b := bytes.Repeat([]byte{0xee}, n+8)
		if _, err := encode(b[: n-1 : n-1]); err != ErrSpace || !bytes.Equal(b, bytes.Repeat([]byte{0xee}, n+8)) {
			t.Errorf("%s: one byte too few: %v", name, err)
		}
		if m, err := encode(b[:n]); err != nil || m != n || b[n] != 0xee {
			t.Errorf("%s: exactly enough: %d, %v", name, m, err)
		}
		// Encoding overwrites all of what was there before, so dirty and clean memory agree.
		clean := make([]byte, n)
		if _, err := encode(clean); err != nil || !bytes.Equal(clean, b[:n]) {
			t.Errorf("%s: depends on what the buffer had", name)
		}
	}
	if err := s.AddUnknown(0xf001, make([]byte, MaxBytes)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Encode(make([]byte, 4*MaxBytes)); err != ErrSpace {
		t.Errorf("above the limit: %v", err)
	}
	r.addDevice(77)
	if _, err := r.Encode(make([]byte, MaxBytes)); err != ErrSeveral {
		t.Errorf("two devices: %v", err)
	}
}

// TestSlot: what FORMAT.md says of sizes.
func TestSlot(t *testing.T) {
	s := parsed(t, strings.Replace(fullText, "crc32c+return:01020304:a0b0c0d0", "xxh64", 1))
	if n := s.EncodedSize(); n != 160 {
		t.Errorf("all attributes take %d bytes", n)
	}
	for n := 44; n <= 45; n++ {
		big := *s
		big.SetChecksum(Checksum{Algorithm: XXH64, Sums: make([]byte, 8*n)})
		if _, err := big.Encode(make([]byte, SlotBytes)); (err == nil) != (n == 44) {
			t.Errorf("%d checksums in a slot: %v", n, err)
		}
	}
	for i := range ID(MaxUnknown) {
		if err := s.AddUnknown(PrivateMin+i, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.EncodedSize(); n != 160+128 {
		t.Errorf("with unknown ones: %d bytes", n)
	}
	var r Results
	r.Begin(s, Request{Write, 0, 4096}, 1)
	for id := ID(1); id < idEnd; id++ {
		r.Handle(id)
	}
	r.SetMismatch(XXH64, 0)
	if n := r.EncodedSize(); n != 264 || n > SlotBytes {
		t.Errorf("results take %d bytes", n)
	}
	// The largest of all fits the limit.
	s.SetChecksum(Checksum{Algorithm: XXH64, Return: true, Sums: make([]byte, 8*MaxBlocks)})
	r.SetChecksums(XXH64, make([]byte, 8*MaxBlocks))
	if s.EncodedSize() > MaxBytes || r.EncodedSize() > MaxBytes {
		t.Errorf("%d and %d bytes", s.EncodedSize(), r.EncodedSize())
	}
	// A place that is too small for the checksums: the rest fits.
	if _, err := r.Encode(make([]byte, SlotBytes)); err != ErrSpace {
		t.Errorf("256 checksums in a slot: %v", err)
	}
	r.DropChecksums(ReasonSpace)
	if _, err := r.Encode(make([]byte, SlotBytes)); err != nil {
		t.Error(err)
	}
}

// ans is the bytes of an answer.
func ans(id ID, st Status, why Reason, value ...byte) []byte {
	return with(with(ent(id, 0, value...), 2, byte(st), byte(why)), 6, byte(SourceExplicit), 1<<SourceExplicit)
}

// resultFrame is results with these answers.
func resultFrame(answers ...[]byte) []byte {
	b := append([]byte(resultsMagic), version, 0, byte(len(answers)), 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0)
	b = append(b, bytes.Join(answers, nil)...)
	le.PutUint32(b[8:], uint32(len(b)))
	return b
}

func TestDecodeResults(t *testing.T) {
	u := func(n int, b ...byte) []byte { return append(b, make([]byte, n-len(b))...) }
	good := resultFrame(ans(1, Ignored, ReasonMode), ans(8, Handled, 0, u(32)...), ans(100, Handled, 0, 1, 2))
	var many [][]byte
	for i := range ID(MaxUnknown + 1) {
		many = append(many, ans(100+i, Handled, 0))
	}
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"good", good, nil},
		{"a reason and a source not known here", with(resultFrame(ans(1, Ignored, 250)), 30, 200, 0xff), nil},
		{"nothing", nil, ErrNone},
		{"cleared", make([]byte, 64), ErrNone},
		{"a set", frame(), ErrNone},
		{"magic only", good[:4], ReasonLength},
		{"cut header", good[:23], ReasonLength},
		{"version", with(good, 4, 9), ReasonVersion},
		{"origin", with(good, 20, byte(originEnd)), ReasonHeader},
		{"origin, high byte", with(good, 23, 1), ReasonHeader},
		{"length", with(good, 8, 16), ReasonLength},
		{"count too small", with(good, 6, 2), ReasonTrailing},
		{"count too large", with(good, 6, 4), ReasonTruncated},
		{"not handled, said", resultFrame(ans(1, NotHandled, 0)), ReasonValue},
		{"status", resultFrame(ans(1, statusEnd, 0)), ReasonValue},
		{"status of an unknown id", resultFrame(ans(100, statusEnd, 0)), ReasonValue},
		{"twice", resultFrame(ans(1, Handled, 0), ans(1, Handled, 0)), ReasonDuplicate},
		{"descending", resultFrame(ans(3, Handled, 0), ans(1, Handled, 0)), ReasonOrder},
		{"padding", with(resultFrame(ans(100, Handled, 0, 1)), 39, 1), ReasonReserved},
		{"a value for a hint", resultFrame(ans(1, Handled, 0, 1)), ReasonSize},
		{"times missing", resultFrame(ans(8, Handled, 0)), ReasonSize},
		{"times, one too many", resultFrame(ans(8, Handled, 0, u(40)...)), ReasonSize},
		{"times, not handled", resultFrame(ans(8, Ignored, 0, u(32)...)), ReasonSize},
		{"times above 2^63", with(resultFrame(ans(8, Handled, 0, u(32)...)), 39, 0x80), ReasonValue},
		{"sums", resultFrame(ans(4, Handled, 0, u(16, 1)...)), nil},
		{"no sums", resultFrame(ans(4, Handled, 0)), nil},
		{"a head without sums", resultFrame(ans(4, Handled, 0, u(8, 1)...)), ReasonSize},
		{"sums, not handled", resultFrame(ans(4, Ignored, 0, u(16, 1)...)), ReasonSize},
		{"algorithm", resultFrame(ans(4, Handled, 0, u(16, 7)...)), ReasonValue},
		{"algorithm, high byte", resultFrame(ans(4, Handled, 0, u(16, 1, 0, 0, 1)...)), ReasonReserved},
		{"bad block without mismatch", resultFrame(ans(4, Handled, 0, u(16, 1, 0, 0, 0, 1)...)), ReasonReserved},
		{"half a sum", resultFrame(ans(4, Handled, 0, u(20, 1)...)), ReasonSize},
		{"257 sums", resultFrame(ans(4, Handled, 0, u(8+8*257, 1)...)), ReasonSize},
		{"mismatch", resultFrame(ans(4, Handled, ReasonMismatch, u(8, 1, 0, 0, 0, 2)...)), nil},
		{"mismatch without its block", resultFrame(ans(4, Handled, ReasonMismatch)), ReasonSize},
		{"too many unknown", resultFrame(many...), ReasonTooMany},
		{"as many as may be", resultFrame(many[1:]...), nil},
	} {
		var r Results
		r.SetTiming(Timing{Total: 1}) // must be gone
		if err := r.Decode(c.b); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if c.want != nil && (r.answer != Results{}.answer || r.nDevices != 0 || r.Blocks != 0 || r.nUnknown != 0) {
			t.Errorf("%s: not silence: %v", c.name, &r)
		}
	}
	var r Results
	if err := r.Decode(good); err != nil || r.For(1).Reason != ReasonMode || r.For(100).Status != Handled ||
		r.For(3).Status != NotHandled || r.Devices()[0] != 5 || r.Blocks != 1 || r.Origin != OriginSSD {
		t.Errorf("good: %v, %v", &r, err)
	}
}

// checkResultsLaw is what holds of all input.
func checkResultsLaw(t *testing.T, b []byte) {
	t.Helper()
	before := bytes.Clone(b)
	var r Results
	err := r.Decode(b)
	if !bytes.Equal(b, before) {
		t.Fatal("Decode wrote to its input")
	}
	_ = r.String()
	twice := r
	twice.Combine(&r)
	twice.Join(&r)
	if !bytes.Equal(b, before) {
		t.Fatal("Combine wrote to the input")
	}
	out := make([]byte, MaxBytes)
	n, encErr := r.Encode(out)
	if encErr != nil {
		t.Fatalf("does not encode: %v", encErr)
	}
	if err != nil {
		if n != resultsHeaderBytes {
			t.Fatalf("%v, but there are answers:\n%s", err, &r)
		}
		return
	}
	if r.nUnknown == 0 && !bytes.Equal(out[:n], b[:n]) {
		t.Fatalf("decoded\n%x\nencodes to\n%x", b, out[:n])
	}
	var again Results
	if err := again.Decode(out[:n]); err != nil || again.String() != r.String() {
		t.Fatalf("decoded again: %v\n%s\nwant\n%s", err, &again, &r)
	}
}

func TestDecodeResultsAnywhere(t *testing.T) {
	r := fullResults(t)
	b := make([]byte, r.EncodedSize())
	if _, err := r.Encode(b); err != nil {
		t.Fatal(err)
	}
	for n := range b {
		var got Results
		if err := got.Decode(b[:n:n]); err == nil {
			t.Errorf("%d of %d bytes were accepted", n, len(b))
		}
	}
	for i := range b {
		for _, x := range []byte{1, 2, 0x10, 0x80, 0xff} {
			checkResultsLaw(t, with(b, i, b[i]^x))
		}
	}
}

func FuzzDecodeResults(f *testing.F) {
	r := fullResults(f)
	b := make([]byte, r.EncodedSize())
	if _, err := r.Encode(b); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(resultFrame(ans(4, Handled, ReasonMismatch, 1, 0, 0, 0, 2, 0, 0, 0), ans(100, Ignored, 3, 1)))
	f.Add(resultFrame())
	f.Fuzz(func(t *testing.T, b []byte) { checkResultsLaw(t, b) })
}

package extents

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"ubcache/attrs/rules"
)

// stack is block devices on top of each other, for descend.
type stack map[Device][]layer

func (s stack) step(d Device) ([]layer, error) {
	l, ok := s[d]
	if !ok {
		return nil, errors.New("no such device")
	}
	return l, nil
}

func lies(off, end, to int64, below Device) layer {
	return layer{part: segment{Range: rules.Range{Off: off, End: end}, to: to}, below: below}
}

func TestDescend(t *testing.T) {
	disk, part, lv, other, plain, far := Device{1, 0}, Device{1, 1}, Device{2, 0}, Device{3, 0},
		Device{4, 0}, Device{5, 0}
	s := stack{
		disk: nil, other: nil, plain: nil,
		part: {lies(0, 1000, 100, disk)},
		// A volume in three parts, the middle one on another disk, the last one before the first.
		lv:  {lies(0, 50, 10, part), lies(50, 80, 500, other), lies(80, 200, 300, part)},
		far: {lies(0, 100, 0, far)},
	}
	for _, c := range []struct {
		from, to Device
		in       rules.Range
		want     []rules.Range
	}{
		{disk, disk, rules.Range{Off: 5, End: 9}, []rules.Range{{Off: 5, End: 9}}},
		{part, disk, rules.Range{Off: 5, End: 9}, []rules.Range{{Off: 105, End: 109}}},
		{part, disk, rules.Range{Off: 990, End: 1010}, []rules.Range{{Off: 1090, End: 1100}}},
		{lv, disk, rules.Range{Off: 40, End: 90}, []rules.Range{{Off: 150, End: 160}, {Off: 400, End: 410}}},
		{lv, other, rules.Range{Off: 40, End: 90}, []rules.Range{{Off: 500, End: 530}}},
		{lv, part, rules.Range{Off: 60, End: 70}, nil},
	} {
		m, err := descend(c.from, c.to, 0, s.step)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.translate(nil, c.in); !slices.Equal(got, c.want) {
			t.Errorf("%v of %v on %v: %v, want %v", c.in, c.from, c.to, got, c.want)
		}
	}
	if m, err := descend(plain, disk, 0, s.step); len(m) != 0 || err != nil {
		t.Errorf("a device that is not on it: %v, %v", m, err)
	}
	if _, err := descend(far, disk, 0, s.step); err == nil || !strings.Contains(err.Error(), "on top of") {
		t.Errorf("a device on itself: %v", err)
	}
}

// TestThrough compares two mappings one after the other with their composition, byte by byte.
func TestThrough(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func() (m mapping) {
		at := int64(0)
		for range 1 + rnd.IntN(4) {
			at += rnd.Int64N(5)
			n := 1 + rnd.Int64N(10)
			m = append(m, segment{Range: rules.Range{Off: at, End: at + n}, to: rnd.Int64N(30)})
			at += n
		}
		return m
	}
	for range 500 {
		a, b := random(), random()
		both := a.through(b)
		for at := range int64(60) {
			one := rules.Range{Off: at, End: at + 1}
			var want []rules.Range
			for _, r := range a.translate(nil, one) {
				want = b.translate(want, r)
			}
			if got := both.translate(nil, one); !slices.Equal(got, want) {
				t.Fatalf("byte %d through %v and %v: %v, want %v", at, a, b, got, want)
			}
		}
	}
}

// dmTable builds the kernel's answer to a question for a table.
func dmTable(targets ...[]any) []byte {
	n := binary.NativeEndian
	b := make([]byte, dmHeadBytes)
	n.PutUint32(b[dmDataStart:], dmHeadBytes)
	n.PutUint32(b[dmCount:], uint32(len(targets)))
	for _, x := range targets {
		spec := make([]byte, dmSpecBytes)
		n.PutUint64(spec, uint64(x[0].(int)))
		n.PutUint64(spec[8:], uint64(x[1].(int)))
		copy(spec[24:], x[2].(string))
		text := append([]byte(x[3].(string)), 0)
		for len(text)%8 != 0 {
			text = append(text, 0)
		}
		// The next one's place is counted from the start of the data.
		n.PutUint32(spec[20:], uint32(len(b)+len(spec)+len(text)-dmHeadBytes))
		b = append(append(b, spec...), text...)
	}
	return b
}

func TestParseTable(t *testing.T) {
	d := Device{252, 0}
	list, err := parseTable(d, dmTable(
		[]any{0, 2048, "linear", "8:1 384"},
		[]any{2048, 8, "zero", ""},
		[]any{2056, 4096, "crypt", "aes-xts-plain64 :64:logon:key 0 259:3 32768 1 allow_discards"},
	))
	want := []layer{
		lies(0, 2048*512, 384*512, Device{8, 1}),
		lies(2056*512, (2056+4096)*512, 32768*512, Device{259, 3}),
	}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("read %v (%v), want %v", list, err, want)
	}
	for _, c := range [][]any{
		{0, 8, "striped", "2 128 8:1 0 8:2 0"},
		{0, 8, "linear", "8:1"},
		{0, 8, "linear", "sda 5"},
		{0, 8, "linear", "8:1 -5"},
		{0, -8, "linear", "8:1 5"},
		{0, 8, "crypt", "aes key 0 8:1"},
	} {
		if list, err := parseTable(d, dmTable(c)); err == nil {
			t.Errorf("%v is %v", c, list)
		}
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add(dmTable([]any{0, 2048, "linear", "8:1 384"}, []any{2048, 8, "zero", ""}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < dmHeadBytes {
			return // the kernel fills the head
		}
		n := binary.NativeEndian
		n.PutUint32(b[dmCount:], n.Uint32(b[dmCount:])%64)
		list, _ := parseTable(Device{252, 0}, b)
		for _, l := range list {
			if l.part.Off < 0 || l.part.End < l.part.Off || l.part.to < 0 {
				t.Errorf("made %v", list)
			}
		}
	})
}

// TestSizes compares the structures with those of the kernel's headers.
func TestSizes(t *testing.T) {
	var m fiemap
	for what, c := range map[string][2]uintptr{
		"fiemap_extent": {unsafe.Sizeof(m.Extents[0]), 56},
		"its flags":     {unsafe.Offsetof(m.Extents[0].Flags), 40},
		"fiemap's head": {unsafe.Offsetof(m.Extents), 32},
		"fsxattr":       {unsafe.Sizeof(fsxattr{}), 28},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %d, want %d", what, c[0], c[1])
		}
	}
}

func TestPlace(t *testing.T) {
	for _, c := range []struct {
		flags uint32
		want  bool
	}{
		{0, true},
		{extentLast, true},
		{0x800, true},  // not written yet
		{0x2000, true}, // shared with another file
		{extentEncoded | extentEncrypted, true},
		{extentEncoded, false},
		{extentUnknown, false},
		{extentUnknown | extentDelalloc, false},
		{extentNotAligned | extentInline, false},
		{extentTail, false},
	} {
		e := fiemapExtent{Physical: 4096, Length: 8192, Flags: c.flags}
		if r, ok := e.place(); ok != c.want || ok && r != (rules.Range{Off: 4096, End: 12288}) {
			t.Errorf("flags %#x: %v, %t", c.flags, r, ok)
		}
	}
}

func TestCheckFilesystem(t *testing.T) {
	for kind, want := range map[int64]string{
		0xef53: "", 0x58465342: "", 0x9123683e: "btrfs does not tell", 0x1234: "(of type 0x1234)",
	} {
		err := checkFilesystem(kind)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%#x: %v, want %q", kind, err, want)
		}
	}
}

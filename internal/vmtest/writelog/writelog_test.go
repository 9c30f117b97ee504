package writelog

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// image is a log as the kernel writes it.
type image struct {
	bytes.Buffer
	entries uint64
}

func (m *image) entry(sector, sectors, flags uint64, text string, data []byte) {
	p := make([]byte, 512)
	le := binary.LittleEndian
	le.PutUint64(p, sector)
	le.PutUint64(p[8:], sectors)
	le.PutUint64(p[16:], flags)
	le.PutUint64(p[24:], uint64(len(text)))
	copy(p[32:], text)
	m.Write(p)
	m.Write(data)
	m.entries++
}

func (m *image) log(t *testing.T) *Log {
	t.Helper()
	p := make([]byte, 512)
	le := binary.LittleEndian
	le.PutUint64(p, magic)
	le.PutUint64(p[8:], version)
	le.PutUint64(p[16:], m.entries)
	le.PutUint32(p[24:], 512)
	l, err := Read(bytes.NewReader(append(p, m.Bytes()...)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// disk is a device in memory.
type disk []byte

func (d disk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }

func (d disk) Discard(off, n int64) error {
	clear(d[off : off+n])
	return nil
}

func sectors(b byte, n int) []byte { return bytes.Repeat([]byte{b}, 512*n) }

func TestReadAndPlay(t *testing.T) {
	var m image
	m.entry(2, 2, 0, "", sectors(1, 2))
	m.entry(0, 0, flagFlush, "", nil)
	m.entry(0, 0, flagMark, "ack 0 1", nil)
	m.entry(3, 1, flagFUA, "", sectors(2, 1))
	m.entry(0, 3, flagDiscard, "", nil)
	m.entry(0, 0, flagFlush, "", nil)
	l := m.log(t)
	var kinds []string
	durable := 0
	for _, e := range l.Entries {
		kinds = append(kinds, e.String())
		if e.Durable() {
			durable++
		}
	}
	const want = "write of 1024 at 1024|flush|mark ack 0 1|write with FUA of 512 at 1536|" +
		"discard of 1536 at 0|flush"
	if got := strings.Join(kinds, "|"); got != want || durable != 3 {
		t.Errorf("%d durable points in %s", durable, got)
	}
	d := make(disk, 4*512)
	check := func(what string, want ...byte) {
		t.Helper()
		for i, b := range want {
			if !bytes.Equal(d[i*512:][:512], sectors(b, 1)) {
				t.Errorf("%s: sector %d holds %d, not %d", what, i, d[i*512], b)
			}
		}
	}
	if err := l.Play(d, 0, 3); err != nil {
		t.Fatal(err)
	}
	check("up to the mark", 0, 0, 1, 1)
	if err := l.Play(d, 3, 4); err != nil {
		t.Fatal(err)
	}
	check("with the FUA write", 0, 0, 1, 2)
	if err := l.PlayPart(d, 4, 512, 1536); err != nil {
		t.Fatal(err)
	}
	check("with the discard", 0, 0, 0, 2)
	if err := l.PlayPart(d, 0, 0, 512); err != nil {
		t.Fatal(err)
	}
	check("with a torn write", 0, 0, 1, 2)
}

func TestReadRefuses(t *testing.T) {
	if _, err := Read(bytes.NewReader(make([]byte, 4096))); err == nil {
		t.Error("zeroes were taken for a log")
	}
	for name, e := range map[string][3]uint64{
		"data with a flush": {0, 1, flagFlush}, "no data": {0, 0, 0}, "too long": {0, 1 << 40, 0},
	} {
		var m image
		m.entry(e[0], e[1], e[2], "", nil)
		p := make([]byte, 512)
		le := binary.LittleEndian
		le.PutUint64(p, magic)
		le.PutUint64(p[8:], version)
		le.PutUint64(p[16:], 1)
		le.PutUint32(p[24:], 512)
		if _, err := Read(bytes.NewReader(append(p, m.Bytes()...))); err == nil {
			t.Errorf("%s: was read", name)
		}
	}
}

//go:build vm

package vmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// OracleSector is the unit in which an [Oracle] knows what a device may hold.
const OracleSector = 512

// Oracle writes and reads a range of a device and knows what each sector of it may hold: the version
// that was written last, and beside it earlier ones after a write that failed or after a power cut.
// What has been read once is the only one from then on.
//
// Every sector says where it belongs and which version it is, so that one that was lost can be told
// from one that is wrong. One goroutine uses an Oracle; several have ranges of their own.
type Oracle struct {
	Dev     string
	off     int64 // of the range
	sectors []oracleSector
	version uint32
	history []oracleWrite
	file    *os.File
	mem     []byte
}

// oracleSector is what a read may return, the newest version last; empty for zeroes.
type oracleSector []uint32

// oracleWrite is a write that was begun; its version is its place in the history, from 1.
type oracleWrite struct{ at, n int }

// NewOracle is an oracle of bytes [off, off+n) of a device, which hold zeroes.
func NewOracle(t testing.TB, dev string, off, n int64) *Oracle {
	t.Helper()
	o := &Oracle{Dev: dev, off: off, sectors: make([]oracleSector, n/OracleSector)}
	var err error
	// The largest transfer.
	if o.mem, err = unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close(); _ = unix.Munmap(o.mem) })
	o.open(t)
	return o
}

func (o *Oracle) open(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(o.Dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	o.file = f
}

// Reopen goes on with the device of another path.
func (o *Oracle) Reopen(t testing.TB, dev string) {
	t.Helper()
	o.Close()
	o.Dev = dev
	o.open(t)
}

// Close lets go of the device.
func (o *Oracle) Close() {
	if o.file != nil {
		_ = o.file.Close()
		o.file = nil
	}
}

// Len is the size of the range in sectors.
func (o *Oracle) Len() int { return len(o.sectors) }

// Write writes a new version of n sectors from sector at on.
func (o *Oracle) Write(at, n int) error {
	o.history = append(o.history, oracleWrite{at, n})
	o.version++
	p := o.mem[:n*OracleSector]
	for i := range n {
		fillSector(p[i*OracleSector:][:OracleSector], o.sectorNumber(at+i), o.version)
	}
	_, err := o.file.WriteAt(p, o.off+int64(at)*OracleSector)
	for i := range n {
		s := o.sectors[at+i]
		switch {
		case err == nil:
			s = s[:0]
		case len(s) == 0:
			s = append(s, 0)
		}
		o.sectors[at+i] = append(s, o.version)
	}
	return err
}

// Sync makes what was written durable.
func (o *Oracle) Sync() error { return unix.Fdatasync(int(o.file.Fd())) }

// Version is the number of the last write.
func (o *Oracle) Version() uint32 { return o.version }

// After is an oracle of another device, which has what a power cut leaves that came after all
// writes up to a version had been flushed: of each sector the newest of those, or any newer one. It is not
// for histories with writes that failed.
func (o *Oracle) After(t testing.TB, dev string, flushed uint32) *Oracle {
	t.Helper()
	c := NewOracle(t, dev, o.off, int64(len(o.sectors))*OracleSector)
	c.version, c.history = o.version, slices.Clone(o.history)
	for i, w := range o.history {
		version := uint32(i + 1)
		for j := w.at; j < w.at+w.n; j++ {
			switch s := c.sectors[j]; {
			case version <= flushed:
				c.sectors[j] = append(s[:0], version)
			case len(s) == 0:
				c.sectors[j] = append(s, 0, version)
			default:
				c.sectors[j] = append(s, version)
			}
		}
	}
	return c
}

// Read reads n sectors and compares. It returns the error of the read, if there was one.
func (o *Oracle) Read(y *Tally, what string, at, n int) error {
	p := o.mem[:n*OracleSector]
	if _, err := o.file.ReadAt(p, o.off+int64(at)*OracleSector); err != nil {
		return err
	}
	o.Compare(y, what, at, p)
	return nil
}

// Compare looks at what somebody has read of sector at on.
func (o *Oracle) Compare(y *Tally, what string, at int, p []byte) {
	for i := range len(p) / OracleSector {
		s := o.sectors[at+i]
		v, err := sectorVersion(p[i*OracleSector:][:OracleSector], o.sectorNumber(at+i))
		switch {
		case err != nil:
			y.Wrong("%s: sector %d: %v", what, o.sectorNumber(at+i), err)
		case len(s) == 0 && v == 0:
		case slices.Contains(s, v):
			o.sectors[at+i] = append(s[:0], v)
		case len(s) > 0 && v < s[len(s)-1]:
			y.Lost("%s: sector %d is version %d, legal are %v", what, o.sectorNumber(at+i), v, s)
		default:
			y.Wrong("%s: sector %d is version %d, legal are %v", what, o.sectorNumber(at+i), v, s)
		}
	}
}

// ReadAll reads the whole range in pieces of n sectors; each failed piece is told to failed, or counted
// as an error that should not be if failed is nil.
func (o *Oracle) ReadAll(y *Tally, what string, n int, failed func(at int, err error)) {
	for at := 0; at < len(o.sectors); at += n {
		if err := o.Read(y, what, at, min(n, len(o.sectors)-at)); err != nil {
			if failed == nil {
				y.Failed("%s: %v", what, err)
				continue
			}
			failed(at, err)
		}
	}
}

// ReadSome is ReadAll for single sectors, as many as told, spread over the whole range.
func (o *Oracle) ReadSome(y *Tally, what string, count int, failed func(at int, err error)) {
	for i := range count {
		at := i * len(o.sectors) / count
		if err := o.Read(y, what, at, 1); err != nil {
			failed(at, err)
		}
	}
}

// OracleOp is one request of an [Oracle].
type OracleOp struct {
	Read, Sync bool // else a write
	At, N      int  // sectors
}

func (op OracleOp) String() string {
	switch {
	case op.Sync:
		return "sync"
	case op.Read:
		return fmt.Sprintf("read of %d sectors at %d", op.N, op.At)
	}
	return fmt.Sprintf("write of %d sectors at %d", op.N, op.At)
}

// Random does one operation at random: mostly writes of up to 64 KiB at any sector, reads, now and
// then a sync.
func (o *Oracle) Random(y *Tally, rnd *rand.Rand) (op OracleOp, err error) {
	n := 1 + rnd.IntN(8)
	if rnd.IntN(4) == 0 {
		n = 1 + rnd.IntN(128)
	}
	at := rnd.IntN(len(o.sectors) - n)
	if rnd.IntN(2) == 0 { // aligned to a block, as most are
		at, n = at&^7, (n+7)&^7
	}
	op = OracleOp{At: at, N: min(n, len(o.sectors)-at)}
	switch k := rnd.IntN(100); {
	case k < 35:
		op.Read = true
		return op, o.Read(y, "under load", op.At, op.N)
	case k < 38:
		op.Sync = true
		return op, o.Sync()
	}
	return op, o.Write(op.At, op.N)
}

// Written reports whether a write of any of these sectors has been begun.
func (o *Oracle) Written(at, n int) bool {
	for _, s := range o.sectors[at:min(at+n, len(o.sectors))] {
		if len(s) > 0 {
			return true
		}
	}
	return false
}

func (o *Oracle) sectorNumber(i int) uint64 { return uint64(o.off/OracleSector) + uint64(i) }

// sectorWord is word i of a version of a sector, from 2 on; those before it say what it is.
func sectorWord(sector uint64, version uint32, i int) uint64 {
	x := (sector<<32|uint64(version))*0x9e3779b97f4a7c15 + uint64(i)*0xbf58476d1ce4e5b9
	return x ^ x>>29
}

// fillSector writes the place, the version and what follows from them.
func fillSector(p []byte, sector uint64, version uint32) {
	le := binary.LittleEndian
	le.PutUint64(p, sector)
	le.PutUint64(p[8:], uint64(version))
	for i := 2; i < OracleSector/8; i++ {
		le.PutUint64(p[i*8:], sectorWord(sector, version, i))
	}
}

var errTorn = errors.New("neither a version of it nor zeroes")

// sectorVersion tells which version of a sector these bytes are.
func sectorVersion(p []byte, sector uint64) (uint32, error) {
	le := binary.LittleEndian
	place, version := le.Uint64(p), uint32(le.Uint64(p[8:]))
	if version == 0 {
		for _, b := range p {
			if b != 0 {
				return 0, errTorn
			}
		}
		return 0, nil
	}
	for i := 2; i < OracleSector/8; i++ {
		if le.Uint64(p[i*8:]) != sectorWord(place, version, i) {
			return 0, errTorn
		}
	}
	if place != sector || le.Uint32(p[12:]) != 0 {
		return 0, fmt.Errorf("version %d of sector %d", version, place)
	}
	return version, nil
}

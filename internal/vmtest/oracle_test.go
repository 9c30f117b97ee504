//go:build vm

package vmtest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// silent is a test that takes no notice of faults.
type silent struct{ testing.TB }

func (silent) Helper()               {}
func (silent) Errorf(string, ...any) {}
func (silent) Fail()                 {}

// TestOracle shows that an oracle finds what a device may do to its data, on a file.
func TestOracle(t *testing.T) {
	const sectors = 4096
	dev := filepath.Join(t.TempDir(), "disk")
	if dir := os.Getenv("UBVM_OUT"); dir != "" {
		dev = filepath.Join(dir, "oracle-disk") // a folder on a disk: O_DIRECT
		defer os.Remove(dev)
	}
	if err := os.WriteFile(dev, make([]byte, sectors*OracleSector), 0o600); err != nil {
		t.Fatal(err)
	}
	raw, err := os.OpenFile(dev, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	o := NewOracle(t, dev, 0, sectors*OracleSector)
	y := &Tally{t: silent{t}}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		if _, err := o.Random(y, rnd); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Write(8, 4); err != nil {
		t.Fatal(err)
	}
	older := make([]byte, OracleSector)
	if _, err := raw.ReadAt(older, 10*OracleSector); err != nil {
		t.Fatal(err)
	}
	if err := o.Write(8, 8); err != nil {
		t.Fatal(err)
	}
	newest := make([]byte, OracleSector)
	if _, err := raw.ReadAt(newest, 10*OracleSector); err != nil {
		t.Fatal(err)
	}
	flushed := o.Version()
	expect := func(what string, o *Oracle, content []byte, lost, wrong int64) {
		t.Helper()
		if content != nil {
			if _, err := raw.WriteAt(content, 10*OracleSector); err != nil {
				t.Fatal(err)
			}
		}
		y := &Tally{t: silent{t}}
		o.ReadAll(y, what, 64, nil)
		if y.lost.Load() != lost || y.wrong.Load() != wrong || y.errors.Load() != 0 {
			t.Errorf("%s: lost %d, wrong %d, errors %d", what, y.lost.Load(), y.wrong.Load(), y.errors.Load())
		}
	}
	elsewhere := make([]byte, OracleSector)
	fillSector(elsewhere, 11, flushed)
	torn := append(append([]byte{}, newest[:256]...), older[256:]...)
	expect("as it is", o, nil, 0, 0)
	expect("an older version", o, older, 1, 0)
	expect("zeroes", o, make([]byte, OracleSector), 1, 0)
	expect("another sector", o, elsewhere, 0, 1)
	expect("half a sector of each", o, torn, 0, 1)
	expect("right again", o, newest, 0, 0)

	// A power cut after the last write but one was flushed may bring back that, once.
	expect("one version back", o.After(t, dev, flushed-1), older, 0, 0)
	expect("one version back, after a flush", o.After(t, dev, flushed), older, 1, 0)
	c := o.After(t, dev, flushed-1)
	expect("the newest", c, newest, 0, 0)
	expect("back from the newest", c, older, 1, 0)
}

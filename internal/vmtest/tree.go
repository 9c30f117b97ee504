//go:build vm

package vmtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// Tree is a list of files by path: kind, permissions, size and checksum of each.
type Tree map[string]string

// MakeTree fills a folder with files of many sizes, sparse ones and links among them, the same
// for the same seed, and returns the list of them.
func MakeTree(t testing.TB, dir string, files int, seed uint64) Tree {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 1<<20)
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%37), fmt.Sprintf("e%d", i%5))
		name := filepath.Join(sub, fmt.Sprintf("file-%05d", i))
		if i < 37*5 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		switch {
		case i%101 == 100:
			err = os.Symlink(fmt.Sprintf("file-%05d", i-1), name)
		case i%97 == 96:
			err = sparseFile(name, rnd, buf)
		default:
			n := fileSize(i, rnd)
			Fill(buf[:n], rnd.Uint64())
			err = os.WriteFile(name, buf[:n], 0o600|fs.FileMode(i%8)<<3)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return ListTree(t, dir)
}

// fileSize is small for most files: 0 to 8 KiB, a tenth to 128 KiB, a few to 1 MiB.
func fileSize(i int, rnd *rand.Rand) int {
	switch {
	case i%250 == 249:
		return rnd.IntN(1 << 20)
	case i%10 == 9:
		return rnd.IntN(128 << 10)
	}
	return rnd.IntN(8 << 10)
}

// sparseFile writes three pieces, none at a block's border, into a file of 2 MB.
func sparseFile(name string, rnd *rand.Rand, buf []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 3 {
		piece := buf[:1+rnd.IntN(9000)]
		Fill(piece, rnd.Uint64())
		if _, err := f.WriteAt(piece, rnd.Int64N(2<<20)); err != nil {
			return err
		}
	}
	return f.Truncate(2_200_001)
}

// Fill writes pseudo-random bytes that the seed determines.
func Fill(p []byte, seed uint64) {
	rnd := rand.NewPCG(seed, 2)
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, rnd.Uint64())
	}
	for i := range p {
		p[i] = byte(seed >> (8 * i))
	}
}

// ListTree lists what is in a folder, lost+found left out.
func ListTree(t testing.TB, dir string) Tree {
	t.Helper()
	list := Tree{}
	buf := make([]byte, 256<<10)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		if d.Name() == "lost+found" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, text := path[len(dir)+1:], info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			sum, err := checksum(path, buf)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d %016x", info.Size(), sum)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + to
		}
		list[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func checksum(path string, buf []byte) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := xxhash.New()
	// Without its WriteTo the file is read through the buffer that is there already.
	_, err = io.CopyBuffer(h, struct{ io.Reader }{f}, buf)
	return h.Sum64(), err
}

// Compare fails the test, with the first differences, if the other list is not the same.
func (want Tree) Compare(t testing.TB, what string, got Tree) {
	t.Helper()
	faults := 0
	fault := func(format string, args ...any) {
		if faults++; faults <= 10 {
			t.Errorf(what+": "+format, args...)
		}
	}
	for path, w := range want {
		if g, ok := got[path]; !ok {
			fault("%s is missing", path)
		} else if g != w {
			fault("%s is %s, not %s", path, g, w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			fault("%s should not be there", path)
		}
	}
	if faults > 10 {
		t.Errorf("%s: %d differences in all", what, faults)
	}
}

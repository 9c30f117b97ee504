//go:build vm

package powercut

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"ubcache/internal/vmtest"
)

// The warm file is made once in each filesystem, and nobody writes to it again: its blocks are to be in the cache after each
// power cut.
const warmBytes = 8 << 20

func warmData() []byte {
	p := make([]byte, warmBytes)
	vmtest.Fill(p, warmBytes)
	return p
}

func makeWarm(t *testing.T, c *vmtest.Cache, dir string) {
	t.Helper()
	name := filepath.Join(dir, "warm")
	if err := os.WriteFile(name, warmData(), 0o644); err != nil {
		t.Fatal(err)
	}
	vmtest.Run(t, "sync", name)
	// Written around the cache, it gets there by being read.
	readWarm(t, c, dir)
	if hits, _ := readWarm(t, c, dir); hits < warmBytes/4096 {
		t.Fatalf("%d blocks of the file are cached before the power cut", hits)
	}
}

// readWarm reads the file past the page cache, and returns how many of its blocks the cache had.
func readWarm(t *testing.T, c *vmtest.Cache, dir string) (hits int64, data []byte) {
	t.Helper()
	before, to := c.Stats(t).Devices["data"].HitBlocks, filepath.Join(t.TempDir(), "warm")
	vmtest.Run(t, "dd", "if="+filepath.Join(dir, "warm"), "of="+to, "bs=1M", "iflag=direct", "status=none")
	hits = c.Stats(t).Devices["data"].HitBlocks - before
	data, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return hits, data
}

func checkWarm(t *testing.T, y *vmtest.Tally, c *vmtest.Cache, dir string) {
	t.Helper()
	hits, data := readWarm(t, c, dir)
	t.Logf("%d of %d blocks are cached after the power cut", hits, warmBytes/4096)
	if hits < warmBytes/4096*9/10 {
		t.Errorf("%d of %d blocks are cached after the power cut", hits, warmBytes/4096)
	}
	if !bytes.Equal(data, warmData()) {
		y.Wrong("the file that was warm is not what was written")
	}
}

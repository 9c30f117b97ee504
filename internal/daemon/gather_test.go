package daemon

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/cache"
)

// TestGatheredWrites: a burst of small writes becomes few submissions, and whatever part of such a
// run the kernel reports as written, each request ends as it would have alone.
func TestGatheredWrites(t *testing.T) {
	const blocks, depth, rounds = 1024, 16, 4
	for name, spoil := range map[string]func(res int32, n int) int32{
		"whole":  func(res int32, _ int) int32 { return res },
		"short":  func(res int32, n int) int32 { return res / int32(n%5+1) / sector * sector },
		"failed": func(int32, int) int32 { return -int32(unix.EIO) },
		"again":  func(int32, int) int32 { return -int32(unix.EAGAIN) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newBench(t, benchOptions{
				ssdBytes: 64 << 20, diskBytes: blocks * cache.BlockSize, mode: cache.Writeback,
			})
			p := newWorld(0, blocks*cache.BlockSize)
			c := w.client(depth, cache.BlockSize)
			runs, writes := 0, 0
			c.l.spoil = func(userData uint64, res int32) int32 {
				if userData&gatherData == 0 {
					return res
				}
				runs++
				res = spoil(res, runs)
				// What is not reported as written is not there.
				r := c.l.gathers.all[userData&^gatherData]
				if from := r.off + int64(max(res, 0)); from < r.end {
					_, err := w.ssd.WriteAt(bytes.Repeat([]byte{0xee}, int(r.end-from)), from)
					must(t, err)
				}
				return res
			}
			rng := rand.New(rand.NewPCG(1, 2))
			order := rng.Perm(blocks)
			c.next = func(r *cache.Request, buf []byte) bool {
				if writes == rounds*blocks {
					return false
				}
				r.Op, r.Off = cache.ReqWrite, int64(order[writes%blocks])*cache.BlockSize
				r.Len, r.Data = cache.BlockSize, buf[:cache.BlockSize]
				for i := 0; i < len(r.Data); i += 8 {
					binary.LittleEndian.PutUint64(r.Data[i:], rng.Uint64())
				}
				writes++
				return true
			}
			var first error
			c.done = func(r *cache.Request) {
				if r.Err != nil && first == nil {
					first = fmt.Errorf("write at %d: %w", r.Off, r.Err)
				}
				copy(p.data[r.Off:], r.Data)
			}
			c.run()
			if first != nil {
				t.Error(first)
			}
			if runs == 0 || runs > writes/2 {
				t.Errorf("%d runs for %d writes", runs, writes)
			}
			readBack(t, w.client(4, 1<<20), p)
			w.stop()
			w.check()
		})
	}
}

// TestWriteCacheIsLookedUp: flushes are left out only while the kernel notes a cache that cannot
// lose anything, and a change of the note counts from the next look on.
func TestWriteCacheIsLookedUp(t *testing.T) {
	name := filepath.Join(t.TempDir(), "write_cache")
	note := func(text string) { must(t, os.WriteFile(name, []byte(text), 0o600)) }
	note("write through\n")
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	var d driver
	dev := deviceFile{device: device{note: int(f.Fd())}}
	for _, step := range []struct {
		at   int64
		text string
		want bool
	}{
		{1, "write through\n", false},
		{lookEvery / 2, "write back\n", false},
		{lookEvery + 2, "write back\n", true},
		{3 * lookEvery, "write through\n", false},
		{5 * lookEvery, "", true},
		{7 * lookEvery, "write thr", true},
	} {
		note(step.text)
		d.now = step.at
		if got := d.volatile(&dev); got != step.want {
			t.Errorf("at %d the note %q: volatile is %v", step.at, step.text, got)
		}
	}
	if !d.volatile(&deviceFile{device: device{note: -1}}) {
		t.Error("a device without a note must be flushed")
	}
}

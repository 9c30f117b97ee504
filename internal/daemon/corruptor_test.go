package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"ubcache/attrs"
	api "ubcache/attrs/client"
	"ubcache/cache"
)

const (
	blockBytes = attrs.BlockSize
	diskBlocks = directDiskBytes / blockBytes
	cellBlocks = 8 // of a request of most classes
)

// corruptor is a client of a running cache that knows what each block has to hold, and has the
// devices' files open beside the daemon.
type corruptor struct {
	t         *testing.T
	b         *directBench
	table     *corruptionTable
	rng       *rand.Rand
	disks     [2]*corruptedDisk
	ssd       *deviceImage
	gen       uint64           // the next generation
	forbidden map[uint64]place // contents that must not be on a device, by hash
}

type corruptedDisk struct {
	name string
	d    *api.Device
	b    *cache.Backing
	file *deviceImage
	has  []uint64 // generation of the content of each block; 0 is zeroes
	next int      // the first block that no class has
}

// place is where a forbidden content may be all the same: the test has put it there.
type place struct {
	on  *deviceImage
	off int64
}

func newCorruptor(t *testing.T, o directOptions, table *corruptionTable) *corruptor {
	t.Helper()
	b := newDirectBench(t, o)
	c := &corruptor{
		t: t, b: b, table: table, ssd: openDeviceImage(t, filepath.Join(b.dir, "ssd")),
		rng: rand.New(rand.NewPCG(*corruptionSeed, uint64(len(table.rows)))),
		gen: 1, forbidden: map[uint64]place{},
	}
	for i, name := range []string{"disk0", "disk1"} {
		s, err := b.find(name)
		must(t, err)
		d := b.open(api.Options{Device: name, Bytes: 8 << 20})
		t.Cleanup(func() { closeDevice(t, d) })
		c.disks[i] = &corruptedDisk{
			name: name, d: d, b: s.b, file: openDeviceImage(t, filepath.Join(b.dir, name)),
			has: make([]uint64, diskBlocks),
		}
		tun := cache.DefaultTunables()
		tun.SequentialCutoff, tun.WritebackDelay = 0, time.Hour // dirty data stays until a drain
		must(t, b.cache.SetTunables(s.b.ID(), tun))
	}
	return c
}

const contentMagic = 0x7562636163686521

// content makes what a block of that generation holds.
func content(p []byte, gen uint64) {
	clear(p)
	if gen == 0 {
		return
	}
	fill(p, gen)
	binary.LittleEndian.PutUint64(p, contentMagic)
	binary.LittleEndian.PutUint64(p[8:], gen)
}

// contents are those of blocks [first, first+n) as they have to be.
func (c *corruptor) contents(k *corruptedDisk, first, n int) []byte {
	p := make([]byte, n*blockBytes)
	for i := range n {
		content(p[i*blockBytes:][:blockBytes], k.has[first+i])
	}
	return p
}

// fresh makes new generations for n blocks, and their contents.
func (c *corruptor) fresh(n int) (gens []uint64, p []byte) {
	p = make([]byte, n*blockBytes)
	for i := range n {
		gens = append(gens, c.gen)
		content(p[i*blockBytes:][:blockBytes], c.gen)
		c.gen++
	}
	return gens, p
}

// take returns the first of n blocks of a disk that no class has had.
func (c *corruptor) take(k *corruptedDisk, n int) int {
	c.t.Helper()
	if k.next+n > diskBlocks {
		c.t.Fatalf("%s is too small: make the classes smaller", k.name)
	}
	k.next += n
	return k.next - n
}

// corrupt changes a block in one of the ways that happen; stale is the generation of what it may be
// taken for. alone says that what it now holds is nowhere else, so that it can be searched for.
func (c *corruptor) corrupt(p []byte, stale uint64) (alone bool) {
	was := bytes.Clone(p)
	for bytes.Equal(p, was) {
		alone = true
		switch c.rng.IntN(6) {
		case 0:
			p[c.rng.IntN(len(p))] ^= 1 << c.rng.IntN(8)
		case 1:
			from := c.rng.IntN(len(p))
			for i := from; i < min(len(p), from+1+c.rng.IntN(64)); i++ {
				p[i] = byte(c.rng.Uint32())
			}
		case 2: // never written
			clear(p)
			alone = false
		case 3: // an older version, or another block's data
			content(p, stale)
			alone = false
		case 4: // torn
			other := make([]byte, len(p))
			content(other, stale)
			copy(p[:len(p)/8*(1+c.rng.IntN(7))], other)
		case 5: // words in the wrong order
			i, j := 8*c.rng.IntN(len(p)/8), 8*c.rng.IntN(len(p)/8)
			for b := range 8 {
				p[i+b], p[j+b] = p[j+b], p[i+b]
			}
		}
	}
	return alone
}

// forbid makes a content one that must be nowhere but at w. Zeroes are everywhere.
func (c *corruptor) forbid(p []byte, w place) {
	if !bytes.Equal(p, make([]byte, len(p))) {
		c.forbidden[xxhash.Sum64(p)] = w
	}
}

// sweep searches the devices for what must not be there, and begins anew.
func (c *corruptor) sweep(r *corruptionRow) {
	c.t.Helper()
	for _, f := range []*deviceImage{c.ssd, c.disks[0].file, c.disks[1].file} {
		f.walk(c.t, func(off int64, p []byte) {
			if w, bad := c.forbidden[xxhash.Sum64(p)]; bad && w != (place{f, off}) {
				r.stored++
				c.t.Errorf("%s: wrong data is on %s at %d", r.where, f.name, off)
			}
		})
	}
	clear(c.forbidden)
}

// choose returns the numbers of 1 to 3 of n blocks, in order.
func (c *corruptor) choose(n int) (list []int) {
	want := min(n, 1+c.rng.IntN(3))
	for i := range n {
		if c.rng.IntN(n-i) < want-len(list) {
			list = append(list, i)
		}
	}
	return list
}

// checksum is the attribute for data as it should be.
func (c *corruptor) checksum(set *attrs.Set, data []byte) {
	a := []attrs.Algorithm{attrs.XXH64, attrs.CRC32C, attrs.CRC64NVMe}[c.rng.IntN(3)]
	set.SetChecksum(attrs.Checksum{
		Algorithm: a, Sums: a.AppendSums(nil, data),
		Return: len(data) <= cellBlocks*blockBytes && c.rng.IntN(2) == 0,
	})
}

// write stores new generations in blocks [first, first+n), which are dirty then.
func (c *corruptor) write(k *corruptedDisk, first, n int) {
	c.t.Helper()
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	for n > 0 {
		m := min(n, 256)
		gens, p := c.fresh(m)
		_, res, err := k.d.WriteAt(p, int64(first)*blockBytes, &set)
		must(c.t, err)
		if a := res.For(attrs.IDHint); a.Status != attrs.Handled {
			c.t.Fatalf("write to the cache: hint %v", a)
		}
		copy(k.has[first:], gens)
		first, n = first+m, n-m
	}
}

// drain writes back all dirty data of a disk.
func (c *corruptor) drain(k *corruptedDisk) error {
	c.t.Helper()
	must(c.t, c.b.cache.SetDrain(k.b.ID(), true))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := c.b.cache.WaitDrained(ctx, k.b.ID(), nil)
	must(c.t, c.b.cache.SetDrain(k.b.ID(), false))
	return err
}

// stats are the counters of a disk.
func (c *corruptor) stats(k *corruptedDisk) cache.BackingStats {
	return c.b.cache.Stats().Backings[k.b.ID()]
}

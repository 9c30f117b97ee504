package daemon

import (
	"bytes"

	"ubcache/attrs"
)

// badBlock is a block that was changed on a device.
type badBlock struct {
	block int
	on    *deviceImage
	off   int64
	was   []byte
}

func (c *corruptor) repair(list []badBlock) {
	for _, b := range list {
		b.on.write(c.t, b.off, b.was)
	}
}

// spoil changes a block on a device. stale is the generation of what it may be taken for.
func (c *corruptor) spoil(on *deviceImage, off int64, block int, stale uint64) badBlock {
	c.t.Helper()
	p := make([]byte, blockBytes)
	on.read(c.t, off, p)
	b := badBlock{block, on, off, bytes.Clone(p)}
	if c.corrupt(p, stale) {
		c.forbid(p, place{on, off})
	}
	on.write(c.t, off, p)
	return b
}

// spoilSSD changes the only copy of a block that the SSD has of its present generation.
func (c *corruptor) spoilSSD(at map[uint64][]int64, k *corruptedDisk, block int) badBlock {
	c.t.Helper()
	list := at[k.has[block]]
	if len(list) != 1 {
		c.t.Fatalf("block %d of %s is in %d places on the SSD", block, k.name, len(list))
	}
	return c.spoil(c.ssd, list[0], block, k.has[block]-1)
}

// spoilBacking changes a block on the backing device.
func (c *corruptor) spoilBacking(k *corruptedDisk, block int) badBlock {
	c.t.Helper()
	stale := uint64(1)
	if k.has[block] == stale {
		stale++
	}
	return c.spoil(k.file, k.b.DataOff()+int64(block)*blockBytes, block, stale)
}

// cleanOptions are what a class with clean blocks on the SSD is like.
type cleanOptions struct {
	name    string
	cells   int
	sums    bool // the client gives the checksums
	partial bool // requests of parts of blocks
}

// clean changes clean blocks on the SSD: they are read from the backing device instead.
func (c *corruptor) clean(o cleanOptions) {
	r, k := c.table.row(o.name), c.disks[0]
	base := c.take(k, o.cells*cellBlocks)
	c.write(k, base, o.cells*cellBlocks)
	must(c.t, c.drain(k))
	at := c.ssd.find(c.t)
	bad := make([][]int, o.cells)
	for i := range bad {
		first := base + i*cellBlocks
		bad[i] = c.choose(cellBlocks)
		if o.partial {
			bad[i] = bad[i][:1]
		}
		for _, j := range bad[i] {
			c.spoilSSD(at, k, first+j)
		}
	}
	for i := range bad {
		first := base + i*cellBlocks
		r.injected++
		before := c.stats(k)
		var ok bool
		switch {
		case !o.partial:
			ok = c.wantBlocks(r, k, first, cellBlocks, o.sums)
		case i%2 == 0:
			ok = c.wantPart(r, k, first+bad[i][0])
		default:
			ok = c.writePart(r, k, first+bad[i][0])
		}
		after := c.stats(k)
		if n := after.HealedBlocks - before.HealedBlocks; !ok || n != int64(len(bad[i])) ||
			after.BadBlocks != before.BadBlocks {
			c.t.Errorf("%s: %d blocks healed of %v of blocks %d…", r.where, n, bad[i], first)
			continue
		}
		if c.wantBlocks(r, k, first, cellBlocks, !o.sums) {
			r.healed++
		}
	}
	c.sweep(r)
	must(c.t, c.drain(k))
}

// wantPart reads some sectors of a block.
func (c *corruptor) wantPart(r *corruptionRow, k *corruptedDisk, block int) bool {
	c.t.Helper()
	from := 512 * (1 + c.rng.IntN(6))
	want := c.contents(k, block, 1)[from : from+512]
	got := make([]byte, 512)
	if _, _, err := k.d.ReadAt(got, int64(block)*blockBytes+int64(from), nil); err != nil {
		c.t.Errorf("%s: read of a sector of block %d: %v", r.where, block, err)
		return false
	}
	if !bytes.Equal(got, want) {
		r.good++
		c.t.Errorf("%s: a sector of block %d reads as something else", r.where, block)
		return false
	}
	return true
}

// writePart writes some sectors of a block, which has what it had before in the others, and after
// that all of it.
func (c *corruptor) writePart(r *corruptionRow, k *corruptedDisk, block int) bool {
	c.t.Helper()
	gens, p := c.fresh(1)
	from := 512 * (1 + c.rng.IntN(6))
	want := c.contents(k, block, 1)
	copy(want[from:from+512], p[from:])
	var set attrs.Set
	set.SetHint(attrs.HintCache)
	_, _, err := k.d.WriteAt(p[from:from+512], int64(block)*blockBytes+int64(from), &set)
	must(c.t, err)
	got := make([]byte, blockBytes)
	_, _, err = k.d.ReadAt(got, int64(block)*blockBytes, nil)
	must(c.t, err)
	if !bytes.Equal(got, want) {
		r.good++
		c.t.Errorf("%s: block %d reads as something else after a write of a part", r.where, block)
		return false
	}
	_, _, err = k.d.WriteAt(p, int64(block)*blockBytes, &set)
	must(c.t, err)
	k.has[block] = gens[0]
	return true
}

// wantRefused reads blocks with checksums, of which bad is the first that does not match. Nothing
// of them may reach the client.
func (c *corruptor) wantRefused(r *corruptionRow, k *corruptedDisk, first, n, bad int, h attrs.Hint) bool {
	c.t.Helper()
	var set attrs.Set
	set.SetHint(h)
	c.checksum(&set, c.contents(k, first, n))
	return c.wantFailure(r, k, first, n, &set, func(res *attrs.Results, err error) bool {
		return refused(res, err, bad)
	})
}

// wantFailure reads blocks, which has to fail as ok has it, and to leave the client's memory alone.
func (c *corruptor) wantFailure(r *corruptionRow, k *corruptedDisk, first, n int, set *attrs.Set,
	ok func(*attrs.Results, error) bool,
) bool {
	c.t.Helper()
	got, err := k.d.Alloc(n * blockBytes)
	must(c.t, err)
	defer k.d.Free(got)
	fill(got, 77)
	before := bytes.Clone(got)
	_, res, err := k.d.ReadAt(got, int64(first)*blockBytes, set)
	// What was read is removed, if it was read into the buffer at all.
	nothing := bytes.Equal(got, before) || bytes.Equal(got, make([]byte, len(got)))
	if err == nil || !nothing {
		r.good++
	}
	if !ok(&res, err) || !nothing {
		c.t.Errorf("%s: blocks %d+%d of %s: %v, %v", r.where, first, n, k.name, &res, err)
		return false
	}
	return true
}

var readHints = []attrs.Hint{
	attrs.HintDefault, attrs.HintCache, attrs.HintBypass, attrs.HintOnce, attrs.HintPrefetch,
}

// backing changes blocks on the backing device that are not cached: the client is told, and they do
// not enter the cache.
func (c *corruptor) backing(cells int) {
	r, k := c.table.row("backing device"), c.disks[1]
	base := c.take(k, cells*cellBlocks)
	for first := base; first < base+cells*cellBlocks; first += cellBlocks {
		gens, p := c.fresh(cellBlocks)
		copy(k.has[first:], gens)
		k.file.write(c.t, k.b.DataOff()+int64(first)*blockBytes, p)
	}
	spoiled := make([][]badBlock, cells)
	reported := make([]bool, cells)
	for i := range cells {
		first := base + i*cellBlocks
		for _, j := range c.choose(cellBlocks) {
			spoiled[i] = append(spoiled[i], c.spoilBacking(k, first+j))
		}
		r.injected++
		before := c.stats(k)
		reported[i] = c.wantRefused(r, k, first, cellBlocks, spoiled[i][0].block-first,
			readHints[i%len(readHints)])
		if n := c.stats(k).FillBlocks - before.FillBlocks; n != 0 {
			r.stored++
			c.t.Errorf("%s: %d blocks entered the cache with wrong ones among them", r.where, n)
		}
	}
	c.sweep(r)
	for i, list := range spoiled {
		c.repair(list)
		first := base + i*cellBlocks
		// Once from there and, as it is cached then, once from the SSD.
		if reported[i] && c.wantBlocks(r, k, first, cellBlocks, true) &&
			c.wantBlocks(r, k, first, cellBlocks, true) {
			r.reported++
		}
	}
}

// both changes blocks that are clean on the SSD there and on the backing device: what is read
// instead is verified too.
func (c *corruptor) both(cells int) {
	r, k := c.table.row("SSD, clean, and backing device"), c.disks[1]
	base := c.take(k, cells*cellBlocks)
	c.write(k, base, cells*cellBlocks)
	must(c.t, c.drain(k))
	at := c.ssd.find(c.t)
	spoiled := make([][]badBlock, cells)
	reported := make([]bool, cells)
	for i := range cells {
		first := base + i*cellBlocks
		for _, j := range c.choose(cellBlocks) {
			c.spoilSSD(at, k, first+j)
			spoiled[i] = append(spoiled[i], c.spoilBacking(k, first+j))
		}
		r.injected++
		reported[i] = c.wantRefused(r, k, first, cellBlocks, spoiled[i][0].block-first,
			readHints[i%len(readHints)])
	}
	c.sweep(r)
	for i, list := range spoiled {
		c.repair(list)
		before := c.stats(k).BadBlocks
		if reported[i] && c.wantBlocks(r, k, base+i*cellBlocks, cellBlocks, true) &&
			c.stats(k).BadBlocks == before {
			r.reported++
		}
	}
}

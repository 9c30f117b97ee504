package daemon

import (
	"bytes"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
)

// dirty changes dirty blocks on the SSD, of which there is no other copy: those and no others cannot
// be read, until they are overwritten.
func (c *corruptor) dirty(cells int) {
	r, k := c.table.row("SSD, dirty"), c.disks[0]
	base := c.take(k, cells*cellBlocks)
	c.write(k, base, cells*cellBlocks)
	at := c.ssd.find(c.t)
	for i := range cells {
		first := base + i*cellBlocks
		bad := c.choose(cellBlocks)
		var spoiled []badBlock
		for _, j := range bad {
			spoiled = append(spoiled, c.spoilSSD(at, k, first+j))
		}
		r.injected++
		before := c.stats(k)
		ok := c.wantLost(r, k, first, cellBlocks, bad[0], i)
		for j := range cellBlocks {
			if slices.Contains(bad, j) {
				ok = c.wantLost(r, k, first+j, 1, 0, i) && ok
			} else {
				ok = c.wantBlocks(r, k, first+j, 1, j%2 == 0) && ok
			}
		}
		after := c.stats(k)
		// Only where the cache knows by itself that they are bad they count as such.
		if n := after.BadBlocks - before.BadBlocks; c.b.cache.Checksums() && n != int64(len(bad)) {
			c.t.Errorf("%s: %d blocks counted as bad, of %d", r.where, n, len(bad))
			ok = false
		}
		if after.HealedBlocks != before.HealedBlocks {
			c.t.Errorf("%s: a dirty block was healed", r.where)
			ok = false
		}
		for _, b := range spoiled {
			c.write(k, b.block, 1)
		}
		if c.wantBlocks(r, k, first, cellBlocks, true) && ok {
			r.reported++
		}
	}
	must(c.t, c.drain(k))
	c.sweep(r)
	c.wantBlocks(r, k, base, 256, true)
}

// wantLost reads blocks of which one is lost. On a cache with checksums of its own the client need
// not give any; to one without it is the client who says so.
func (c *corruptor) wantLost(r *corruptionRow, k *corruptedDisk, first, n, bad, i int) bool {
	c.t.Helper()
	if !c.b.cache.Checksums() {
		return c.wantRefused(r, k, first, n, bad, attrs.HintDefault)
	}
	var set attrs.Set
	if i%2 == 0 {
		c.checksum(&set, c.contents(k, first, n))
	}
	return c.wantFailure(r, k, first, n, &set, func(_ *attrs.Results, err error) bool {
		return errors.Is(err, lostErrno)
	})
}

// lostErrno is what a read of a dirty block fails with that the SSD has not got any more.
const lostErrno = unix.EIO

// writebackFinds changes dirty blocks on the SSD that nobody reads before they are written back: they
// are not written to the backing device.
func (c *corruptor) writebackFinds(cells int) {
	r, k := c.table.row("SSD, dirty, written back"), c.disks[0]
	base := c.take(k, cells*cellBlocks)
	c.write(k, base, cells*cellBlocks)
	at := c.ssd.find(c.t)
	before := c.stats(k)
	var all []badBlock
	for i := range cells {
		all = append(all, c.spoilSSD(at, k, base+i*cellBlocks+c.rng.IntN(cellBlocks)))
	}
	r.injected += len(all)
	if err := c.drain(k); err == nil {
		c.t.Errorf("%s: a drain succeeds with %d blocks lost", r.where, len(all))
	}
	if n := c.stats(k).BadBlocks - before.BadBlocks; n != int64(len(all)) {
		c.t.Errorf("%s: %d blocks counted as bad, of %d", r.where, n, len(all))
	}
	c.sweep(r)
	p := make([]byte, blockBytes)
	for i, b := range all {
		k.file.read(c.t, k.b.DataOff()+int64(b.block)*blockBytes, p)
		if !bytes.Equal(p, make([]byte, blockBytes)) {
			r.stored++
			c.t.Errorf("%s: block %d was written back", r.where, b.block)
		}
		if c.wantLost(r, k, b.block, 1, 0, i) {
			r.reported++
		}
	}
	for _, b := range all {
		c.write(k, b.block, 1)
	}
	must(c.t, c.drain(k))
	for i := range cells { // and the others are all there
		want := c.contents(k, base+i*cellBlocks, cellBlocks)
		got := make([]byte, len(want))
		k.file.read(c.t, k.b.DataOff()+int64(base+i*cellBlocks)*blockBytes, got)
		if !bytes.Equal(got, want) {
			c.t.Errorf("%s: the backing device has something else in blocks %d…", r.where,
				base+i*cellBlocks)
		}
	}
}

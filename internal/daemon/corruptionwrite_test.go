package daemon

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"ubcache/attrs"
	api "ubcache/attrs/client"
	"ubcache/cache"
)

// corruptedWrite is a write with checksums of good data.
type corruptedWrite struct {
	k        *corruptedDisk
	first, n int
	gens     []uint64
	good     []byte
	buf      []byte // shared memory
	set      attrs.Set
}

// newWrite makes a write to somewhere in blocks [base, base+span), which goes some way through the
// cache.
func (c *corruptor) newWrite(k *corruptedDisk, base, span int) *corruptedWrite {
	c.t.Helper()
	n := 1 + c.rng.IntN(cellBlocks)
	if c.rng.IntN(32) == 0 {
		n = 1 + c.rng.IntN(attrs.MaxBlocks)
	}
	w := &corruptedWrite{k: k, first: base + c.rng.IntN(span-n+1), n: n}
	w.gens, w.good = c.fresh(n)
	var err error
	w.buf, err = k.d.Alloc(len(w.good))
	must(c.t, err)
	copy(w.buf, w.good)
	switch c.rng.IntN(5) {
	case 0:
		w.set.SetHint(attrs.HintCache)
	case 1:
		w.set.SetHint(attrs.HintBypass)
	case 2:
		w.set.SetMode(attrs.Writethrough)
	case 3:
		w.set.SetMode(attrs.Writearound)
	}
	c.checksum(&w.set, w.good)
	return w
}

func (w *corruptedWrite) do() (attrs.Results, error) {
	_, res, err := w.k.d.WriteAt(w.buf, int64(w.first)*blockBytes, &w.set)
	return res, err
}

// block is a block of the write as it is in memory.
func (w *corruptedWrite) block(i int) []byte { return w.buf[i*blockBytes:][:blockBytes] }

// accepted notes that the write was done.
func (w *corruptedWrite) accepted() { copy(w.k.has[w.first:], w.gens) }

// refused says whether a request failed as one does whose block bad does not match.
func refused(res *attrs.Results, err error, bad int) bool {
	b, mismatch := res.Mismatch()
	return errors.Is(err, attrs.ErrnoMismatch) && mismatch && int(b) == bad &&
		res.For(attrs.IDChecksum).Reason == attrs.ReasonMismatch
}

// wantBlocks reads blocks, with checksums or without, and counts it if something else is returned.
func (c *corruptor) wantBlocks(r *corruptionRow, k *corruptedDisk, first, n int, sums bool) bool {
	c.t.Helper()
	want := c.contents(k, first, n)
	var set attrs.Set
	if sums {
		c.checksum(&set, want)
	}
	got := make([]byte, len(want))
	_, res, err := k.d.ReadAt(got, int64(first)*blockBytes, &set)
	switch {
	case err != nil:
		c.t.Errorf("%s: read of blocks %d+%d of %s: %v (%v)", r.where, first, n, k.name, err, &res)
		return false
	case !bytes.Equal(got, want):
		r.good++
		c.t.Errorf("%s: blocks %d+%d of %s read as something else", r.where, first, n, k.name)
		return false
	}
	return true
}

// writeChanged changes the data of writes, or their checksums, after the checksums were made.
func (c *corruptor) writeChanged(count int) {
	r, k := c.table.row("in flight, write"), c.disks[0]
	const span = 1024
	base := c.take(k, span)
	c.write(k, base, span/2)
	for i := range count {
		w := c.newWrite(k, base, span)
		list := c.choose(w.n)
		if i%8 == 7 {
			sums := w.set.Checksum()
			sums.Sums[list[0]*sums.Algorithm.Width()] ^= 1 << c.rng.IntN(8)
			w.set.SetChecksum(sums)
			list = list[:1]
		} else {
			for _, j := range list {
				if c.corrupt(w.block(j), k.has[w.first+j]) {
					c.forbid(w.block(j), place{})
				}
			}
		}
		for j, g := range w.gens { // nor may the good ones be stored
			if bytes.Equal(w.block(j), w.good[j*blockBytes:][:blockBytes]) && g != 0 {
				c.forbid(w.block(j), place{})
			}
		}
		r.injected++
		before := c.stats(k)
		res, err := w.do()
		if !c.unwritten(before, c.stats(k)) {
			r.stored++
			c.t.Errorf("%s: a write that does not match had an effect", r.where)
		}
		if !refused(&res, err, list[0]) {
			c.t.Errorf("%s: block %d is bad: %v, %v", r.where, list[0], &res, err)
		} else if c.wantBlocks(r, k, w.first, w.n, i%2 == 0) {
			r.reported++
		}
		k.d.Free(w.buf)
		if i%4 == 0 { // there is something new in the range, and in new places
			c.writeGood(r, k, base, span)
		}
	}
	c.sweep(r)
	must(c.t, c.drain(k))
}

// unwritten says whether no write has come further than the check.
func (c *corruptor) unwritten(before, after cache.BackingStats) bool {
	return before.Writes == after.Writes && before.CachedWriteBlocks == after.CachedWriteBlocks &&
		before.BypassBytes == after.BypassBytes
}

func (c *corruptor) writeGood(r *corruptionRow, k *corruptedDisk, base, span int) {
	c.t.Helper()
	w := c.newWrite(k, base, span)
	_, err := w.do()
	must(c.t, err)
	w.accepted()
	c.wantBlocks(r, k, w.first, w.n, true)
	k.d.Free(w.buf)
}

// writeChangedAfter changes the data when the cache has verified it and not written it yet.
func (c *corruptor) writeChangedAfter(count int) {
	r, k := c.table.row("in flight, write, after the check"), c.disks[0]
	const span = 512
	base := c.take(k, span)
	d := c.b.directServer()
	var armed struct {
		sync.Mutex
		change func()
	}
	var serve func()
	must(c.t, d.loop.do(func() error {
		serve = d.loop.before
		d.loop.before = func() {
			serve() // takes requests and gives them to the engine, whose I/O begins after this
			armed.Lock()
			defer armed.Unlock()
			if armed.change != nil && d.ring.busy[k.b.ID()] > 0 {
				armed.change()
				armed.change = nil
			}
		}
		return nil
	}))
	for range count {
		w := c.newWrite(k, base, span)
		armed.Lock()
		armed.change = func() {
			for _, j := range c.choose(w.n) {
				if c.corrupt(w.block(j), 0) {
					c.forbid(w.block(j), place{})
				}
			}
			r.injected++
		}
		armed.Unlock()
		res, err := w.do()
		armed.Lock()
		if armed.change != nil {
			c.t.Errorf("%s: the request was over before its data was changed", r.where)
		}
		armed.change = nil
		armed.Unlock()
		if err != nil {
			c.t.Errorf("%s: %v, %v", r.where, &res, err)
		} else if w.accepted(); c.wantBlocks(r, k, w.first, w.n, true) {
			r.harmless++
		}
		k.d.Free(w.buf)
	}
	must(c.t, d.loop.do(func() error { d.loop.before = serve; return nil }))
	c.sweep(r)
	must(c.t, c.drain(k))
	c.wantBlocks(r, k, base, 256, false)
}

// writeRace has somebody change the data to and fro while the write is under way. Either that is
// found, or what is stored is the good data.
func (c *corruptor) writeRace(count int) {
	r, k := c.table.row("in flight, write, meanwhile"), c.disks[0]
	const span = 512
	base := c.take(k, span)
	for i := range count {
		w := c.newWrite(k, base, span)
		bad := c.rng.IntN(w.n)
		word := (*atomic.Uint32)(unsafe.Pointer(&w.block(bad)[4*c.rng.IntN(blockBytes/4)]))
		good := word.Load()
		word.Store(^good)
		c.forbid(w.block(bad), place{})
		if i%2 == 0 {
			word.Store(good)
		}
		r.injected++
		res, err := c.doWhile(w, word)
		word.Store(good)
		switch {
		case err == nil:
			if w.accepted(); c.wantBlocks(r, k, w.first, w.n, true) {
				r.harmless++
			}
		case refused(res, err, bad):
			for j := range w.n {
				c.forbid(w.block(j), place{})
			}
			if c.wantBlocks(r, k, w.first, w.n, false) {
				r.reported++
			}
		default:
			c.t.Errorf("%s: block %d is bad now and then: %v, %v", r.where, bad, res, err)
		}
		k.d.Free(w.buf)
	}
	if r.reported == 0 || r.harmless == 0 {
		c.t.Errorf("%s: %d reported, %d harmless: no race", r.where, r.reported, r.harmless)
	}
	c.sweep(r)
	must(c.t, c.drain(k))
}

// doWhile does the write while a word of its data changes all the time.
func (c *corruptor) doWhile(w *corruptedWrite, word *atomic.Uint32) (*attrs.Results, error) {
	c.t.Helper()
	var stop atomic.Bool
	var other sync.WaitGroup
	begun := make(chan struct{})
	other.Go(func() {
		for i, v := 0, ^word.Load(); !stop.Load(); i, v = i+1, ^v {
			if word.Store(v); i == 100 {
				close(begun)
			}
		}
	})
	<-begun
	op := api.Op{Kind: api.Write, Buf: w.buf, Off: int64(w.first) * blockBytes, Attrs: &w.set}
	must(c.t, w.k.d.Submit(&op))
	err := op.Wait()
	stop.Store(true)
	other.Wait()
	return &op.Results, err
}

package cache

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// loader loads, on the background lane, what the start has left of the summaries: some pages at a time,
// of both copies, a few reads under way at once. What lanes do meanwhile is in loading.go.
type loader struct {
	bg     *background
	next   BucketID // to be read
	known  []bool   // buckets that the start has loaded, or knew to be empty
	lsn    []LSN    // per bucket: its age
	used   []BucketID
	stale  []BucketID // whose summaries have entries that are obsolete, or are lost
	chunks [loadDepth]loadChunk

	fetched uint64
}

// loadDepth is how many chunks are read at once.
const loadDepth = 2

// loadChunk is buckets that lie side by side and are loaded together.
type loadChunk struct {
	d     *loader
	first BucketID
	n     int // buckets; 0: it has nothing to do
	step  loadStep
	waits int
	again bool // the SSD was lost meanwhile: all is to be read once more
	buf   [2][]byte
	bad   [2][]bool // pages that cannot be read
	want  uint64    // the probe of the SSD whose outcome is waited for
	loss  int64     // how often the SSD had been lost when they were read
}

type loadStep uint8

const (
	loadWaiting loadStep = iota // for its turn
	loadReading
	loadDoubt // some pages failed; waits until it is known that it was not all of the SSD
)

// loadOne, in Op.arg, marks the read of a single page; the copy's number is above it, the page below.
const (
	loadOne  = 1 << 30
	loadCopy = 31
)

// startLoader makes the background lane load the rest.
func (bg *background) startLoader() {
	c := bg.l.c
	d := c.rest
	if d == nil || !c.loading.on.Load() {
		return
	}
	c.rest, bg.loader, d.bg = nil, d, bg
	for i := range d.chunks {
		d.chunks[i].d = d
	}
}

// tick sets off what can go on, and reports whether there is more to load.
func (d *loader) tick() bool {
	if d == nil || !d.bg.l.c.loading.on.Load() {
		return false
	}
	for i := range d.chunks {
		d.chunks[i].goOn(d.bg.l)
	}
	return true
}

// take gives the chunk its next buckets; false if there are none.
func (d *loader) take(k *loadChunk) bool {
	c := d.bg.l.c
	for int(d.next) < len(d.known) && d.known[d.next] {
		d.next++
	}
	if int(d.next) == len(d.known) {
		return false
	}
	most := max(1, c.opts.Load.pages()/int(c.geo.summaryPages()))
	k.first, k.n = d.next, 0
	for k.n < most && int(d.next) < len(d.known) && !d.known[d.next] {
		k.n++
		d.next++
	}
	return true
}

func (o *LoadOptions) pages() int {
	if o.Pages > 0 {
		return o.Pages
	}
	return defaultLoadPages
}

// goOn begins to read the next buckets, or goes on with those that had to wait.
func (k *loadChunk) goOn(l *Lane) {
	c := l.c
	switch {
	case c.lost() || k.step == loadReading || !c.loading.on.Load():
		return
	case k.step == loadDoubt:
		if c.ssdHealth.good.Load() < k.want {
			return
		}
		if k.loss == c.ssdHealth.losses.Load() && c.ssdHealth.bad.Load() < k.want {
			k.install(l)
			return
		}
	case k.n == 0 && !k.d.take(k):
		k.d.end(l)
		return
	}
	pages := k.n * int(c.geo.summaryPages())
	for i := range k.buf {
		if len(k.buf[i]) < pages*pageSize {
			freeOffHeap(k.buf[i])
			var err error
			if k.buf[i], err = offHeap(int64(pages) * pageSize); err != nil {
				k.buf[i] = nil
				return // no memory now; the next tick tries again
			}
			k.bad[i] = make([]bool, pages)
		}
		clear(k.bad[i])
	}
	k.step, k.again, k.waits, k.loss = loadReading, false, 2, c.ssdHealth.losses.Load()
	for i := range k.buf {
		l.move(k, OpRead, SSD, c.geo.summaryOff(i, k.first), k.buf[i][:pages*pageSize],
			uint32(i)<<loadCopy)
	}
}

func (k *loadChunk) opDone(l *Lane, op *Op, err error) {
	c := l.c
	copyNo, page := int(op.arg>>loadCopy), int(op.arg&(loadOne-1))
	switch {
	case err == nil:
	case c.lost():
		k.again = true
	case op.arg&loadOne != 0:
		k.bad[copyNo][page] = true
		h := &c.ssdHealth
		k.want = h.begun.Load() + 1
		storeMax(&h.wanted, k.want)
	default: // one bad sector fails the operation that reads many pages
		for i := range k.n * int(c.geo.summaryPages()) {
			k.waits++
			l.move(k, OpRead, SSD, c.geo.summaryOff(copyNo, k.first)+int64(i)*pageSize,
				k.buf[copyNo][i*pageSize:(i+1)*pageSize], uint32(copyNo)<<loadCopy|loadOne|uint32(i))
		}
	}
	if k.waits--; k.waits > 0 {
		return
	}
	switch {
	case k.again, k.loss != c.ssdHealth.losses.Load():
		k.step = loadWaiting // of changes without the SSD there are no records that say what is obsolete
	case slices.Contains(k.bad[0], true) || slices.Contains(k.bad[1], true):
		k.step = loadDoubt
		c.pokeBackground()
	default:
		k.install(l)
	}
}

// install puts what was read into the index and goes on with the next.
func (k *loadChunk) install(l *Lane) {
	for i := range k.n {
		k.loadBucket(l.c, k.first+BucketID(i), i*int(l.c.geo.summaryPages()))
	}
	k.n, k.step = 0, loadWaiting
	k.goOn(l)
}

// loadBucket loads the pages of a bucket, which begin with page at of the chunk.
func (k *loadChunk) loadBucket(c *Cache, b BucketID, at int) {
	d, g := k.d, &c.loading
	empty, stale := true, false
	for i := range int(c.geo.summaryPages()) {
		page := int64(b)*c.geo.summaryPages() + int64(i)
		var found [2]copyFound
		for n := range found {
			f := &found[n]
			*f = c.checkSummary(k.buf[n][(at+i)*pageSize:][:pageSize], n, page)
			if k.bad[n][at+i] || f.state == summaryGood && f.lsn > g.from {
				*f = copyFound{state: summaryBad}
			}
		}
		good := newerCopy(found)
		stale = stale || found[0].state != found[1].state || found[0].lsn != found[1].lsn
		if good.state != summaryGood {
			if found[0].state == summaryBad || found[1].state == summaryBad {
				g.lost.Add(1)
				stale = true
				g.unsure.Store(true) // the next start may be able to load it
			}
			continue
		}
		d.lsn[b] = max(d.lsn[b], good.lsn)
		n, left := d.loadPage(c, good.p, page)
		empty, stale = empty && n == 0, stale || left > 0
		g.left.Add(int64(left))
	}
	g.done.Add(c.geo.summaryPages())
	if stale {
		d.stale = append(d.stale, b)
	}
	if empty && !stale {
		c.alloc.addFree(b)
	} else {
		// Also if nothing of it is good any more: it can be filled when a record says so.
		d.used = append(d.used, b)
	}
}

// loadPage puts the entries of a page into the index: n is how many there are, left how many of them
// are obsolete.
func (d *loader) loadPage(c *Cache, p []byte, page int64) (n, left int) {
	le := binary.LittleEndian
	first, slots := c.geo.pageSlots(page)
	var mem [summarySlots]key
	keys := mem[:0]
	for i := range slots {
		if w := le.Uint64(p[summaryHeader+i*summaryEntry:]); w != 0 {
			keys = append(keys, key(w>>16))
		}
	}
	d.fetched += c.index.fetch(keys)
	for i := range slots {
		q := p[summaryHeader+i*summaryEntry:]
		w := le.Uint64(q)
		if w == 0 {
			continue
		}
		e := entry{slot: first + Slot(i), st: state(w) & stStored, sum: le.Uint32(q[8:])}
		if !c.loadEntry(key(w>>16), e) {
			left++
		}
	}
	return len(keys), left
}

// end ends the loading when the last chunk is done.
func (d *loader) end(l *Lane) {
	for i := range d.chunks {
		if d.chunks[i].n != 0 {
			return
		}
	}
	c := l.c
	d.free()
	slices.SortStableFunc(d.used, func(x, y BucketID) int { return cmp.Compare(d.lsn[x], d.lsn[y]) })
	c.alloc.adopt(d.used)
	j := &c.journal
	j.mu.Lock()
	j.mu.queue.noteFirst(c.buckets, d.stale, c.loading.from)
	j.mu.Unlock()
	c.loading.end()
	d.known, d.lsn, d.used, d.stale = nil, nil, nil, nil
	j.advanceTail()
	c.pokeBackground()
}

func (d *loader) free() {
	for i := range d.chunks {
		for n := range d.chunks[i].buf {
			freeOffHeap(d.chunks[i].buf[n])
			d.chunks[i].buf[n] = nil
		}
	}
}

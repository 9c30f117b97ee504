package shm

import (
	"slices"
	"sync/atomic"

	"ubcache/attrs"
)

// maxLayers is how many answers for the same data are told apart.
const maxLayers = 4

// Collector puts the answers for a request together. Its memory is used again by each Collect, so
// one of them serves one request at a time.
type Collector struct {
	// What every request touches comes first, on as few pages as can be.
	n      int
	lost   uint32
	piece  attrs.Results
	last   attrs.ResultsDecoder
	buf    [attrs.MaxBytes]byte
	total  attrs.Results
	layers [maxLayers]layer
}

// layer is a row of answers, side by side in order of addresses. Where all of a request went to one
// device, or to several one after the other (a stripe), there is one; two halves of a mirror make
// two.
type layer struct {
	results attrs.Results
	pos     int64 // up to where there are answers
	sums    [attrs.MaxBlocks * 8]byte
}

// found is an answer in the slots of a page.
type found struct {
	start, length int64
	device        uint32
	page, k       int
	bytes         int
}

// Collect returns the answers for a request that is over, and empties its slots. What nobody
// answered is not handled: all of it, if the request went to another device, and all the same if a
// part of it was not answered, or was answered by fewer devices than another part. The results are
// good until the next Collect with c, and not to be changed.
func (r *Region) Collect(t Ticket, c *Collector) *attrs.Results {
	c.lost = 0
	if uint64(t.start)%PageBytes+uint64(t.length) <= PageBytes { // nearly all
		p := r.at(int(uint64(t.start) / PageBytes))
		a := &p.answers[0]
		last, n := c.last.Short()
		if p.more()|a.other(t)|(a.bytes^n)|n>>31 == 0 && last.Other(a.body.short()) == 0 {
			p.empty()
			return c.last.Last()
		}
	}
	first, count := pagesOf(t.start, t.length)
	res := r.single(t, first, count, c)
	if res == nil {
		res = r.gather(t, first, count, c)
	}
	for i := range count {
		r.at(first + i).empty()
	}
	return res
}

// other is 0 if the slot has an answer of all of the request. As that is mostly so it is one question.
func (a *answerSlot) other(t Ticket) uint32 {
	claim := atomic.LoadUint64(&a.claim)
	if uint32(claim) == 0 {
		return 1
	}
	done := atomic.LoadUint32(&a.done) // before what it says is there
	start := a.start ^ uint64(t.start)
	return (done ^ t.seq) | (uint32(claim>>32) ^ t.seq) | uint32(start) | uint32(start>>32) |
		(a.length ^ uint32(t.length)) | a.chunk
}

// empty leaves a page to nobody: what goes out from it next has no attributes, and no server finds a place to answer in.
func (p *pageSlots) empty() {
	p.free(0)
	atomic.StoreUint32(&p.set.seq, 0)
}

// gather puts the answers together that the slots of some pages have.
func (r *Region) gather(t Ticket, first, count int, c *Collector) *attrs.Results {
	var list [Answers]found
	c.n = 0
	for page := first; page < first+count; page++ {
		c.lost += atomic.LoadUint32(&r.at(page).set.overflow)
		n := 0
		for k := range Answers {
			if r.find(t, page, k, &list[n]) {
				n++
			}
		}
		slices.SortStableFunc(list[:n], func(a, b found) int { return int(a.start - b.start) })
		for i := range n {
			r.add(t, c, &list[i])
		}
	}
	return c.join(t)
}

// single reads the answer of a request that has just one, for all of it, as nearly all have. It returns
// nil if there are others, or none.
func (r *Region) single(t Ticket, first, count int, c *Collector) *attrs.Results {
	p := r.at(first)
	more := p.more()
	for i := 1; i < count; i++ {
		o := r.at(first + i)
		more |= o.more() | uint32(atomic.LoadUint64(&o.answers[0].claim))
	}
	a := &p.answers[0]
	n := atomic.LoadUint32(&a.bytes)
	// An answer of the whole request begins in its first page, and what does not fit one slot is for those who
	// look for all of its parts.
	if more|a.other(t) != 0 || n > BodyBytes {
		return nil
	}
	b := a.body[:n]
	if c.last.Is(b) {
		return c.last.Last()
	}
	if c.last.Decode(&c.piece, c.buf[:copy(c.buf[:], b)]) != nil {
		return nil
	}
	return &c.piece
}

// Lost is how many answers of the last Collect found no room in the slots.
func (c *Collector) Lost() uint32 { return c.lost }

// find reads the head of an answer slot. It returns whether the slot has the first part of an
// answer for the request.
func (r *Region) find(t Ticket, page, k int, f *found) bool {
	a := &r.at(page).answers[k]
	claim := atomic.LoadUint64(&a.claim)
	if claim>>32 != uint64(t.seq) || uint32(claim) == 0 || atomic.LoadUint32(&a.done) != t.seq {
		return false
	}
	*f = found{
		start: int64(a.start), length: int64(a.length), device: uint32(claim), page: page, k: k, bytes: int(a.bytes),
	}
	return a.chunk == 0 && f.start >= t.start && f.length <= t.length &&
		f.start-t.start <= t.length-f.length && int(f.start/PageBytes) == page &&
		f.bytes <= attrs.MaxBytes && (f.length > 0 || t.length == 0)
}

// add puts an answer at the end of a row that ends where it begins or before, or begins a new row.
func (r *Region) add(t Ticket, c *Collector, f *found) {
	if !r.decode(t, c, f) {
		return
	}
	// Which of several rows does not matter: they are joined in the end, and a gap in any of them
	// counts.
	var to *layer
	for i := range c.n {
		if l := &c.layers[i]; l.pos <= f.start && t.length != 0 {
			to = l
			break
		}
	}
	if to == nil {
		if c.n == maxLayers {
			c.lost++
			return
		}
		to = &c.layers[c.n]
		c.n++
		to.pos, to.results = t.start, attrs.Results{}
	}
	to.silence(t, f.start)
	to.append(t, c, f)
}

// decode reads an answer into c.piece, with the parts that lie in later pages.
func (r *Region) decode(t Ticket, c *Collector, f *found) bool {
	last, count := pagesOf(f.start, f.length)
	last += count
	k := f.k
	for n, page := 0, f.page; n < f.bytes; n, page = n+BodyBytes, page+1 {
		if n > 0 {
			if page >= last {
				return false
			}
			if k = r.findChunk(t, f, page); k < 0 {
				return false
			}
		}
		copy(c.buf[n:f.bytes], r.at(page).answers[k].body[:]) // no more than the answer has
	}
	return c.last.Decode(&c.piece, c.buf[:f.bytes]) == nil
}

// findChunk looks in the slots of a page for the part of an answer that belongs there; -1 if there
// is none.
func (r *Region) findChunk(t Ticket, f *found, page int) int {
	p := r.at(page)
	for k := range p.answers {
		a := &p.answers[k]
		if atomic.LoadUint64(&a.claim) == claimOf(t.seq, f.device) && atomic.LoadUint32(&a.done) == t.seq &&
			a.chunk == uint32(page-f.page) && int64(a.start) == f.start {
			return k
		}
	}
	return -1
}

// silence fills a row up to a place with silence, if there is a gap.
func (l *layer) silence(t Ticket, to int64) {
	if to <= l.pos {
		return
	}
	gap := attrs.Results{Blocks: uint32((to - l.pos + attrs.BlockSize - 1) / attrs.BlockSize)}
	if l.pos == t.start {
		l.results = gap
	} else {
		l.results.Combine(&gap)
	}
	l.pos = to
}

// append puts c.piece at the end of the row.
func (l *layer) append(t Ticket, c *Collector, f *found) {
	if f.start == t.start {
		l.results = c.piece
		// Checksums are copied to where there is room for those of the pieces that follow.
		if a, sums := c.piece.Checksums(); len(sums) != 0 {
			if _, bad := c.piece.Mismatch(); !bad {
				l.results.SetChecksums(a, append(l.sums[:0], sums...))
			}
		}
	} else {
		l.results.Combine(&c.piece)
	}
	l.pos = f.start + f.length
}

// join makes the rows one.
func (c *Collector) join(t Ticket) *attrs.Results {
	c.total = attrs.Results{}
	for i := range c.n {
		l := &c.layers[i]
		l.silence(t, t.start+t.length)
		if i == 0 {
			c.total = l.results
		} else {
			c.total.Join(&l.results)
		}
	}
	if c.lost != 0 {
		c.total.Join(&attrs.Results{})
	}
	return &c.total
}

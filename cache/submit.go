package cache

import (
	"fmt"
	"syscall"

	"ubcache/attrs"
	"ubcache/policy"
)

// span is a run of bytes of a cached device, not empty.
type span struct{ off, len int64 }

func (s span) first() Block { return Block(s.off / BlockSize) }
func (s span) last() Block  { return Block((s.off + s.len - 1) / BlockSize) }

// cut returns the part of s up to the next region boundary, and the rest.
func (s span) cut() (part, rest span) {
	end := min(s.off+s.len, (s.off/regionBytes+1)*regionBytes)
	return span{s.off, end - s.off}, span{end, s.off + s.len - end}
}

// Submit takes a request. Driver.Finish answers it, perhaps before Submit returns.
func (l *Lane) Submit(r *Request) {
	r.Err, r.pending, r.touched, r.reached, r.next, r.flying = nil, 0, 0, 0, nil, 0
	r.res, r.track, r.hits, r.losses, r.copied, r.Placed = nil, nil, 0, noLosses, noLosses, false
	r.serving, r.noticed, r.resting, r.way = false, false, 0, way{}
	b := l.c.backing(r.Backing)
	if b == nil {
		l.refuse(r, ErrNoBacking)
		return
	}
	r.b = b
	r.started = l.d.Now()
	b.lastIO.Store(r.started)
	if err := l.check(r); err != nil || r.Len == 0 && r.Op != ReqFlush {
		l.refuse(r, err)
		return
	}
	if r.Op == ReqFlush || l.enter(r) {
		l.begin(r)
	}
}

// begin puts a request into service.
func (l *Lane) begin(r *Request) {
	b := r.b
	if r.Attrs == nil || !l.decideAgain(r) {
		if err := l.accept(r); err != nil {
			l.refuse(r, err)
			return
		}
	}
	switch r.Op {
	case ReqFlush:
		l.io[b.id].Flushes.Add(1)
		l.startFlush(r, flushAll)
	case ReqRead:
		l.submitRead(r)
	case ReqWrite:
		l.submitWrite(r)
	default:
		l.io[b.id].Discards.Add(1)
		if r.Op == ReqDiscard && !b.discards.Load() && b.pinned.Load() != 0 {
			r.way.after = afterUnpin // dirty data stays, but not its pins
		}
		l.startThrough(r, span{r.Off, r.Len}, false)
	}
}

// check reports a request that makes no sense.
func (l *Lane) check(r *Request) error {
	b := r.b
	if r.Op == ReqFlush {
		return nil
	}
	if r.Off < 0 || r.Len < 0 || r.Off > b.size-r.Len || (r.Off|r.Len)%b.lbs != 0 {
		return fmt.Errorf("%s at %d+%d is outside the device or not in its blocks: %w",
			r.Op, r.Off, r.Len, syscall.EINVAL)
	}
	if l.c.checksums && r.Data == nil && r.Op <= ReqWrite && r.Len > 0 {
		panic("cache: request without visible data on a cache with data checksums")
	}
	return nil
}

// refuse answers a request that has done nothing. What was not decided is not answered.
func (l *Lane) refuse(r *Request, err error) {
	r.Err = err
	if r.res == nil && r.Results != nil {
		*r.Results = attrs.Results{}
	}
	l.finish(r)
}

func (l *Lane) submitRead(r *Request) {
	b := r.b
	io := &l.io[b.id]
	io.Reads.Add(1)
	io.ReadBytes.Add(r.Len)
	fill := l.admits(r) && r.way.fill
	r.Placed = r.Target != nil && r.Data != nil && !r.summed()
	s := span{r.Off, r.Len}
	r.pending = 1
	for s.len > 0 {
		var part span
		part, s = s.cut()
		r.pending++
		l.startRead(r, part, fill)
	}
	l.pieceDone(r, nil)
}

// submitWrite chooses where a write goes: to the SSD, or to the backing device with or without
// a copy on the SSD.
func (l *Lane) submitWrite(r *Request) {
	b := r.b
	io := &l.io[b.id]
	io.Writes.Add(1)
	io.WriteBytes.Add(r.Len)
	admit := l.admits(r)
	s := span{r.Off, r.Len}
	if l.c.around(b) && (l.c.lost() || !l.anyDirty(b, s)) {
		r.notCached()
		l.startThrough(r, s, false)
		return
	}
	if b.pinned.Load() != 0 && (r.way.back || r.way.fill) && l.anyPinned(b, s) {
		admit = true // a pin outlives a write
		r.way.through = r.way.through || !r.way.back || l.full(b)
	}
	if r.way.back && b.order.on.Load() && !l.full(b) && !r.way.over {
		l.startWrites(r, s) // past the cache it would have to wait for its turn
		return
	}
	if r.way.through {
		l.startThrough(r, s, admit)
		return
	}
	if !admit && r.way.back && !r.way.over && b.Presence() != Present {
		admit = true
		r.insist()
	}
	// Dirty blocks are better overwritten on the SSD: past it they cost a backing flush.
	if l.full(b) || (!r.way.back || !admit) && (r.way.over || !l.anyDirty(b, s)) {
		l.startThrough(r, s, false)
		return
	}
	l.startWrites(r, s)
}

// startWrites writes to the SSD, region by region.
func (l *Lane) startWrites(r *Request, s span) {
	r.pending = 1
	for s.len > 0 {
		var part span
		part, s = s.cut()
		r.pending++
		l.startWrite(r, part)
	}
	l.pieceDone(r, nil)
}

// sequential notes the request in its stream and reports whether the stream is past the cutoff.
func (l *Lane) sequential(r *Request) bool {
	if l.seq[r.b.id] == nil {
		l.seq[r.b.id] = &policy.Sequential{}
	}
	run := l.seq[r.b.id].Add(uint64(r.Off), uint64(r.Len))
	cutoff := r.b.cutoff.Load()
	return cutoff > 0 && run >= uint64(cutoff)
}

// anyDirty reports whether writeback has work in the span.
func (l *Lane) anyDirty(b *Backing, s span) bool {
	if b.dirty.Load() == 0 {
		return false
	}
	for s.len > 0 {
		var part span
		part, s = s.cut()
		first, last := part.first(), part.last()
		st := l.c.index.stripeOf(b.id, first)
		st.mu.Lock()
		for blk := first; blk <= last; blk++ {
			e, ok := l.c.index.find(makeKey(b.id, blk))
			if ok && e.st&(stDirty|stPending) == stDirty {
				st.mu.Unlock()
				return true
			}
		}
		st.mu.Unlock()
	}
	return false
}

// pieceDone ends a piece of a request. After the last one comes what its hint asks for besides.
func (l *Lane) pieceDone(r *Request, err error) {
	if err != nil && r.Err == nil {
		r.Err = err
	}
	if r.pending--; r.pending > 0 {
		return
	}
	if r.way.after != afterNothing && r.Err == nil {
		l.startAfter(r)
		return
	}
	l.served(r)
}

// served ends a request that has had all its effects: a write with FUA is made durable first.
func (l *Lane) served(r *Request) {
	if r.FUA && r.Err == nil && r.touched != 0 {
		scope := flushScope(0)
		if r.touched&touchedSSD != 0 {
			scope |= flushSSD
		}
		if r.touched&touchedBacking != 0 {
			scope |= flushBacking | flushSSD
		}
		if r.b.order.on.Load() {
			scope = flushAll // it ends a batch, of which all has to be durable
		}
		l.startFlush(r, scope)
		return
	}
	l.finish(r)
}

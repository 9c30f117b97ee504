package cache

// maybeFill writes the misses to the SSD, if they are still wanted there.
func (p *readPiece) maybeFill(l *Lane) {
	n := p.miss.to - p.miss.from
	if !p.held || p.err != nil || l.c.health() != HealthOK && !mutated(mutStallAdmits) ||
		(p.r.Data == nil && p.buf == nil) || !l.c.journal.reserve(n) {
		if p.held {
			p.r.notCached()
		}
		p.finish(l, 0)
		return
	}
	var ok bool
	if p.runs, _, ok = l.allocAll(p.r.way.stream, n, p.runs); !ok {
		p.r.notCached()
		p.finish(l, n)
		return
	}
	p.step, p.waits = readFilled, 1
	i := p.miss.from
	for _, r := range p.runs {
		_, _, reqOff := p.part(i)
		p.sumRun(l.c, i, r.n, reqOff)
		p.waits++
		if p.buf != nil {
			mem := p.buf[i*BlockSize : (i+r.n)*BlockSize]
			l.moveFor(p.r, p, OpWrite, SSD, l.c.geo.slotOff(r.first), mem, 0)
		} else {
			l.transfer(p, OpWrite, SSD, l.c.geo.slotOff(r.first), p.r, reqOff, r.n*BlockSize, 0)
		}
		i += r.n
	}
	p.opsDone(l)
}

func (p *readPiece) sumRun(c *Cache, i, n, reqOff int) {
	if !c.checksums || p.r.Data == nil {
		return
	}
	for j := range n {
		k := makeKey(p.r.b.id, p.first+Block(i+j))
		p.sums[i+j] = dataSum(p.r.Data[reqOff+j*BlockSize:][:BlockSize], uint64(k))
	}
}

// insert puts what was filled into the index. A block near which the backing device was written
// and not flushed may still be lost there, so it is recorded as dirty until the next flush.
func (p *readPiece) insert(l *Lane) {
	c, b := l.c, p.r.b
	s := c.index.stripeOf(b.id, p.first)
	used, i := 0, p.miss.from
	s.mu.Lock()
	if p.unfilled = p.unfilled || c.lost() || p.lock.cancelled; !p.unfilled {
		for _, r := range p.runs {
			for j := range r.n {
				blk := p.first + Block(i+j)
				k := makeKey(b.id, blk)
				if p.slots[i+j] != noSlot {
					continue // it was a hit between the misses
				}
				if _, ok := c.index.find(k); ok {
					continue
				}
				st := fullMask | p.r.way.refs.first()
				slot := r.first + Slot(j)
				lost := p.losses != b.losses.Load() // then a flush since does not vouch for it
				if n := b.unflushed(blk); (n != 0 || lost) && !mutated(mutFillUnflushed) {
					if !lost && !c.pend(b, k, slot, n, p.losses) {
						continue
					}
					if st |= stDirty; !lost {
						st |= stPending
					} // else it has been read, so it must be written there again
				}
				c.mapBlock(b, s, k, entry{slot: slot, st: st, owner: p.r.way.tenant, sum: p.sums[i+j]})
				if lost && st&stDirty != 0 {
					b.order.doubt()
				}
				used++
			}
			i += r.n
		}
	}
	s.mu.Unlock()
	if p.unfilled {
		p.r.notCached()
	}
	l.io[b.id].FillBlocks.Add(int64(used))
	l.dropRuns(p.runs)
	p.finish(l, p.miss.to-p.miss.from-used)
}

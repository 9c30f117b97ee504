package cache

// orderPiece copies versions of one region at a time from the SSD to the backing device. Nothing
// else writes there meanwhile: what would has waited for the batch, see through and writeback.
type orderPiece struct {
	r     *orderRun
	list  []queued
	bad   [regionBlocks]bool // the SSD did not return it
	buf   []byte             // the region, each block at its place
	read  bool               // the versions are here
	waits int
}

// start takes the next versions, or reports that there are none.
func (p *orderPiece) start() {
	r := p.r
	if r.err != nil || r.next == len(r.list) {
		r.pieceDone()
		return
	}
	if p.buf == nil {
		var err error
		if p.buf, err = offHeap(regionBytes); err != nil {
			r.err = err
			r.pieceDone()
			return
		}
	}
	rest := r.list[r.next:]
	n := 1
	for n < len(rest) && rest[n].k>>regionShift == rest[0].k>>regionShift {
		n++
	}
	p.list = rest[:n]
	r.next += n
	p.load()
}

// block is the place of a version in the buffer.
func (p *orderPiece) block(i int) int { return int(p.list[i].k.block() & (regionBlocks - 1)) }

// load reads the versions, those that lie side by side on both devices at once. Their slots are not
// reused before they are settled.
func (p *orderPiece) load() {
	p.read, p.waits = false, 1
	clear(p.bad[:len(p.list)])
	for i := 0; i < len(p.list); {
		n := 1
		for i+n < len(p.list) && p.list[i+n].k == p.list[i].k+key(n) &&
			p.list[i+n].slot == p.list[i].slot+Slot(n) {
			n++
		}
		p.readSSD(i, n)
		i += n
	}
	p.opsDone()
}

func (p *orderPiece) readSSD(i, n int) {
	l, at := p.r.bg.l, p.block(i)*BlockSize
	p.waits++
	l.move(p, OpRead, SSD, l.c.geo.slotOff(p.list[i].slot), p.buf[at:at+n*BlockSize:at+n*BlockSize],
		uint32(i)<<16|uint32(n))
}

func (p *orderPiece) opDone(_ *Lane, op *Op, err error) {
	switch {
	case !p.read:
		p.verify(int(op.arg>>16), int(op.arg&0xffff), err)
	case err != nil:
		p.r.err = err
	}
	p.opsDone()
}

// verify looks at versions that were read. What the SSD fails to read may come at the next try; after the last
// two a probe has to say that it is there at all. What it returns wrongly is lost, and the image goes on without.
func (p *orderPiece) verify(i, n int, err error) {
	r := p.r
	l := r.bg.l
	if err != nil {
		r.sick = err
		if l.c.lost() || l.c.ssdHealth.gone.Load() || !ofBucket(err) {
			r.away = true
		}
		if !r.splits() {
			return // nothing of this try counts
		}
		if n > 1 { // one bad sector fails them all
			for j := i; j < i+n; j++ {
				p.readSSD(j, 1)
			}
			return
		}
		p.bad[i] = true
		r.suspects = append(r.suspects, p.list[i])
		return
	}
	for ; n > 0 && l.c.checksums; i, n = i+1, n-1 {
		v, at := p.list[i], p.block(i)*BlockSize
		if dataSum(p.buf[at:at+BlockSize], uint64(v.k)) != v.sum {
			p.bad[i] = true
			r.condemn(v)
		}
	}
}

func (p *orderPiece) opsDone() {
	if p.waits--; p.waits > 0 {
		return
	}
	if !p.read {
		p.read = true
		if p.r.sick == nil || p.r.lastTry() {
			p.write()
			return
		}
	}
	p.start()
}

// write starts one write per run of valid sectors.
func (p *orderPiece) write() {
	l, b := p.r.bg.l, p.r.b
	p.waits = 1
	var from, to int64 // the run so far, bytes of the device
	flush := func() {
		if from < to {
			p.waits++
			at := from % regionBytes
			l.move(p, OpWrite, b.id, b.dataOff+from, p.buf[at:at+to-from], 0)
		}
		from, to = 0, 0
	}
	for i, v := range p.list {
		if p.bad[i] {
			continue
		}
		base := int64(v.k.block()) * BlockSize
		for j := range int64(sectorsPerBlock) {
			if v.mask&(1<<j) == 0 {
				continue
			}
			if at := base + j*SectorSize; at != to || from == to {
				flush()
				from, to = at, at
			}
			to += SectorSize
		}
	}
	flush()
	p.opsDone()
}

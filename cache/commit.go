package cache

import "encoding/binary"

// commit is the state of the commit under way.
type commit struct {
	j       *journal
	resume  waiter
	buf     []byte
	target  LSN    // what the flush covers
	upTo    LSN    // what the pages of this round cover
	first   uint64 // page sequences of this round
	lastSeq uint64
	writes  int
	err     error
	step    commitStep
	seal    bool // an empty page
}

type commitStep uint8

const (
	commitFlush commitStep = iota
	commitWrite
	commitHear // what became of others' flushes
	commitNext
)

// start begins a commit on the lane unless one runs.
func (j *journal) start(l *Lane) {
	j.mu.Lock()
	if j.mu.running || j.c.lost() || j.c.forgot() {
		j.mu.Unlock()
		return
	}
	j.mu.running = true
	j.mu.Unlock()
	j.commit.resume = waiter{lane: l, owner: &j.commit}
	j.commit.begin(l)
}

// seal puts on record, with an empty page, that the last commit was durable: if its pages are lost
// later they are missed. Else a page that is not whole at the end of the journal counts as torn by a
// power cut, with nothing promised of it. The next commit does that by itself; a seal is for when there
// is none. It is neither flushed nor waited for.
func (j *journal) seal(l *Lane) {
	j.mu.Lock()
	d := LSN(j.durableLSN.Load())
	ok := !j.mu.running && j.mu.next == d && j.mu.sealed < d && j.freePages() > j.pages/2
	j.mu.running = j.mu.running || ok
	j.mu.Unlock()
	if !ok {
		return
	}
	k := &j.commit
	k.resume = waiter{lane: l, owner: k}
	k.target, k.step, k.err, k.seal = d, commitWrite, nil, true
	k.writePages(l)
}

func (k *commit) begin(l *Lane) {
	j := k.j
	j.mu.Lock()
	k.target = j.mu.next
	j.mu.Unlock()
	k.step, k.err = commitFlush, nil
	l.count(&l.stats.JournalFlushes, 1)
	if mutated(mutNoFlush) || mutated(mutPageBeforeFlush) {
		k.skipFlush(l)
		return
	}
	op := l.newOp(k)
	op.Kind, op.Dev = OpFlush, SSD
	l.send(op)
}

// skipFlush is for mutants.
func (k *commit) skipFlush(l *Lane) {
	if mutated(mutPageBeforeFlush) {
		op := l.newOp(ignored{})
		op.Kind, op.Dev = OpFlush, SSD
		l.d.Submit(op)
	}
	k.step = commitWrite
	k.writePages(l)
}

// run goes on after a stall, or when others' flushes have ended, or begins the next commit.
func (k *commit) run(l *Lane, _ error) {
	switch k.step {
	case commitNext:
		k.begin(l)
	case commitHear:
		k.step = commitWrite
		k.written(l)
	default:
		k.writePages(l)
	}
}

func (k *commit) opDone(l *Lane, _ *Op, err error) {
	if err != nil && k.err == nil {
		k.err = err
	}
	if k.step == commitFlush {
		if k.err == nil && k.j.c.forgot() {
			k.err = errForgot
		}
		if k.err != nil {
			k.finish(l)
			return
		}
		k.step = commitWrite
		k.writePages(l)
		return
	}
	if k.writes--; k.writes > 0 {
		return
	}
	k.step = commitHear
	if k.err == nil && k.j.c.barriers.wait(&k.resume, l.c.bgLane.Load()) {
		return
	}
	k.step = commitWrite
	k.written(l)
}

// writePages packs the next round of records into pages and writes them, or stalls.
func (k *commit) writePages(l *Lane) {
	j := k.j
	j.mu.Lock()
	if j.c.lost() {
		// Nothing may be packed: should the SSD come back this moment, what the ring has is not meant for it (cleanLost).
		j.mu.Unlock()
		k.err = ErrSSDLost
		k.finish(l)
		return
	}
	from := LSN(j.durableLSN.Load())
	n := min((uint64(k.target-from)+pageRecords-1)/pageRecords, commitPages)
	if k.seal {
		n = 1
	}
	if n == 0 {
		j.mu.Unlock()
		k.finish(l)
		return
	}
	free := j.freePages()
	if free < n+1 || (free < n+j.slack && j.mu.urgent < from) {
		// It goes on where the room is made; this lane may have ended by then.
		j.mu.stalled = true
		if bg := l.c.bgLane.Load(); bg != nil {
			k.resume.lane = bg
		}
		j.mu.Unlock()
		l.c.pokeBackground()
		return
	}
	first := j.mu.pageSeq
	k.first = first
	for i := range n {
		from = k.pack(k.buf[i*pageSize:][:pageSize], from, i == n-1)
	}
	k.upTo, k.lastSeq = from, first+n-1
	j.mu.pageSeq += n
	j.mu.Unlock()

	// At most two runs: up to the end of the ring and from its start.
	k.writes = 0
	run := min(n, j.pages-first%j.pages)
	k.submit(l, first, 0, run)
	if run < n {
		k.submit(l, first+run, run, n-run)
	}
}

// pack fills a page with the records from l on and returns the first that is not in it. ends says
// that the records before that become durable together. j.mu is held.
func (k *commit) pack(p []byte, l LSN, ends bool) LSN {
	j, le := k.j, binary.LittleEndian
	seq := j.mu.pageSeq + uint64(l-LSN(j.durableLSN.Load()))/pageRecords
	n := min(uint64(k.target-l), pageRecords)
	clear(p)
	le.PutUint32(p, journalMagic)
	le.PutUint16(p[jpVersion:], pageVersion)
	le.PutUint16(p[jpCount:], uint16(n))
	le.PutUint64(p[jpCache:], j.cacheID)
	le.PutUint64(p[jpEpoch:], j.c.epoch)
	le.PutUint64(p[jpSeq:], seq)
	le.PutUint32(p[jpIndex:], uint32(seq%j.pages))
	le.PutUint64(p[jpFirst:], uint64(l))
	le.PutUint64(p[jpTail:], j.mu.tailSeq)
	le.PutUint64(p[jpDurable:], j.mu.durSeq)
	flags := uint32(jpHasDirty)
	if ends {
		flags |= pageEndsCommit
	}
	le.PutUint32(p[jpFlags:], flags)
	le.PutUint64(p[jpDirty:], j.dirtied.Load())
	le.PutUint64(p[jpImages:], j.images.Load())
	for i := range n {
		copy(p[journalHeader+i*recordBytes:], j.mu.ring.at(l+LSN(i)))
	}
	j.firstLSN[seq%j.pages] = l
	le.PutUint64(p[jpSum:], metaSum(p, j.c.geo.journalPageOff(seq)))
	return l + LSN(n)
}

func (k *commit) submit(l *Lane, seq, from, n uint64) {
	op := l.newOp(k)
	op.Kind, op.Dev, op.FUA = OpWrite, SSD, !k.seal
	op.Off = k.j.c.geo.journalPageOff(seq)
	op.Mem = k.buf[from*pageSize : (from+n)*pageSize]
	op.Len = int64(len(op.Mem))
	k.writes++
	l.count(&l.stats.MetadataBytes, op.Len)
	l.send(op)
}

// written publishes what became durable and goes on with the next round or ends.
func (k *commit) written(l *Lane) {
	j := k.j
	if k.err == nil && j.c.forgot() {
		k.err = errForgot
	}
	if k.err != nil {
		j.mu.Lock()
		if k.seal {
			j.mu.sealed = k.upTo
		}
		j.mu.pageSeq = k.first // nothing was promised: the next try writes these pages again
		j.mu.Unlock()
		k.finish(l)
		return
	}
	j.mu.Lock()
	j.durableLSN.Store(uint64(k.upTo))
	j.mu.ring.forget(k.upTo)
	j.mu.durSeq = k.lastSeq
	if k.seal {
		j.mu.sealed = k.upTo
	}
	done := j.mu.waiting.takeDurable(k.upTo)
	credits := j.mu.credits.takeAll()
	more := k.upTo < k.target
	j.mu.Unlock()
	done.wakeAll(nil)
	credits.wakeAll(nil)
	if more {
		k.writePages(l)
		return
	}
	k.finish(l)
}

// finish ends the commit, or lets the next begin on the lane of who waits for more. After an error they
// go on waiting: the background tries again, with the same pages, until the SSD takes them or counts
// as lost (Cache.ssdHealth).
func (k *commit) finish(l *Lane) {
	j, err := k.j, k.err      // k is another lane's as soon as running is false
	if k.seal && err != nil { // who has begun to wait meanwhile gets a try of his own
		l.count(&l.stats.JournalErrors, 1)
		err = nil
	}
	k.seal = false
	h := &l.c.ssdHealth
	if err != nil {
		now := l.d.Now()
		h.commitFailed.Store(now)
		h.commitFailing.CompareAndSwap(0, now)
	} else {
		h.commitFailing.Store(0)
	}
	j.mu.Lock()
	next := j.mu.waiting.head
	if next == nil {
		next = j.mu.credits.head
	}
	again := err == nil && !j.c.forgot() && next != nil && j.mu.next > LSN(j.durableLSN.Load())
	j.mu.running = again
	if again {
		k.step, k.resume.lane = commitNext, next.lane
	}
	j.mu.Unlock()
	if l.c.tasks.some.Load() {
		l.c.pokeBackground() // some task may have waited for this commit
	}
	switch {
	case err != nil:
		l.count(&l.stats.JournalErrors, 1)
		l.c.pokeBackground()
	case again && next.lane == l:
		k.begin(l)
	case again:
		k.resume.wake(nil)
	}
}

package cache

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"ubcache/policy"
)

// Lane is one event loop's share of the engine: its pools, open buckets and counters. All
// methods but post and Close are called on the loop's thread.
type Lane struct {
	c *Cache
	d Driver

	mail struct {
		sync.Mutex
		list  waitList // woken by other lanes
		woken bool
	}

	open [numStreams]openBucket

	freeOps      *Op
	freeReads    *readPiece
	freeWrites   *writePiece
	freeThroughs *through
	freeFlushes  *flush
	freeEdges    *edge
	freeAfters   *aftermath
	freePages    [][]byte // BlockSize each, off the Go heap
	freeRegions  [][]byte // regionBytes each
	regions      int      // that exist, free or not
	pageMem      [][]byte

	seq   [MaxBackings + 1]*policy.Sequential // nil until a request comes
	stats laneStats
	io    [MaxBackings + 1]ioStats

	attrs      attrCounters
	tenant     lastTenant
	decided    decision
	traces     traceRing
	freeTracks *track
	latency    *latencies // nil until a request has a deadline

	sched policy.Scheduler

	ssdOps  onSSD                  // under way
	refused *Op                    // operations that a lost SSD does not get
	heard   atomic.Uint64          // the newest change of the SSD's health that it acts by
	parked  opList                 // operations that wait for backing devices
	flying  [MaxBackings + 1]int32 // operations on backing devices under way

	bg *background // of the one lane that does the background work
}

// NewLane adds an event loop. It is closed with Lane.Close when the loop has ended.
func (c *Cache) NewLane(d Driver) *Lane {
	l := &Lane{c: c, d: d}
	for i := range l.open {
		l.open[i].id = noBucket
	}
	c.roll.Lock()
	defer c.roll.Unlock()
	l.heard.Store(c.ssdHealth.turns.Load())
	old := *c.lanes.Load()
	lanes := append(old[:len(old):len(old)], l)
	c.lanes.Store(&lanes)
	return l
}

// Close gives back what the lane holds. No request of it may be under way. What it counted stays
// in the cache's statistics.
func (l *Lane) Close() {
	for i := range l.open {
		l.closeBucket(stream(i))
	}
	l.freePools()
	c := l.c
	c.roll.Lock()
	defer c.roll.Unlock()
	c.past.addLane(l, *c.backings.Load())
	lanes := slices.DeleteFunc(slices.Clone(*c.lanes.Load()), func(o *Lane) bool { return o == l })
	c.lanes.Store(&lanes)
}

func (l *Lane) freePools() {
	for _, m := range l.pageMem {
		freeOffHeap(m)
	}
	l.pageMem, l.freePages, l.freeRegions, l.regions = nil, nil, nil, 0
}

// post queues a waiter's owner to run on this lane. Any thread may call it.
func (l *Lane) post(w *waiter) {
	l.mail.Lock()
	l.mail.list.push(w)
	wake := !l.mail.woken
	l.mail.woken = true
	l.mail.Unlock()
	if wake {
		l.d.Wake()
	}
}

// Run continues what has been woken. The loop calls it after Driver.Wake.
func (l *Lane) Run() {
	if n := l.c.ssdHealth.turns.Load(); n != l.heard.Load() {
		l.heard.Store(n)
	}
	l.refuseOps()
	if l.c.health() != HealthOK {
		l.abandonStuck()
	}
	l.mail.Lock()
	list := l.mail.list.takeAll()
	l.mail.woken = false
	l.mail.Unlock()
	for w := list.pop(); w != nil; w = list.pop() {
		w.owner.run(l, w.err)
	}
	l.unpark()
	l.dispatch()
}

// Complete takes the outcome of an operation from the driver.
func (l *Lane) Complete(op *Op, err error) {
	if op.Dev == SSD {
		l.ssdOps.remove(op)
		if err != nil && !op.aimed {
			if op.mayForget(err) {
				l.c.ssdForgot()
			}
			l.c.ssdFailed(err)
		}
	} else {
		l.flying[op.Dev]--
		if err == nil && op.Kind == OpFlush && !l.covers(op) {
			if op.owner != nil {
				l.park(op) // it is made again when the device is back
			} else {
				l.conclude(op, errLost)
			}
			l.dispatch()
			return
		}
		if err != nil && l.hold(op, err) {
			l.dispatch()
			return
		}
	}
	l.conclude(op, err)
	l.dispatch()
}

// conclude gives an operation back to what began it.
func (l *Lane) conclude(op *Op, err error) {
	if err != nil {
		err = l.deviceError(op, err)
	} else if op.Kind == OpRead || op.Kind == OpWrite {
		l.countTransfer(op)
	}
	if op.track != nil {
		op.track.watch.device(op.Dev).end(l.d.Clock())
	}
	if op.begun != 0 {
		l.latency.end(op, l.d.Now(), err)
	}
	if op.from != nil {
		op.from.flying--
	}
	op.done.opDone(l, op, err)
	*op = Op{next: l.freeOps}
	l.freeOps = op
}

func (l *Lane) countTransfer(op *Op) {
	var c *counter
	switch {
	case op.Dev == SSD && op.Kind == OpRead:
		c = &l.stats.SSDReadBytes
	case op.Dev == SSD:
		c = &l.stats.SSDWriteBytes
	case op.Kind == OpRead:
		c = &l.stats.BackingReadBytes
	default:
		c = &l.stats.BackingWriteBytes
	}
	c.Add(op.Len)
}

func (l *Lane) deviceError(op *Op, err error) error {
	name := "ssd"
	if op.Dev != SSD {
		name = fmt.Sprintf("backing %d", op.Dev)
		if b := l.c.backing(op.Dev); b != nil {
			name = b.name
		}
		l.io[op.Dev].BackingErrors.Add(1)
	}
	return &DeviceError{Op: op.Kind, Device: name, Off: op.Off, Len: op.Len, Err: err}
}

// newOp returns a zeroed operation that will complete to done.
func (l *Lane) newOp(done completer) *Op {
	op := l.freeOps
	if op == nil {
		op = &Op{}
	} else {
		l.freeOps = op.next
		op.next = nil
	}
	op.done = done
	return op
}

// transfer starts a read or write between a device and the data of a request. devOff is in bytes
// on the device; reqOff and n are in bytes of the request's data.
func (l *Lane) transfer(done completer, kind OpKind, dev BackingID, devOff int64,
	r *Request, reqOff, n int, arg uint32,
) {
	op := l.newOp(done)
	op.Kind, op.Dev, op.Off, op.Len, op.arg = kind, dev, devOff, int64(n), arg
	if r.Data != nil {
		op.Mem = r.Data[reqOff : reqOff+n : reqOff+n]
		if kind == OpRead {
			op.from = r
			r.flying++
		}
	} else {
		op.Req, op.ReqOff = r, reqOff
	}
	l.issue(op, r)
}

// move starts a read or write between a device and memory of the engine.
func (l *Lane) move(done completer, kind OpKind, dev BackingID, devOff int64, mem []byte, arg uint32) {
	l.moveFor(nil, done, kind, dev, devOff, mem, arg)
}

// moveFor is move on account of a request.
func (l *Lane) moveFor(r *Request, done completer, kind OpKind, dev BackingID, devOff int64,
	mem []byte, arg uint32,
) {
	op := l.newOp(done)
	op.Kind, op.Dev, op.Off, op.Len, op.arg = kind, dev, devOff, int64(len(mem)), arg
	op.Mem = mem
	l.issue(op, r)
}

// page takes a BlockSize buffer from the lane's pool. The pool grows with the requests in
// flight, which the queue depth bounds. It is nil if there is no memory.
func (l *Lane) page() []byte {
	if len(l.freePages) == 0 {
		const batch = 64
		m, err := offHeap(batch * BlockSize)
		if err != nil {
			return nil
		}
		l.pageMem = append(l.pageMem, m)
		for i := range batch {
			l.freePages = append(l.freePages, m[i*BlockSize:(i+1)*BlockSize:(i+1)*BlockSize])
		}
	}
	p := l.freePages[len(l.freePages)-1]
	l.freePages = l.freePages[:len(l.freePages)-1]
	return p
}

// maxRegions bounds the memory of zero-copy fills.
const maxRegions = 16

// region takes a buffer for a region from the lane's pool; nil if there is none to spare.
func (l *Lane) region() []byte {
	if n := len(l.freeRegions); n > 0 {
		p := l.freeRegions[n-1]
		l.freeRegions = l.freeRegions[:n-1]
		return p
	}
	if l.regions == maxRegions {
		return nil
	}
	p, err := offHeap(regionBytes)
	if err != nil {
		return nil
	}
	l.regions++
	l.pageMem = append(l.pageMem, p)
	return p
}

func (l *Lane) freeRegion(p []byte) {
	if p != nil {
		l.freeRegions = append(l.freeRegions, p)
	}
}

func (l *Lane) freePage(p []byte) {
	if p != nil {
		l.freePages = append(l.freePages, p)
	}
}

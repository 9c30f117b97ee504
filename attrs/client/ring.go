package client

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
)

// ring is the client's side of channel Direct. A goroutine takes completions from Open to Close.
type ring struct {
	d      *Device
	r      shm.Ring
	device uint16
	most   int64    // bytes of an entry
	event  int      // eventfd that wakes the daemon
	wake   *os.File // from which the daemon's wake-ups come

	mu struct {
		sync.Mutex
		free []uint32 // numbers of entries that are not under way
		ops  []*Op    // by number
		dead error    // the daemon is gone
	}
	room *sync.Cond // for free
	over chan struct{}
}

func newRing(d *Device, c *conn, event, wake int) *ring {
	_ = unix.SetNonblock(wake, true)
	g := &ring{
		d: d, r: d.region.Ring(), device: uint16(c.info.Index), most: int64(c.info.Max),
		event: event, wake: os.NewFile(uintptr(wake), "wake-ups"), over: make(chan struct{}),
	}
	g.room = sync.NewCond(&g.mu)
	g.mu.ops = make([]*Op, d.region.Entries())
	for i := range g.mu.ops {
		g.mu.free = append(g.mu.free, uint32(i))
	}
	go g.run()
	return g
}

var ringOps = [...]shm.Op{
	Read: shm.OpRead, Write: shm.OpWrite, Flush: shm.OpFlush, Discard: shm.OpDiscard,
	WriteZeroes: shm.OpWriteZeroes,
}

// submit sends a request in as many entries as it takes. They are pieces of it, as the block layer
// would make them.
func (g *ring) submit(op *Op) {
	e := shm.Entry{Op: ringOps[op.Kind], Device: g.device}
	if op.FUA {
		e.Flags |= shm.FUA
	}
	if op.issued {
		e.Flags |= shm.WithAttributes
	}
	total, most := op.Len, int64(maxEntry)
	switch op.Kind {
	case Read, Write:
		total, most = int64(len(op.Buf)), g.most
	case Flush:
		total = 0
	}
	g.mu.Lock()
	op.left = 1 // until all is submitted
	wake := false
	for done := int64(0); done < total || done == 0; {
		n := min(total-done, most)
		e.Off, e.Bytes, e.Data = uint64(op.Off+done), uint32(n), uint64(op.place)
		if op.data() {
			e.Data += uint64(done)
		}
		wake = g.send(op, &e, wake) || wake
		done += max(n, 1)
	}
	if wake {
		g.wakeServer()
	}
	g.ended(op) // after that the ring may be closed
	g.mu.Unlock()
}

// send puts one entry into the ring when there is room. g.mu is held. It returns whether the server
// has to be woken; before it waits it does that itself.
func (g *ring) send(op *Op, e *shm.Entry, wake bool) bool {
	for len(g.mu.free) == 0 && g.mu.dead == nil {
		if wake {
			g.wakeServer()
			wake = false
		}
		g.room.Wait()
	}
	if g.mu.dead != nil {
		op.Err = g.mu.dead
		return false
	}
	last := len(g.mu.free) - 1
	e.UserData = uint64(g.mu.free[last])
	ok, wake := g.r.Submit(e)
	if !ok {
		op.Err = fmt.Errorf("the daemon does not take entries: %w", unix.EIO)
		return false
	}
	g.mu.ops[g.mu.free[last]] = op
	g.mu.free = g.mu.free[:last]
	op.left++
	return wake
}

// ended counts a part of a request. g.mu is held.
func (g *ring) ended(op *Op) {
	if op.left--; op.left == 0 {
		g.d.use.RUnlock() // as nobody but the caller has a part in it any more
		op.over.Done()
	}
}

func (g *ring) wakeServer() {
	one := [8]byte{1}
	for {
		if _, err := unix.Write(g.event, one[:]); err != unix.EINTR {
			return
		}
	}
}

// run takes completions until the ring is closed or the daemon ends.
func (g *ring) run() {
	defer close(g.over)
	var b [16]byte
	for {
		g.mu.Lock()
		g.reap()
		sleep := g.r.Sleep()
		g.mu.Unlock()
		if !sleep {
			continue
		}
		if n, err := g.wake.Read(b[:]); err != nil || n == 0 {
			g.die()
			return
		}
	}
}

// reap takes what completions there are. g.mu is held.
func (g *ring) reap() {
	var c shm.Completion
	for g.r.Next(&c) {
		if c.UserData >= uint64(len(g.mu.ops)) || g.mu.ops[c.UserData] == nil {
			continue // nobody has submitted that
		}
		op := g.mu.ops[c.UserData]
		g.mu.ops[c.UserData] = nil
		g.mu.free = append(g.mu.free, uint32(c.UserData))
		if c.Result < 0 {
			if op.failed == 0 {
				op.failed = unix.Errno(-c.Result)
			}
		} else {
			op.N += int(c.Result)
		}
		g.ended(op)
		g.room.Signal()
	}
}

// die fails what is under way: whether it was done nobody knows.
func (g *ring) die() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reap()
	g.mu.dead = fmt.Errorf("the daemon has ended the connection: %w", unix.EIO)
	for i, op := range g.mu.ops {
		if op != nil {
			op.Err = g.mu.dead
			g.mu.ops[i] = nil
			g.ended(op)
		}
	}
	g.room.Broadcast()
}

// isDead says whether the daemon is gone.
func (g *ring) isDead() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.dead != nil
}

// close ends the ring; nothing is under way.
func (g *ring) close() {
	_ = g.wake.Close()
	<-g.over
	_ = unix.Close(g.event)
}

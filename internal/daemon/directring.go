package daemon

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/rules"
	"ubcache/attrs/shm"
	"ubcache/cache"
	"ubcache/internal/uring"
)

const (
	// maxDirect is the longest transfer of one entry: a region of the engine.
	maxDirect = 1 << 20
	// directTurn is how many entries of a client are taken before it is the next one's turn.
	directTurn = 16
)

// directRing serves the rings of all clients. Everything in it belongs to the loop's thread.
type directRing struct {
	d       *direct
	clients []*ringClient // by number; nil is free
	first   int           // whose turn it is
	reqs    []*directRequest
	free    *directRequest
	bufs    directBuffers
	memo    shm.Memo
	gone    [cache.MaxBackings + 1]bool
	busy    [cache.MaxBackings + 1]int
	idle    [cache.MaxBackings + 1]chan struct{} // closed when busy is 0, if somebody waits
}

// ringClient is a client's ring.
type ringClient struct {
	c      *directClient
	view   *shm.View
	ring   *shm.Server
	number int
	opened []opened
	depth  int
	busy   int // requests in service
	// wait is an entry that was taken and finds no buffer yet.
	wait    *directRequest
	asleep  bool // the client wakes us
	signal  bool // the client wants to be woken
	removed bool // no more requests are taken or answered
	polling bool // the poll of its eventfd is armed
	wakeFD  int  // eventfd by which the client wakes us
	pushFD  int  // socket by which we wake the client
	over    chan struct{}
}

// directRequest is a request in service.
type directRequest struct {
	req   cache.Request
	said  shm.Request
	entry shm.Entry
	c     *ringClient
	buf   []byte
	given bool // attributes come with it
	next  *directRequest
}

func (d *directRing) init(of *direct) { d.d = of }

func (d *directRing) hooks() loopHooks {
	return loopHooks{finish: d.finish, before: d.serve, event: d.event}
}

// newRingClient makes what belongs to a client's ring. theirs are the ends for the client: the eventfd
// that wakes the daemon, and the socket by which the daemon wakes the client. That is a socket as a
// message can be sent without a wait whatever the client has done to the descriptor; a write to an
// eventfd that it has filled up could stop this thread.
func newRingClient(c *directClient) (r *ringClient, theirs []int, err error) {
	server, ok := c.view.Server()
	if !ok {
		return nil, nil, fmt.Errorf("the region has no ring: %w", unix.EINVAL)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("make eventfd: %w", err)
	}
	theirEvent, err := unix.FcntlInt(uintptr(event), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(event)
		return nil, nil, fmt.Errorf("make eventfd: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		shm.CloseAll([]int{event, theirEvent})
		return nil, nil, fmt.Errorf("make socket: %w", err)
	}
	return &ringClient{
		c: c, view: c.view, ring: server, depth: min(c.d.o.Depth, c.view.Entries()),
		wakeFD: event, pushFD: pair[0], over: make(chan struct{}),
	}, []int{theirEvent, pair[1]}, nil
}

func (r *ringClient) close() { shm.CloseAll([]int{r.wakeFD, r.pushFD}) }

// add begins to serve a ring.
func (d *directRing) add(r *ringClient) error {
	r.number = len(d.clients)
	for i, c := range d.clients {
		if c == nil {
			r.number = i
		}
	}
	if r.number == len(d.clients) {
		d.clients = append(d.clients, nil)
	}
	d.clients[r.number] = r
	d.poll(r)
	return nil
}

// poll waits for the client's eventfd, which nobody reads: each write to it is an event.
func (d *directRing) poll(r *ringClient) {
	d.d.loop.newEvent(uint32(r.number)).PrepPollAdd(uring.FD(r.wakeFD), unix.POLLIN, true)
	r.polling = true
}

// event takes a wake-up, or the end of a poll.
func (d *directRing) event(number, flags uint32) {
	r := d.clients[number]
	if flags&uring.CQEMore != 0 {
		return // the round that follows looks at all rings
	}
	r.polling = false
	if !r.removed {
		d.poll(r)
		return
	}
	d.settle(r)
}

// remove ends a client: r.over is closed when nothing of it is under way.
func (d *directRing) remove(r *ringClient) {
	if r.removed = true; r.wait != nil {
		d.release(r.wait)
		r.wait = nil
	}
	if r.polling {
		// Not a removal: that fails with EALREADY while the poll has an event on its way.
		d.d.loop.newEvent(noEvent).PrepCancel(eventData|uint64(r.number), 0, 0)
	}
	d.settle(r)
}

func (d *directRing) settle(r *ringClient) {
	if r.removed && r.busy == 0 && !r.polling && d.clients[r.number] == r {
		d.clients[r.number] = nil
		close(r.over)
	}
}

// fail gives a client up whose ring is broken or whose memory is gone. Its conversation ends by
// that, and what ends it removes the client.
func (d *directRing) fail(r *ringClient, err error) {
	if !r.removed {
		r.removed = true
		// No warning: clients could fill the log with them.
		d.d.in.log.Debug("client is cut off", "pid", r.c.cred.Pid, "error", err)
		_ = r.c.conn.Close()
	}
}

// drop refuses all further requests on a device. The channel is closed when none is in service.
func (d *directRing) drop(id cache.BackingID) <-chan struct{} {
	d.gone[id] = true
	idle := make(chan struct{})
	if d.busy[id] == 0 {
		close(idle)
	} else {
		d.idle[id] = idle
	}
	return idle
}

// close gives the memory back when the loop has ended.
func (d *directRing) close() { d.bufs.close() }

// serve takes what is in the rings, wakes clients, and lets the loop sleep if there is nothing left.
// It is called before each wait.
func (d *directRing) serve() {
	for _, r := range d.clients {
		if r != nil && !r.removed && r.asleep {
			r.asleep = false
			if err := r.ring.Awake(); err != nil {
				d.fail(r, err)
			}
		}
	}
	for more := true; more; {
		more = false
		n := len(d.clients)
		for i := range n {
			if r := d.clients[(d.first+i)%n]; r != nil && d.turn(r) {
				more = true
			}
		}
		if n > 0 {
			d.first = (d.first + 1) % n
		}
	}
	for _, r := range d.clients {
		if r == nil {
			continue
		}
		if r.signal {
			r.signal = false
			d.push(r)
		}
		// One that has all it may have in service is looked at again when something is finished.
		if !r.removed && r.ready() {
			ok, err := r.ring.Sleep()
			if r.asleep = ok; err != nil {
				d.fail(r, err)
			} else if !ok {
				d.d.loop.again()
			}
		}
	}
}

// push wakes a client. Where there is no room for the message, one is there that it has not read.
func (d *directRing) push(r *ringClient) {
	_ = unix.Sendto(r.pushFD, pushMessage, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
}

var pushMessage = []byte{1}

// ready says whether another request of the client can be taken.
func (r *ringClient) ready() bool { return r.busy < r.depth && r.wait == nil }

// turn takes some requests of a client; true if there may be more.
func (d *directRing) turn(r *ringClient) bool {
	for range directTurn {
		if r.removed || r.busy >= r.depth {
			return false
		}
		q := r.wait
		if r.wait = nil; q == nil {
			q = d.take(r)
			some, valid, err := r.ring.Next(&q.entry)
			if err != nil || !some {
				d.release(q)
				if err != nil {
					d.fail(r, err)
				}
				return false
			}
			if !valid {
				d.refuse(q, unix.EINVAL)
				continue
			}
		}
		if !d.start(q) {
			r.wait = q
			return false
		}
	}
	return true
}

// take returns an unused request.
func (d *directRing) take(r *ringClient) *directRequest {
	q := d.free
	if q == nil {
		q = &directRequest{said: shm.Request{Memo: &d.memo}}
		q.req.Tag = uint32(len(d.reqs))
		d.reqs = append(d.reqs, q)
	} else {
		d.free = q.next
	}
	q.c, q.given = r, false
	return q
}

func (d *directRing) release(q *directRequest) {
	d.bufs.put(q.buf)
	q.buf, q.c, q.req.Data, q.req.Target, q.req.Attrs, q.req.Results = nil, nil, nil, nil, nil, nil
	q.next = d.free
	d.free = q
}

// refuse answers a request that was not started.
func (d *directRing) refuse(q *directRequest, errno unix.Errno) {
	d.complete(q, -int64(errno))
	d.release(q)
}

func (d *directRing) complete(q *directRequest, res int64) {
	r := q.c
	if r.removed {
		return
	}
	wake, err := r.ring.Complete(shm.Completion{UserData: q.entry.UserData, Result: res})
	if err != nil {
		d.fail(r, err)
		return
	}
	r.signal = r.signal || wake
}

var directOps = [...]cache.ReqOp{
	shm.OpRead: cache.ReqRead, shm.OpWrite: cache.ReqWrite, shm.OpFlush: cache.ReqFlush,
	shm.OpDiscard: cache.ReqDiscard, shm.OpWriteZeroes: cache.ReqWriteZeroes,
}

// start gives a request to the engine, or refuses it. It returns false if there is no buffer for it.
func (d *directRing) start(q *directRequest) bool {
	r, e := q.c, &q.entry
	if int(e.Device) >= len(r.opened) {
		d.refuse(q, unix.EBADF)
		return true
	}
	o := r.opened[e.Device]
	if errno := d.check(q, o); errno != 0 {
		d.refuse(q, errno)
		return true
	}
	if e.Op == shm.OpQuery {
		d.query(q)
		return true
	}
	n := int64(0)
	if e.Op <= shm.OpWrite {
		n = int64(e.Bytes)
		if q.buf = d.bufs.get(int(n)); q.buf == nil {
			if d.bufs.never(int(n)) {
				d.refuse(q, unix.ENOMEM)
				return true
			}
			return false
		}
	}
	c := &q.req
	c.Backing, c.Op = o.id, directOps[e.Op]
	c.FUA, c.NoUnmap = e.Flags&shm.FUA != 0, e.Flags&shm.NoUnmap != 0
	c.Off, c.Len, c.Data = int64(e.Off), int64(e.Bytes), q.buf
	c.Attrs, c.Results = nil, nil
	errno := d.attach(q, o, n)
	// The engine sees a copy: what it has checked the client cannot change any more.
	switch {
	case errno != 0:
	case e.Op == shm.OpWrite && r.view.CopyOut(q.buf, int64(e.Data)) != nil:
		errno = unix.EFAULT
	case e.Op == shm.OpRead:
		c.Target, _ = r.view.Data(int64(e.Data), n) // without it the data is copied
	}
	if errno != 0 {
		d.refuse(q, errno)
		return true
	}
	r.busy++
	d.busy[o.id]++
	d.d.loop.lane.Submit(c)
	return true
}

// check says what is wrong with a request that the engine need not see.
func (d *directRing) check(q *directRequest, o opened) unix.Errno {
	e := &q.entry
	switch {
	case d.gone[o.id]:
		return unix.ENODEV
	case e.Op == shm.OpRead && !o.read,
		(e.Op == shm.OpWrite || e.Op == shm.OpDiscard || e.Op == shm.OpWriteZeroes) && !o.write:
		return unix.EBADF
	case e.Off > math.MaxInt64 || e.Data > math.MaxInt64:
		return unix.EINVAL
	case (e.Op <= shm.OpWrite || e.Op == shm.OpQuery) &&
		(e.Bytes == 0 || e.Bytes > maxDirect || !q.c.view.Holds(int64(e.Data), int64(e.Bytes))):
		return unix.EINVAL
	}
	return 0
}

// attach gives the request its attributes: what the client says, and what rules say of such
// requests. n is the length of its data.
func (d *directRing) attach(q *directRequest, o opened, n int64) unix.Errno {
	e, c := &q.entry, &q.req
	table := o.s.rules.table.Load()
	q.given = e.Flags&shm.WithAttributes != 0
	if q.given {
		part, err := q.c.view.Read(&q.said, int64(e.Data), n)
		if err != nil || part != n {
			return unix.EINVAL
		}
	} else {
		q.said.Set.Clear()
	}
	if table != nil && e.Op != shm.OpFlush {
		dir := attrs.Write
		if e.Op == shm.OpRead {
			dir = attrs.Read
		}
		table.Apply(rules.Query{
			Off: c.Off, Len: c.Len, Direction: dir, UID: q.c.c.cred.Uid,
			Known: rules.KnowUID | rules.KnowKinds,
		}, &q.said.Set)
	}
	if !q.given && q.said.Set.Empty() {
		return 0
	}
	c.Attrs, c.Results = &q.said.Set, &q.said.Results
	if e.Op != shm.OpFlush {
		return 0
	}
	// The engine's flush knows of no attributes.
	q.said.Results.Begin(c.Attrs, attrs.Request{Direction: attrs.Write},
		attrs.Device(o.s.b.Number()))
	if _, errno := c.Attrs.CheckRequired(c.Results); errno != 0 {
		_ = q.c.view.Answer(&q.said, o.s.b.Number())
		return errno
	}
	return 0
}

// query answers what the device supports.
func (d *directRing) query(q *directRequest) {
	list := capabilities()
	list = list[:min(len(list), int(q.entry.Bytes))]
	if q.c.view.CopyIn(int64(q.entry.Data), list) != nil {
		d.refuse(q, unix.EFAULT)
		return
	}
	d.complete(q, int64(len(list)))
	d.release(q)
}

// finish answers a request of the engine: data first, then attributes, then the completion.
func (d *directRing) finish(c *cache.Request) {
	q := d.reqs[c.Tag]
	r := q.c
	res := int64(0)
	switch {
	case c.Err != nil:
		d.d.in.traced.failed(r.opened[q.entry.Device].s.name, c)
		res = -int64(errnoOf(c.Err))
	case c.Op == cache.ReqRead && !c.Placed && !r.removed && r.view.CopyIn(int64(q.entry.Data), q.buf) != nil:
		res = -int64(unix.EFAULT)
	case c.Op <= cache.ReqWrite:
		res = c.Len
	}
	if q.given && !r.removed {
		number := r.opened[q.entry.Device].s.b.Number()
		if len(q.said.Results.Devices()) == 0 { // refused before anybody looked
			q.said.Results.Begin(&q.said.Set, attrs.Request{Direction: attrs.Both}, attrs.Device(number))
		}
		_ = r.view.Answer(&q.said, number) // what cannot be answered is not handled
	}
	d.complete(q, res)
	r.busy--
	id := c.Backing
	if d.busy[id]--; d.busy[id] == 0 && d.idle[id] != nil {
		close(d.idle[id])
		d.idle[id] = nil
	}
	d.release(q)
	d.settle(r)
}

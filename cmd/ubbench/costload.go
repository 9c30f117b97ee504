package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm"
	"ubcache/internal/uring"
)

// costLoad is a program that keeps costDepth reads of hits under way on one io_uring, in shared memory
// with attributes or without, or in memory of its own.
type costLoad struct {
	region *shm.Region
	conn   *net.UnixConn // as long as it is there the region is registered
	fd     int
	set    attrs.Set
	plain  []byte
	reads  [costDepth]costRead

	side   atomic.Int32 // index of costSides; below 0 is the end
	counts [len(costSides)]atomic.Int64

	// unheard are the reads that nobody answered. The block layer merges requests that lie side by side on
	// the device, and what it has merged the driver only finds in shared memory if the buffers do so too.
	unheard atomic.Int64

	// What is on the ring's thread.
	ring *uring.Ring
	c    shm.Collector
}

// costRead is one of the reads under way.
type costRead struct {
	side   int
	ticket shm.Ticket
}

// newCostLoad opens a cached device and makes a region known to it, as package client does.
func newCostLoad(dev, cache string) (l *costLoad, err error) {
	l = &costLoad{}
	if l.set, err = attrs.ParseSet(costAttributes); err != nil {
		return nil, err
	}
	if l.fd, err = unix.Open(dev, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	l.plain, err = unix.Mmap(-1, 0, costDepth*costBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	if l.region, err = shm.Create(shm.Options{Bytes: costDepth * costBytes}); err != nil {
		return nil, err
	}
	c, err := net.Dial("unixpacket", "/run/ubcache/"+cache+shm.SocketSuffix)
	if err != nil {
		return nil, err
	}
	l.conn = c.(*net.UnixConn)
	if _, err = l.ask(&shm.Message{Kind: shm.Hello}, l.region.FD()); err != nil {
		return nil, err
	}
	m, err := l.ask(&shm.Message{Kind: shm.OpenDevice, Flags: shm.FlagRegister}, l.fd)
	if err == nil && m.Flags&shm.FlagRegister == 0 {
		err = errors.New("the block device takes no shared memory")
	}
	return l, err
}

func (l *costLoad) ask(m *shm.Message, fds ...int) (reply shm.Message, err error) {
	if err := m.Send(l.conn, fds...); err != nil {
		return reply, err
	}
	got, err := reply.Receive(l.conn)
	shm.CloseAll(got)
	if err != nil {
		return reply, err
	}
	return reply, reply.Err()
}

// run reads until the end.
func (l *costLoad) run() (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if l.ring, err = uring.New(2*costDepth, uring.Options{SingleIssuer: true, Hold: true}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.ring.Close()) }()
	for i := range l.reads {
		if err := l.start(i); err != nil {
			return err
		}
	}
	for flying := costDepth; flying > 0; {
		if err := l.ring.SubmitAndWait(1, 10*time.Second); err != nil {
			return err
		}
		for l.ring.Ready() > 0 {
			e := *l.ring.Peek()
			l.ring.Advance(1)
			flying--
			if err := l.end(int(e.UserData), e.Res); err != nil {
				return err
			}
			if l.side.Load() < 0 {
				continue
			}
			if err := l.start(int(e.UserData)); err != nil {
				return err
			}
			flying++
		}
	}
	return nil
}

// start submits a read of the side that is measured now, at a random place.
func (l *costLoad) start(i int) (err error) {
	r := &l.reads[i]
	r.side = int(max(l.side.Load(), 0))
	mem := l.region.Data()
	switch costSides[r.side] {
	case withAttributes:
		if r.ticket, err = l.region.Issue(int64(i)*costBytes, costBytes, &l.set); err != nil {
			return err
		}
	case plainDirect:
		mem = l.plain
	}
	s := l.ring.NextSQE()
	s.PrepRead(uring.FD(l.fd), mem[i*costBytes:(i+1)*costBytes],
		uint64(rand.Int64N(span/costBytes)*costBytes), 0)
	s.SetUserData(uint64(i))
	return nil
}

// end takes a read's outcome.
func (l *costLoad) end(i int, res int32) error {
	r := &l.reads[i]
	if res != costBytes {
		return fmt.Errorf("read with %s: %d", costSides[r.side], res)
	}
	if costSides[r.side] == withAttributes {
		switch a := l.region.Collect(r.ticket, &l.c).For(attrs.IDHint); a.Status {
		case attrs.Handled:
		case attrs.NotHandled:
			l.unheard.Add(1)
		default:
			return fmt.Errorf("the hint is %v", a)
		}
	}
	l.counts[r.side].Add(1)
	return nil
}

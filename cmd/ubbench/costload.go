package main

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm"
	"ubcache/internal/uring"
)

// costLoad reads in shared memory with attributes or without, or in memory of its own: the order of
// costSides.
type costLoad struct {
	*turnLoad
	region *shm.Region
	conn   *net.UnixConn // as long as it is there the region is registered
	fd     int
	set    attrs.Set
	plain  []byte

	tickets [costDepth]shm.Ticket // of the reads under way
	c       shm.Collector
	// unheard are the reads that nobody answered. The block layer merges requests that lie side by side on
	// the device, and what it has merged the driver only finds in shared memory if the buffers do so too.
	unheard atomic.Int64
}

// newCostLoad opens a cached device and makes a region known to it, as package client does.
func newCostLoad(dev, cache string) (l *costLoad, err error) {
	l = &costLoad{turnLoad: newTurnLoad(len(costSides))}
	l.issue, l.end = l.read, l.answered
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

// read prepares a read.
func (l *costLoad) read(s *uring.SQE, i, side int, off uint64) (err error) {
	mem := l.region.Data()
	switch costSides[side] {
	case withAttributes:
		if l.tickets[i], err = l.region.Issue(int64(i)*costBytes, costBytes, &l.set); err != nil {
			return err
		}
	case plainDirect:
		mem = l.plain
	}
	s.PrepRead(uring.FD(l.fd), mem[i*costBytes:(i+1)*costBytes], off, 0)
	return nil
}

// answered takes a read's outcome.
func (l *costLoad) answered(i, side int, res int32) error {
	if res != costBytes {
		return fmt.Errorf("read with %s: %d", costSides[side], res)
	}
	if costSides[side] == withAttributes {
		switch a := l.region.Collect(l.tickets[i], &l.c).For(attrs.IDHint); a.Status {
		case attrs.Handled:
		case attrs.NotHandled:
			l.unheard.Add(1)
		default:
			return fmt.Errorf("the hint is %v", a)
		}
	}
	return nil
}

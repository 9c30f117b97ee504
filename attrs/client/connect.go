package client

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
)

// askTime bounds an answer of a daemon. Registration waits for all I/O of a block device.
const askTime = time.Minute

// conn is a connection to a daemon, and what it said of the device that is opened there.
type conn struct {
	mu     sync.Mutex // one question at a time
	c      *net.UnixConn
	socket string
	// listed: it was asked for all block devices of the cache, as none is known to be below.
	listed bool
	info   shm.Message
	opened bool
}

// sockets are those of the daemons that may be asked.
func (d *Device) sockets() (list []string) {
	if d.o.Socket != "" {
		return []string{d.o.Socket}
	}
	for _, dir := range []string{
		os.Getenv("UBCACHE_RUNTIME_DIR"), "/run/ubcache", "/dev/shm/ubcache",
	} {
		if dir != "" {
			found, _ := filepath.Glob(filepath.Join(dir, "*"+shm.SocketSuffix))
			list = append(list, found...)
		}
	}
	return list
}

// connect introduces the region to a daemon; with a ring, which is served then.
func (d *Device) connect(socket string, flags uint32) (c *conn, fds []int, err error) {
	nc, err := net.DialTimeout("unixpacket", socket, askTime)
	if err != nil {
		return nil, nil, err
	}
	c = &conn{c: nc.(*net.UnixConn), socket: socket}
	if d.o.Socket == "" {
		err = c.trusted()
	}
	if err == nil {
		fds, err = c.hello(d.region.FD(), flags)
	}
	if err != nil {
		_ = c.c.Close()
		return nil, nil, err
	}
	return c, fds, nil
}

// trusted makes sure that the memory is not given to somebody who put a socket where daemons have
// theirs.
func (c *conn) trusted() error {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, cerr); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("the socket belongs to user %d: %w", cred.Uid, unix.EACCES)
	}
	return nil
}

func (c *conn) hello(memfd int, flags uint32) ([]int, error) {
	_ = c.c.SetDeadline(time.Now().Add(askTime))
	m := shm.Message{Kind: shm.Hello, Flags: flags}
	// A daemon that refuses answers at once, and may not read the message.
	sent := m.Send(c.c, memfd)
	fds, err := m.Receive(c.c)
	if err == nil {
		err = m.Err()
	}
	if err == nil {
		err = sent
	}
	if err == nil && flags&shm.FlagRing != 0 && len(fds) != 2 {
		err = shm.ErrMessage
	}
	if err != nil {
		shm.CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

// ask sends a request and takes the reply.
func (c *conn) ask(m *shm.Message, fds ...int) (shm.Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.c.SetDeadline(time.Now().Add(askTime))
	if err := m.Send(c.c, fds...); err != nil {
		return shm.Message{}, err
	}
	var reply shm.Message
	got, err := reply.Receive(c.c)
	shm.CloseAll(got)
	if err != nil {
		return reply, err
	}
	return reply, reply.Err()
}

// openByName opens a device of a cache that has no block device, or whose block device is not to be
// used.
func (d *Device) openByName() error {
	var errs []error
	for _, socket := range d.sockets() {
		c, fds, err := d.connect(socket, shm.FlagRing)
		if err == nil {
			if c.info, err = c.ask(&shm.Message{Kind: shm.OpenDevice, Text: d.o.Device}); err == nil {
				c.opened = true
				d.keep(c, fds)
				d.channel, d.why = Direct, "opened by name"
				return nil
			}
			shm.CloseAll(fds)
			_ = c.c.Close()
		}
		errs = append(errs, fmt.Errorf("%s: %w", socket, err))
	}
	if errs == nil {
		return errors.New("no cache is running here")
	}
	return errors.Join(errs...)
}

// keep keeps a connection with its ring.
func (d *Device) keep(c *conn, fds []int) {
	d.conns = append(d.conns, c)
	d.ring = newRing(d, c, fds[0], fds[1])
}

// findChannel looks for the best channel for an open file or block device.
func (d *Device) findChannel() {
	d.channel = Plain
	sockets := d.sockets()
	if len(sockets) == 0 {
		d.why = "no cache is running here"
		return
	}
	var why []string
	for _, socket := range sockets {
		if reason := d.tryBlock(socket); reason == "" {
			return
		} else if reason != "-" {
			why = append(why, filepath.Base(socket)+": "+reason)
		}
	}
	// Not a block device of a cache itself: perhaps something on top of one.
	devices := 0
	if d.o.Channel != Direct {
		for _, socket := range sockets {
			c, n, reason := d.registerAll(socket)
			if devices += n; n == 0 {
				why = append(why, filepath.Base(socket)+": "+reason)
				continue
			}
			d.conns = append(d.conns, c)
		}
	}
	if devices == 0 {
		if d.why = strings.Join(why, "; "); d.why == "" {
			d.why = "no block device of a cache"
		}
		return
	}
	if err := d.direct(true); err != nil {
		d.why = "the filesystem does no direct I/O"
		return
	}
	d.channel = Shared
	d.why = fmt.Sprintf("the memory is registered with %d block devices of caches", devices)
}

// tryBlock asks a daemon whether it serves the block device. It returns why there is no channel by
// that: "-" if there is nothing to say.
func (d *Device) tryBlock(socket string) string {
	if !d.block {
		return "-"
	}
	c, fds, err := d.connect(socket, shm.FlagRing)
	if err != nil {
		return err.Error()
	}
	flags := uint32(shm.FlagRegister)
	if d.o.Channel == Direct {
		flags = 0
	}
	c.info, err = c.ask(&shm.Message{Kind: shm.OpenDevice, Flags: flags}, d.fd)
	if err != nil {
		shm.CloseAll(fds)
		_ = c.c.Close()
		if errors.Is(err, unix.ENODEV) {
			return "-"
		}
		return err.Error()
	}
	c.opened = true
	if c.info.Flags&shm.FlagRegister != 0 && d.direct(true) == nil {
		shm.CloseAll(fds)
		d.conns = append(d.conns, c)
		d.channel, d.why = Shared, "the memory is registered with the block device"
		return ""
	}
	if d.o.Channel == Shared {
		shm.CloseAll(fds)
		_ = c.c.Close()
		return "the block device takes no shared memory (needs Linux 7.1)"
	}
	d.keep(c, fds)
	d.channel, d.why = Direct, "asked for"
	if d.o.Channel != Direct {
		d.why = "the block device takes no shared memory (needs Linux 7.1)"
	}
	return ""
}

// registerAll makes the memory known to all block devices of a cache. It returns with how many, and
// why with none.
func (d *Device) registerAll(socket string) (c *conn, n int, why string) {
	c, _, err := d.connect(socket, 0)
	if err != nil {
		return nil, 0, err.Error()
	}
	if n, why = c.registerAll(); n == 0 {
		_ = c.c.Close()
		return nil, 0, why
	}
	return c, n, ""
}

func (c *conn) registerAll() (n int, why string) {
	c.listed = true
	why = "it has no devices"
	for i := uint32(0); ; i++ {
		m, err := c.ask(&shm.Message{Kind: shm.List, Index: i})
		if err != nil {
			return n, why
		}
		m, err = c.ask(&shm.Message{Kind: shm.OpenDevice, Flags: shm.FlagRegister, Text: m.Text})
		switch {
		case err != nil:
			why = err.Error()
		case m.Flags&shm.FlagRegister == 0:
			why = "its block devices take no shared memory (needs Linux 7.1)"
		default:
			c.info, c.opened = m, true
			n++
		}
	}
}

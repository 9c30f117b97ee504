package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm"
	"ubcache/cache"
)

const (
	// helloTime is more than any client takes to introduce itself.
	helloTime = 10 * time.Second
	// refuseTime is what one gets that is not let in; maxRefusing of them are told so at a time.
	refuseTime  = time.Second
	maxRefusing = 16
	// maxOpened is how many devices a client may have open.
	maxOpened = cache.MaxBackings
)

// directClient is a client and what it has. The goroutine of its conversation owns it.
type directClient struct {
	d      *direct
	conn   *net.UnixConn
	cred   unix.Ucred
	who    process
	view   *shm.View
	shares []*registration
	ring   *ringClient // nil without a ring

	mu struct {
		sync.Mutex
		opened []opened // by index
	}
}

// opened is a device that a client has opened.
type opened struct {
	s           *served
	id          cache.BackingID
	read, write bool
	ring        bool // requests may come over a ring; else it is the kernel that knows who uses it
}

// trusted clients may do what the operator may: root, and the user that the daemon runs as.
func (c *directClient) trusted() bool { return c.cred.Uid == 0 || int(c.cred.Uid) == os.Geteuid() }

// has says whether requests for a device may come over the client's ring.
func (c *directClient) has(id cache.BackingID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.mu.opened {
		if o.id == id && o.ring {
			return true
		}
	}
	return false
}

// run is the whole life of a client: it ends with the connection.
func (c *directClient) run() {
	defer c.conn.Close()
	if err := c.peer(); err != nil {
		return
	}
	if err := c.d.admit(c); err != nil {
		c.refuse(err)
		return
	}
	defer c.d.leave(c)
	defer c.end()
	_ = c.conn.SetReadDeadline(time.Now().Add(helloTime))
	var m shm.Message
	fds, err := m.Receive(c.conn)
	if err != nil {
		return
	}
	err = c.hello(&m, fds)
	shm.CloseAll(fds)
	if err != nil {
		c.reply(&shm.Message{Kind: shm.Hello}, err)
		return
	}
	_ = c.conn.SetReadDeadline(time.Time{})
	for {
		fds, err := m.Receive(c.conn)
		if err != nil {
			return
		}
		answer, err := c.answer(&m, fds)
		shm.CloseAll(fds)
		if !c.reply(&answer, err) {
			return
		}
	}
}

// refuse tells a client why it is not let in. The answer would be lost if the connection ended with
// the client's message unread; for more than a few of them nobody waits.
func (c *directClient) refuse(why error) {
	select {
	case c.d.refusing <- struct{}{}:
		defer func() { <-c.d.refusing }()
	default:
		return
	}
	var m shm.Message
	_ = c.conn.SetReadDeadline(time.Now().Add(refuseTime))
	if fds, err := m.Receive(c.conn); err == nil {
		shm.CloseAll(fds)
		c.reply(&shm.Message{Kind: shm.Hello}, why)
	}
}

// peer learns who the client is.
func (c *directClient) peer() error {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, cerr); err == nil {
		c.cred, c.who = *cred, processOf(*cred)
	}
	return err
}

// reply sends an answer, or the error in its place; false when the client is gone.
func (c *directClient) reply(m *shm.Message, err error, fds ...int) bool {
	if err != nil {
		*m = shm.Message{Kind: m.Kind, Errno: unix.EIO, Text: err.Error()}
		var e syscall.Errno
		if errors.As(err, &e) {
			m.Errno = e
		} else if errors.Is(err, shm.ErrSeals) || errors.Is(err, shm.ErrLayout) ||
			errors.Is(err, shm.ErrTooLarge) {
			m.Errno = unix.EINVAL
		}
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(helloTime))
	return m.Send(c.conn, fds...) == nil
}

// hello takes the client's memory, and begins to serve its ring if it has one.
func (c *directClient) hello(m *shm.Message, fds []int) (err error) {
	if m.Kind != shm.Hello || len(fds) != 1 {
		return fmt.Errorf("a conversation begins with Hello and a memfd: %w", unix.EPROTO)
	}
	if m.Flags&^shm.FlagRing != 0 {
		return fmt.Errorf("unknown flags %#x: %w", m.Flags, unix.EINVAL)
	}
	if c.view, err = shm.Open(fds[0], c.d.o.Bytes); err != nil {
		return err
	}
	answer := shm.Message{Kind: shm.Hello, Max: maxDirect}
	if m.Flags&shm.FlagRing == 0 {
		c.reply(&answer, nil)
		return nil
	}
	r, theirs, err := newRingClient(c)
	if err != nil {
		return err
	}
	defer shm.CloseAll(theirs)
	if err := c.d.loop.do(func() error { return c.d.ring.add(r) }); err != nil {
		r.close()
		return err
	}
	c.ring = r
	answer.Flags = shm.FlagRing
	c.reply(&answer, nil, theirs...)
	return nil
}

// end takes back all that a client had. I/O on its memory is done before the memory is unmapped.
func (c *directClient) end() {
	if c.view == nil {
		return
	}
	if c.ring != nil {
		// Where the loop has ended there is no I/O any more.
		if c.d.loop.do(func() error { c.d.ring.remove(c.ring); return nil }) == nil {
			<-c.ring.over
		}
		c.ring.close()
	}
	kept := false
	for _, r := range c.shares {
		// What is handed over has requests that wait in the driver for the next daemon.
		if err := r.s.drop(context.Background(), r); err != nil {
			kept = true
			r.s.orphan(r)
			if !errors.Is(err, errHandedOver) {
				c.d.in.log.Error("memory of a client is kept", "pid", c.cred.Pid, "error", err)
			}
		}
	}
	if !kept { // else a queue may look into it at any time
		_ = c.view.Close()
	}
}

// answer carries out a request of the conversation.
func (c *directClient) answer(m *shm.Message, fds []int) (shm.Message, error) {
	answer := shm.Message{Kind: m.Kind, Index: m.Index}
	if m.Flags != 0 && (m.Kind != shm.OpenDevice || m.Flags != shm.FlagRegister) {
		return answer, fmt.Errorf("unknown flags %#x: %w", m.Flags, unix.EINVAL)
	}
	switch m.Kind {
	case shm.List:
		list := c.d.in.list()
		if int64(m.Index) >= int64(len(list)) {
			return answer, unix.ENOENT
		}
		c.describe(&answer, list[m.Index])
		return answer, nil
	case shm.OpenDevice:
		return answer, c.open(m, fds, &answer)
	case shm.Query:
		if _, ok := c.device(m.Index); !ok {
			return answer, unix.EBADF
		}
		answer.Text = string(capabilities())
		return answer, nil
	}
	return answer, fmt.Errorf("unknown message %d: %w", m.Kind, unix.EPROTO)
}

func (c *directClient) device(index uint32) (opened, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(index) >= int64(len(c.mu.opened)) {
		return opened{}, false
	}
	return c.mu.opened[index], true
}

// describe fills in what there is to know of a device.
func (c *directClient) describe(m *shm.Message, s *served) {
	m.Number, m.Block = attrs.Device(s.b.Number()), uint32(s.b.LBS())
	m.Max, m.Size, m.Text = maxDirect, uint64(s.b.Size()), s.name
	m.Dev = c.d.in.blockDev(s)
}

// blockDev is the device number of the block device; 0 without one.
func (in *Instance) blockDev(s *served) uint64 {
	in.mu.Lock()
	u := s.ublk
	in.mu.Unlock()
	var st unix.Stat_t
	if u == nil || unix.Stat(u.Path(), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0
	}
	return st.Rdev
}

// open opens a device, and registers the client's memory with it if that is asked for.
func (c *directClient) open(m *shm.Message, fds []int, answer *shm.Message) error {
	o, err := c.find(m, fds)
	if err != nil {
		return err
	}
	o.id, o.ring = o.s.b.ID(), c.ring != nil
	c.describe(answer, o.s)
	if m.Flags&shm.FlagRegister != 0 && c.register(o.s) == nil {
		answer.Flags |= shm.FlagRegister
	}
	if !o.read {
		answer.Flags |= shm.FlagWriteOnly
	}
	if !o.write {
		answer.Flags |= shm.FlagReadOnly
	}
	c.mu.Lock()
	full := len(c.mu.opened) >= maxOpened
	if !full {
		answer.Index = uint32(len(c.mu.opened))
		c.mu.opened = append(c.mu.opened, o)
	}
	c.mu.Unlock()
	if full {
		return unix.EMFILE
	}
	if c.ring == nil {
		return nil
	}
	return c.d.loop.do(func() error {
		if c.d.ring.gone[o.id] {
			return unix.ENODEV
		}
		c.ring.opened = append(c.ring.opened, o)
		return nil
	})
}

// register makes the client's memory known to a block device, once.
func (c *directClient) register(s *served) error {
	for _, r := range c.shares {
		if r.s == &s.shared && s.shared.has(r) {
			return nil
		}
	}
	r, err := s.shared.add(c.d.in.life, c.who, c.view)
	if err != nil {
		if !errors.Is(err, errNotShared) {
			c.d.in.log.Warn("memory of a client is not registered", "pid", c.cred.Pid, "error", err)
		}
		return err
	}
	c.shares = append(c.shares, r)
	return nil
}

// find finds the device that a client may open: by name if it is trusted, else by the descriptor of
// its block device, which shows what it may do there.
func (c *directClient) find(m *shm.Message, fds []int) (o opened, err error) {
	if m.Text != "" {
		if !c.trusted() {
			return o, fmt.Errorf("only root opens devices by name: %w", unix.EACCES)
		}
		o.s, err = c.d.in.find(m.Text)
		if err != nil {
			return o, fmt.Errorf("no device %s in cache %s: %w", m.Text, c.d.in.opts.Name, unix.ENOENT)
		}
		o.read, o.write = true, true
		return o, nil
	}
	if len(fds) != 1 {
		return o, fmt.Errorf("open needs a name or a descriptor: %w", unix.EINVAL)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return o, err
	}
	flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0)
	if err != nil {
		return o, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || flags&unix.O_PATH != 0 {
		return o, fmt.Errorf("not an open block device: %w", unix.ENOTBLK)
	}
	o.read = flags&unix.O_ACCMODE != unix.O_WRONLY
	o.write = flags&unix.O_ACCMODE != unix.O_RDONLY
	for _, s := range c.d.in.list() {
		if dev := c.d.in.blockDev(s); dev != 0 && dev == st.Rdev {
			o.s = s
			return o, nil
		}
	}
	return o, fmt.Errorf("cache %s does not serve that block device: %w", c.d.in.opts.Name,
		unix.ENODEV)
}

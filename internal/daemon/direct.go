package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
	"ubcache/cache"
)

// DirectOptions bound what clients of the direct channel may use. Zero fields mean the defaults.
type DirectOptions struct {
	// Off makes no socket.
	Off bool
	// Clients is how many there may be (64), PerUser how many of one user (16); root and the user
	// that the daemon runs as may have all.
	Clients, PerUser int
	// Bytes of data that a client's region may have (1 GiB).
	Bytes int64
	// Depth is how many requests of one client are in service at a time (64).
	Depth int
}

func (o *DirectOptions) setDefaults() {
	o.Clients = orDefault(o.Clients, 64)
	o.PerUser = orDefault(o.PerUser, 16)
	o.Depth = orDefault(o.Depth, 64)
	if o.Bytes == 0 {
		o.Bytes = 1 << 30
	}
}

// direct serves the clients of a cache that talk to it over shared memory: it registers their memory
// with block devices, and serves rings of requests that go around the block devices (directring.go).
//
// Each client has a goroutine for the conversation on its socket (directclient.go), which begins and
// ends everything else. All rings are served by one loop with a lane of its own.
type direct struct {
	in   *Instance
	o    DirectOptions
	path string
	l    *net.UnixListener
	loop *loop
	ring directRing // the loop's thread only

	mu struct {
		sync.Mutex
		clients map[*directClient]struct{}
		closing bool
	}
	running  sync.WaitGroup // accept and the clients
	refusing chan struct{}  // has room for those that are told why they are not let in
}

// directPath is where clients of a cache connect.
func (in *Instance) directPath() string {
	return fmt.Sprintf("%s/%s%s", in.dir, in.opts.Name, shm.SocketSuffix)
}

// startDirect begins to serve clients. The socket is open to everybody: what somebody may do is
// decided by who it is and by the devices that it can open.
func (in *Instance) startDirect() error {
	o := in.opts.Direct
	if o.Off {
		return nil
	}
	o.setDefaults()
	d := &direct{
		in: in, o: o, path: in.directPath(), refusing: make(chan struct{}, maxRefusing),
	}
	d.mu.clients = map[*directClient]struct{}{}
	if err := os.Remove(d.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("make socket for clients: %w", err)
	}
	var err error
	d.l, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: d.path, Net: "unixpacket"})
	if err == nil {
		err = os.Chmod(d.path, 0o666)
	}
	if err != nil {
		return fmt.Errorf("make socket for clients: %w", err)
	}
	d.ring.init(d)
	d.loop, err = startLoop(in.cache, false, func(l *loop) error {
		l.loopHooks = d.ring.hooks()
		if err := l.setFile(cache.SSD, driverDevice(in.ssd)); err != nil {
			return err
		}
		for _, s := range in.list() {
			if s.dev == nil {
				continue
			}
			if err := l.setFile(s.b.ID(), driverDevice(s.dev)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = d.l.Close()
		return err
	}
	in.mu.Lock()
	in.mu.direct = d
	in.mu.Unlock()
	d.running.Go(d.accept)
	return nil
}

// directServer is what serves clients; nil if nothing does.
func (in *Instance) directServer() *direct {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.direct
}

func (d *direct) accept() {
	for {
		conn, err := d.l.AcceptUnix()
		if err != nil {
			if d.closing() {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: it passes
			continue
		}
		c := &directClient{d: d, conn: conn}
		d.running.Go(c.run)
	}
}

func (d *direct) closing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.closing
}

// admit counts a client, or says why there is no room for it.
func (d *direct) admit(c *directClient) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	same := 0
	for o := range d.mu.clients {
		if o.cred.Uid == c.cred.Uid {
			same++
		}
	}
	switch {
	case d.mu.closing:
		return fmt.Errorf("the cache is stopping: %w", unix.ESHUTDOWN)
	case len(d.mu.clients) >= d.o.Clients:
		return fmt.Errorf("there are %d clients already: %w", d.o.Clients, unix.EUSERS)
	case !c.trusted() && same >= d.o.PerUser:
		return fmt.Errorf("user %d has %d clients already: %w", c.cred.Uid, same, unix.EUSERS)
	}
	d.mu.clients[c] = struct{}{}
	return nil
}

func (d *direct) leave(c *directClient) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mu.clients, c)
}

// stop ends the service. What clients have under way is done first. Block devices that stay behind
// for the next daemon keep the memory that is registered with them.
func (d *direct) stop() error {
	d.mu.Lock()
	d.mu.closing = true
	for c := range d.mu.clients {
		_ = c.conn.Close()
	}
	d.mu.Unlock()
	_ = d.l.Close()
	d.running.Wait()
	d.in.mu.Lock()
	d.in.mu.direct = nil
	d.in.mu.Unlock()
	err := d.loop.stop()
	d.loop.lane.Close()
	d.ring.close()
	return err
}

// join adds a backing device to the loop.
func (d *direct) join(id cache.BackingID, dev device) error {
	return d.loop.do(func() error {
		err := d.loop.setFile(id, dev)
		d.ring.gone[id] = err != nil
		return err
	})
}

// drop ends the requests on a backing device and takes it from the loop; clients that have it open
// get ENODEV from then on.
func (d *direct) drop(id cache.BackingID) error {
	var idle <-chan struct{}
	if err := d.loop.do(func() error { idle = d.ring.drop(id); return nil }); err != nil {
		return err
	}
	<-idle
	return d.loop.do(func() error { return d.loop.dropFile(id) })
}

// users says who has a backing device open; empty if nobody has.
func (d *direct) users(id cache.BackingID) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.mu.clients {
		if c.has(id) {
			return fmt.Sprintf("process %d of user %d has it open through shared memory", c.cred.Pid,
				c.cred.Uid)
		}
	}
	return ""
}

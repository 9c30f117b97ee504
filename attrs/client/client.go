package client

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/attrs/shm"
)

// Channel is a way for attributes to reach a cache.
type Channel uint8

// The channels. Auto, in Options, takes the best there is.
const (
	Auto Channel = iota
	Shared
	Direct
	Plain
)

var channelNames = [...]string{"auto", "shared", "direct", "plain"}

func (c Channel) String() string {
	if int(c) < len(channelNames) {
		return channelNames[c]
	}
	return "unknown"
}

// Options of Open; the zero value suits most.
type Options struct {
	// Socket is that of a cache's daemon. Without it all caches are asked whose sockets are in the
	// folder that UBCACHE_RUNTIME_DIR names, in /run/ubcache and in /dev/shm/ubcache, and that
	// belong to root or to the user of this process.
	Socket string
	// Device is the name of a device of a cache, for Direct without a block device; the path of
	// Open is empty then. Only root and the user that the daemon runs as may do that.
	Device string
	// Channel insists on a channel: Open fails if it is not there.
	Channel Channel
	// ReadOnly opens for reading.
	ReadOnly bool
	// Bytes of memory for buffers; 16 MiB if 0.
	Bytes int64
	// Depth is how many requests can be under way; 128 if 0. Rounded up to a power of two.
	Depth int
}

const defaultDepth = 128

// Errors that a caller can act on. What the kernel or a cache says to a request is a syscall.Errno.
var (
	// ErrClosed: the device was closed.
	ErrClosed = errors.New("device is closed")
	// ErrMemory: the region has no room for the buffer.
	ErrMemory = errors.New("no room in the shared memory (see Options.Bytes)")
	// ErrChannel: the channel asked for is not there.
	ErrChannel = errors.New("channel is not available")
)

// Device is an open block device or file. Its methods may be called by any goroutine.
type Device struct {
	o      Options
	path   string
	fd     int // -1 without one
	block  bool
	region *shm.Region
	memory memory
	pages  []atomic.Uint32 // 1: a request with attributes has the page
	async  async

	// use is locked by who changes the channel, and read-locked for a request from its start until
	// kernel and daemon are done with it.
	use sync.RWMutex
	// again is held by who looks for a channel anew, before use.
	again   sync.Mutex
	conns   []*conn
	ring    *ring // of channel Direct
	channel Channel
	why     string
	gone    error // there was a channel and is none any more
	turn    int   // how often the channel was found anew
	tried   time.Time
	over    chan struct{} // ends the watch over the connections; nil without one
	watched sync.WaitGroup

	life struct {
		sync.Mutex
		closed bool
		busy   sync.WaitGroup
	}
}

// Open opens a block device, or a file on any filesystem. An error means that the I/O itself is not
// possible, or that Options.Channel is not; what attributes are worth Channel says.
func Open(path string, o Options) (*Device, error) {
	if o.Depth <= 0 {
		o.Depth = defaultDepth
	}
	for n := 1; ; n *= 2 {
		if n >= min(o.Depth, shm.MaxEntries) {
			o.Depth = n
			break
		}
	}
	d := &Device{o: o, path: path, fd: -1}
	d.async.init(d)
	if path == "" && o.Device == "" {
		return nil, errors.New("open: neither a path nor Options.Device is given")
	}
	err := d.open()
	if err != nil {
		_ = d.release()
		if path == "" {
			path = o.Device
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}

func (d *Device) open() (err error) {
	d.region, err = shm.Create(shm.Options{Bytes: d.o.Bytes, Entries: d.o.Depth})
	if err != nil {
		return err
	}
	d.memory.init(len(d.region.Data()) / shm.PageBytes)
	d.pages = make([]atomic.Uint32, len(d.region.Data())/shm.PageBytes)
	if d.o.Device != "" {
		if d.path != "" || d.o.Channel != Auto && d.o.Channel != Direct {
			return errors.New("Options.Device is for channel Direct without a path")
		}
		return d.openByName()
	}
	if err := d.openFile(); err != nil {
		return err
	}
	if d.o.Channel == Plain {
		d.channel, d.why = Plain, "asked for"
	} else {
		d.findChannel()
	}
	if d.o.Channel != Auto && d.channel != d.o.Channel {
		return fmt.Errorf("%w: %s (%s)", ErrChannel, d.o.Channel, d.why)
	}
	if d.channel == Plain {
		// Any buffer may be used then.
		return d.direct(false)
	}
	if d.channel == Shared {
		d.watch()
	}
	return nil
}

// openFile opens the path with O_DIRECT: only so do the pages of a buffer reach the block device.
func (d *Device) openFile() error {
	mode := unix.O_RDWR
	if d.o.ReadOnly {
		mode = unix.O_RDONLY
	}
	var err error
	d.fd, err = unix.Open(d.path, mode|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		d.fd = -1
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.block = true
	case unix.S_IFREG:
	default:
		return errors.New("neither a block device nor a regular file")
	}
	return d.direct(false)
}

// direct switches O_DIRECT.
func (d *Device) direct(on bool) error {
	flags, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	flags &^= unix.O_DIRECT | unix.O_NONBLOCK
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(uintptr(d.fd), unix.F_SETFL, flags)
	return err
}

// Channel says how attributes reach the cache, and in a few words why: what is missing for a better
// channel.
func (d *Device) Channel() (Channel, string) {
	d.use.RLock()
	defer d.use.RUnlock()
	return d.channel, d.why
}

// Size of the device or file in bytes.
func (d *Device) Size() (int64, error) {
	if d.fd < 0 {
		d.use.RLock()
		defer d.use.RUnlock()
		if d.gone != nil {
			return 0, d.gone
		}
		return int64(d.conns[0].info.Size), nil
	}
	return unix.Seek(d.fd, 0, unix.SEEK_END)
}

// Support is whether a device acts on an attribute.
type Support struct {
	ID        attrs.ID
	Supported bool
}

// Query asks which attributes the device knows, and which of them it acts on. Of channel Plain there
// are none. Of a file on channel Shared it is what the caches say of their devices, of which the
// file may be on none.
func (d *Device) Query() ([]Support, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.life.busy.Done()
	d.use.RLock()
	defer d.use.RUnlock()
	if d.gone != nil {
		return nil, d.gone
	}
	for _, c := range d.conns {
		if !c.opened {
			continue
		}
		m, err := c.ask(&shm.Message{Kind: shm.Query, Index: c.info.Index})
		if err != nil {
			return nil, fmt.Errorf("query: %w", err)
		}
		var list []Support
		for _, s := range shm.ParseCapabilities([]byte(m.Text)) {
			list = append(list, Support(s))
		}
		return list, nil
	}
	return nil, nil
}

// enter begins a call that must be over before the device is closed.
func (d *Device) enter() error {
	d.life.Lock()
	defer d.life.Unlock()
	if d.life.closed {
		return ErrClosed
	}
	d.life.busy.Add(1)
	return nil
}

// Close waits for what is under way and gives everything back. No buffer of Alloc is good after it.
func (d *Device) Close() error {
	d.life.Lock()
	if d.life.closed {
		d.life.Unlock()
		return ErrClosed
	}
	d.life.closed = true
	d.life.Unlock()
	d.life.busy.Wait()
	return d.release()
}

func (d *Device) release() (err error) {
	if d.over != nil {
		close(d.over)
		d.watched.Wait()
	}
	d.async.close()
	d.disconnect()
	if d.fd >= 0 {
		err = errors.Join(err, unix.Close(d.fd))
		d.fd = -1
	}
	if d.region != nil {
		err = errors.Join(err, d.region.Close())
	}
	return err
}

package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/uring"
)

// bench is a cache on image files, with loops in place of ublk queues: the engine and the driver
// as in the daemon, and requests from the test.
type bench struct {
	t       testing.TB
	ssd     *blockdev.Device
	disk    *blockdev.Device
	pending *pendingRing
	dir     string
	c       *cache.Cache
	id      cache.BackingID
	bg      *loop
}

type benchOptions struct {
	dir         string // of the files; empty: a temporary one
	ssdBytes    int64
	diskBytes   int64
	mode        cache.Mode
	noChecksums bool
}

// newBench formats a cache, opens it and attaches a disk.
func newBench(t testing.TB, o benchOptions) *bench {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	w := &bench{t: t, dir: o.dir}
	w.ssd = openImage(t, filepath.Join(o.dir, "ssd"), o.ssdBytes)
	w.disk = openImage(t, filepath.Join(o.dir, "disk"), o.diskBytes)
	_, err := cache.Format(w.ssd, cache.FormatOptions{NoChecksums: o.noChecksums})
	must(t, err)
	w.open()
	tun := cache.DefaultTunables()
	tun.SequentialCutoff = 0
	b, err := w.c.Attach(cache.AttachOptions{
		Name: "disk", Mode: o.mode, LBS: 512, Tunables: tun,
		Identity: cache.Identity{Size: w.disk.Size()},
	})
	must(t, err)
	w.id = b.ID()
	w.start()
	return w
}

func openImage(t testing.TB, path string, size int64) *blockdev.Device {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Close())
	i, err := blockdev.Inspect(path)
	must(t, err)
	d, err := i.Open(context.Background())
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens the cache as it is on the SSD and in the pending ring.
func (w *bench) open() {
	w.t.Helper()
	sb, err := cache.ReadSuper(w.ssd)
	must(w.t, err)
	w.pending, err = openPending(w.dir, sb.UUID, true)
	must(w.t, err)
	w.c, err = cache.Open(w.ssd, cache.Options{
		Pending: w.pending.mem, Load: cache.LoadOptions{Blocks: 1, Pages: 1, NoSamples: true}, // beside I/O, if it can be
	})
	must(w.t, err)
}

// start begins the background work.
func (w *bench) start() {
	w.t.Helper()
	b, err := w.c.Backing(w.id)
	must(w.t, err)
	setAbilities(b, w.disk)
	w.bg = w.loop(true, nil)
}

func (w *bench) loop(background bool, finish func(*cache.Request)) *loop {
	w.t.Helper()
	l, err := startLoop(w.c, background, func(l *loop) error {
		l.finish = finish
		if err := l.setFile(cache.SSD, driverDevice(w.ssd)); err != nil {
			return err
		}
		return l.setFile(w.id, driverDevice(w.disk))
	})
	must(w.t, err)
	return l
}

// stop stops the cache in order.
func (w *bench) stop() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must(w.t, w.c.Settle(ctx))
	must(w.t, w.bg.stop())
	w.bg.lane.Close()
	must(w.t, w.c.Close())
	sb, err := cache.ReadSuper(w.ssd)
	must(w.t, err)
	if !sb.Clean {
		w.t.Fatal("the cache is not clean after a stop in order")
	}
	w.pending.close(true)
}

// kill leaves everything as a killed process does, but for I/O under way.
func (w *bench) kill() {
	w.t.Helper()
	must(w.t, w.bg.stop())
	w.bg.lane.Close()
	w.c.Abandon()
	w.pending.close(false)
}

// check examines the closed cache.
func (w *bench) check() {
	w.t.Helper()
	sb, err := cache.ReadSuper(w.ssd)
	must(w.t, err)
	ring, err := ReadPending(w.dir, sb.UUID)
	must(w.t, err)
	r, err := cache.Check(context.Background(), w.ssd, cache.CheckOptions{Data: true, Pending: ring})
	must(w.t, err)
	for _, p := range r.Problems {
		w.t.Error("check: ", p)
	}
}

// client makes requests on a loop of its own, several at a time, each with a buffer.
type client struct {
	w    *bench
	l    *loop
	mem  *uring.Arena
	reqs []cache.Request
	max  int
	idle []uint32 // tags
	// next fills the request of a tag in and reports whether there is one; done takes it when it
	// is answered. Both are called on the loop's thread.
	next func(r *cache.Request, buf []byte) bool
	done func(r *cache.Request)
	over chan struct{}
	busy int
	quit bool
}

func (w *bench) client(depth, maxBytes int) *client {
	w.t.Helper()
	c := &client{w: w, max: maxBytes, reqs: make([]cache.Request, depth), over: make(chan struct{})}
	var err error
	c.mem, err = uring.NewArena(depth * maxBytes)
	must(w.t, err)
	for i := range depth {
		c.idle = append(c.idle, uint32(i))
	}
	c.l = w.loop(false, func(r *cache.Request) {
		c.done(r)
		c.busy--
		c.idle = append(c.idle, r.Tag)
	})
	return c
}

// run makes requests until next has no more, and waits for the last.
func (c *client) run() {
	c.w.t.Helper()
	must(c.w.t, c.l.do(func() error {
		c.l.before = c.submit
		return nil
	}))
	<-c.over
	must(c.w.t, c.l.stop())
	c.l.lane.Close()
	must(c.w.t, c.mem.Free())
}

// submit makes as many requests as there are idle tags. Answers that come at once add tags.
func (c *client) submit() {
	for !c.quit && len(c.idle) > 0 {
		tag := c.idle[len(c.idle)-1]
		r := &c.reqs[tag]
		r.Tag, r.Backing = tag, c.w.id
		buf := c.mem.Slice(int(tag)*c.max, c.max)
		if !c.next(r, buf) {
			c.quit = true
			break
		}
		c.idle = c.idle[:len(c.idle)-1]
		c.busy++
		c.l.lane.Submit(r)
	}
	if c.quit && c.busy == 0 && c.over != nil {
		c.l.before = nil
		close(c.over)
	}
}

//go:build vm

package blkbpf

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ubcache/internal/vmtest"
	"ubcache/ublk"
)

// ramDisk is a ublk device in memory that notes what Lookup says of each of its requests.
type ramDisk struct {
	*ublk.Device
	mem    []byte
	events atomic.Pointer[Device] // nil if not tracked
	quiet  atomic.Bool            // note nothing
	hold   atomic.Bool            // answer nothing until release …
	holdAt uint64                 // … that begins at this sector, if it is not 0

	served atomic.Int64

	mu   sync.Mutex
	log  []noted
	held int
}

// noted is a request as the server sees it and what Lookup said.
type noted struct {
	op ublk.Op
	seen
	found bool
}

const (
	ramQueues = 2
	ramDepth  = 64
	ramBytes  = 256 << 20
)

// newRAMDisk makes the device, tracked from before its first request if src is not nil.
func newRAMDisk(t *testing.T, src *Source) *ramDisk {
	t.Helper()
	dev, err := ublk.Create(ramOptions())
	if err != nil {
		t.Fatal(err)
	}
	d := serve(t, dev, src)
	// The kernel looks for partitions, since 7.x in its own time.
	vmtest.Wait(t, 30*time.Second, "the kernel's first read", func() bool { return d.served.Load() > 0 })
	vmtest.Wait(t, 30*time.Second, "the end of the kernel's reads", func() bool {
		before := d.served.Load()
		time.Sleep(200 * time.Millisecond)
		return d.served.Load() == before
	})
	return d
}

func ramOptions() ublk.Options {
	return ublk.Options{
		ID: -1, Queues: ramQueues, Depth: ramDepth, Recovery: ublk.RecoveryReissue,
		Params: ublk.Params{SizeBytes: ramBytes, VolatileCache: true, FUA: true},
	}
}

// serve starts a new or recovered device.
func serve(t *testing.T, dev *ublk.Device, src *Source) *ramDisk {
	t.Helper()
	d := &ramDisk{Device: dev, mem: make([]byte, ramBytes)}
	t.Cleanup(func() {
		if err := dev.Delete(context.Background()); err != nil {
			t.Error(err)
		}
		d.untrack(t)
	})
	if src != nil {
		d.track(t, src)
	}
	if err := dev.Start(d.handler); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *ramDisk) handler(int) (ublk.Handler, error) { return &ramQueue{d: d}, nil }

func (d *ramDisk) track(t *testing.T, src *Source) {
	t.Helper()
	o := d.Options()
	events, err := src.Track(fmt.Sprintf("ublkb%d", d.ID()), o.Queues, o.Depth)
	if err != nil {
		t.Fatal(err)
	}
	events.ShowAll(true)
	d.events.Store(events)
}

// untrack ends what track began; no request may be under way.
func (d *ramDisk) untrack(t *testing.T) {
	t.Helper()
	if events := d.events.Swap(nil); events != nil {
		if err := events.Close(); err != nil {
			t.Error(err)
		}
	}
}

// ramQueue serves one queue.
type ramQueue struct {
	ublk.HandlerFunc // its Start, Completion, BeforeWait and Stop do nothing
	d                *ramDisk
	held             []uint16 // tags
}

func (h *ramQueue) Handle(q *ublk.Queue, r *ublk.Request) {
	if h.d.hold.Load() && (h.d.holdAt == 0 || h.d.holdAt == r.Sector) {
		h.held = append(h.held, r.Tag)
		h.d.mu.Lock()
		h.d.held++
		h.d.mu.Unlock()
		return
	}
	h.serve(q, r)
}

// Woken answers what was held.
func (h *ramQueue) Woken(q *ublk.Queue) {
	for _, tag := range h.held {
		h.serve(q, q.Request(tag))
	}
	h.held = h.held[:0]
}

func (h *ramQueue) serve(q *ublk.Queue, r *ublk.Request) {
	if events := h.d.events.Load(); events != nil {
		e, ok := events.Lookup(q.ID(), int(r.Tag), r.Sector, r.Sectors)
		if !h.d.quiet.Load() {
			h.d.mu.Lock()
			h.d.log = append(h.d.log, noted{r.Op, seen{r.Sector, r.Sectors, e}, ok})
			h.d.mu.Unlock()
		}
	}
	switch r.Op {
	case ublk.OpRead:
		copy(r.Data, h.d.mem[r.Offset():])
	case ublk.OpWrite:
		copy(h.d.mem[r.Offset():], r.Data)
	}
	h.d.served.Add(1)
	q.CompleteOK(r.Tag)
}

// waitHeld waits until so many requests are held.
func (d *ramDisk) waitHeld(t *testing.T, n int) {
	t.Helper()
	vmtest.Wait(t, time.Minute, "requests at the server", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.held >= n
	})
}

// release answers what was held.
func (d *ramDisk) release() {
	d.hold.Store(false)
	for i := range d.Options().Queues {
		d.Queue(i).Wake()
	}
}

// take returns what was noted so far, and forgets it.
func (d *ramDisk) take() []noted {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.log
	d.log = nil
	return list
}

// during returns what was noted while the function ran, of one kind of requests.
func (d *ramDisk) during(op ublk.Op, f func()) (list []noted) {
	d.take()
	f()
	for _, n := range d.take() {
		if n.op == op {
			list = append(list, n)
		}
	}
	return list
}

// command runs a program and returns the number of its process.
func command(t *testing.T, name string, args ...string) uint32 {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, os.Environ()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out.String())
	}
	return uint32(cmd.Process.Pid)
}

// fio runs one job in one process; the options come after those that all tests want.
func fio(t *testing.T, file string, options ...string) uint32 {
	t.Helper()
	args := []string{"--name=job", "--filename=" + file, "--thread", "--direct=1", "--bs=4k"}
	for _, o := range options {
		args = append(args, "--"+o)
	}
	return command(t, "fio", args...)
}

// dropCaches makes buffered reads go to the devices.
func dropCaches(t *testing.T) {
	t.Helper()
	vmtest.Sh(t, "sync; echo 3 >/proc/sys/vm/drop_caches")
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
	"ubcache/ublk"
)

// errNotShared: a block device cannot take requests with shared memory. Clients use the ring then.
var errNotShared = errors.New("the block device takes no shared memory")

// errHandedOver: the block device waits for the next daemon, which has the memory registered still.
var errHandedOver = errors.New("the block device is handed over")

// shareTime bounds the registration of a client's memory, for which the driver waits until all I/O
// of the device is done.
const shareTime = 30 * time.Second

// sharer registers memory; a *ublk.Device.
type sharer interface {
	RegisterShared(ctx context.Context, mem []byte, readOnly bool) (int, error)
	UnregisterShared(ctx context.Context, index int) error
	Path() string
}

// sharing is the memory of clients that is registered with one block device: requests with their data
// in it arrive with the client's attributes, also through filesystems and device-mapper above.
//
// The driver keeps registrations when the daemon dies, and gives the next one requests with their
// indices. So each is on record in the runtime folder (sharerecord.go), and the next daemon takes the
// memory again from the client (sharerecover.go).
type sharing struct {
	table sharedTable // what the queues look at
	log   *slog.Logger

	// mu is held while the driver registers and unregisters, so these happen one at a time.
	mu struct {
		sync.Mutex
		dev    sharer // nil: there is no device that could be told anything
		handed bool   // it waits for the next daemon
		path   string // of the record
		queue  string // folder of the request queue in sysfs
		list   []*registration
		merges string // what nomerges was before; empty: it is as it was
		stale  []int  // registered, but nobody has the memory any more
	}
}

// registration is a client's memory at one block device.
type registration struct {
	s      *sharing
	index  int // noIndex: being registered
	owner  process
	memory shm.Identity
	view   *shm.View
	// found: an earlier daemon has registered it, and the view belongs to the registration and not to a
	// client. held: a client is connected that has it.
	found, held bool
}

const noIndex = -1

// queueFolder is that of a block device's request queue in sysfs.
func queueFolder(dev string) string {
	return filepath.Join("/sys/class/block", filepath.Base(dev), "queue")
}

// begin is called with a block device, the sysfs folder of its queue and the name of its record, before
// it serves. One that was made anew has no memory, whatever
// is on record of its predecessor.
func (s *sharing) begin(d sharer, queue, record string, log *slog.Logger, recovered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = log
	s.mu.dev, s.mu.handed, s.mu.path = d, false, record
	s.mu.queue = queue
	s.forget()
	if recovered {
		s.recover()
		return
	}
	if err := s.save(); err != nil {
		log.Warn("record of registered memory", "error", err)
	}
}

// forget forgets all registrations; no queue serves the device. s.mu is held.
func (s *sharing) forget() {
	s.table.clear()
	for _, r := range s.mu.list {
		if r.found {
			_ = r.view.Close()
		}
	}
	s.mu.list, s.mu.stale, s.mu.merges = nil, nil, ""
}

// add registers a client's memory. What an earlier daemon has registered of it is taken over.
func (s *sharing) add(ctx context.Context, owner process, v *shm.View) (*registration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.dev == nil {
		return nil, errNotShared
	}
	for _, r := range s.mu.list {
		if !r.held && r.memory == v.Identity() && r.owner.UID == owner.UID {
			was := r.owner
			r.held, r.owner = true, owner
			if err := s.save(); err != nil {
				r.held, r.owner = false, was
				return nil, err
			}
			return r, nil
		}
	}
	mem, err := v.Data(0, v.DataBytes())
	if err != nil {
		return nil, err
	}
	// On record before it is registered: a daemon that dies in between must not leave memory behind
	// of which nobody knows.
	r := &registration{
		s: s, index: noIndex, owner: owner, memory: v.Identity(), view: v, held: true,
	}
	s.forbidMerges()
	s.mu.list = append(s.mu.list, r)
	if err = s.save(); err == nil {
		err = s.register(ctx, r, mem)
	}
	if err != nil {
		s.remove(r)
		return nil, err
	}
	return r, nil
}

func (s *sharing) register(ctx context.Context, r *registration, mem []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	if r.index, err = s.mu.dev.RegisterShared(ctx, mem, false); err != nil {
		r.index = noIndex
		return fmt.Errorf("register memory with %s: %w", s.mu.dev.Path(), err)
	}
	s.reused(r)
	if err = s.save(); err != nil {
		if e := s.unregister(ctx, r.index); e != nil {
			s.mu.stale = append(s.mu.stale, r.index)
			err = errors.Join(err, e)
		}
		return err
	}
	s.table.set(r.index, r.view)
	return nil
}

// reused forgets whatever else was thought to have the index that the driver has just given out. A
// daemon that died between unregistering and saying so has left that on record. s.mu is held.
func (s *sharing) reused(r *registration) {
	s.mu.stale = slices.DeleteFunc(s.mu.stale, func(index int) bool { return index == r.index })
	s.mu.list = slices.DeleteFunc(s.mu.list, func(o *registration) bool {
		if o == r || o.index != r.index {
			return false
		}
		if o.found {
			_ = o.view.Close()
		}
		return true
	})
}

func (s *sharing) unregister(ctx context.Context, index int) error {
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	err := s.mu.dev.UnregisterShared(ctx, index)
	if err != nil && !errors.Is(err, ublk.ErrNotFound) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take memory back from %s: %w", s.mu.dev.Path(), err)
	}
	return nil
}

// drop takes memory back; no request has it when it returns nil. With a device that is gone its
// registrations are too.
func (s *sharing) drop(ctx context.Context, r *registration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.handed {
		return errHandedOver
	}
	if !slices.Contains(s.mu.list, r) {
		return nil
	}
	if err := s.unregister(ctx, r.index); err != nil {
		return err
	}
	s.table.set(r.index, nil)
	s.remove(r)
	return nil
}

// orphan leaves memory that could not be taken back to whoever looks after such.
func (s *sharing) orphan(r *registration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.held = false
}

// remove forgets memory that is not registered any more. s.mu is held.
func (s *sharing) remove(r *registration) {
	s.mu.list = slices.DeleteFunc(s.mu.list, func(o *registration) bool { return o == r })
	if r.found {
		_ = r.view.Close()
	}
	if len(s.mu.list) == 0 {
		s.allowMerges()
	}
	if err := s.save(); err != nil {
		s.log.Warn("record of registered memory", "error", err)
	}
}

// handOver is called before a device is left to the next daemon. From then on nothing may be
// registered or unregistered: the driver would wait for I/O that only the next daemon answers, and
// that one for the driver.
func (s *sharing) handOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.dev != nil {
		s.mu.dev, s.mu.handed = nil, true
	}
}

// end is called when the device is gone.
func (s *sharing) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.dev == nil {
		return
	}
	s.forget()
	s.mu.dev = nil
	_ = os.Remove(s.mu.path)
}

// has says whether memory is registered still.
func (s *sharing) has(r *registration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.mu.list, r)
}

// count is how many clients' memory is registered.
func (s *sharing) count() int {
	list := s.table.views.Load()
	n := 0
	if list != nil {
		for _, v := range *list {
			if v != nil {
				n++
			}
		}
	}
	return n
}

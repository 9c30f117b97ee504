package blkbpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Limits of what can be tracked of a device: those of ublk.
const (
	maxDeviceQueues = 4096
	maxDepth        = 4096
)

// Device is a disk whose requests are written down.
type Device struct {
	src    *Source
	places []int    // of each queue, in the source's directory
	slots  [][]byte // of each queue, mapped
	bits   flagBits

	closed bool // under the source's lock
}

// Track begins to write down the requests of a disk, known by its name in /sys/block ("ublkb0"), which
// need not exist yet: a device that is tracked before it is started misses no request. depth is
// the number of tags in a queue. A disk can be tracked once by a source.
//
// Track and Device.Close take some milliseconds for each queue, as they wait for the kernel.
func (s *Source) Track(disk string, queues, depth int) (*Device, error) {
	d, err := s.track(disk, queues, depth)
	if err != nil {
		return nil, fmt.Errorf("track requests of %s: %w", disk, err)
	}
	return d, nil
}

func (s *Source) track(disk string, queues, depth int) (*Device, error) {
	if disk == "" || len(disk) > keyNameBytes {
		return nil, fmt.Errorf("the name has %d bytes, not 1 to %d", len(disk), keyNameBytes)
	}
	if queues < 1 || queues > maxDeviceQueues || depth < 1 || depth > maxDepth {
		return nil, fmt.Errorf("%d queues of %d: want 1 to %d of 1 to %d", queues, depth,
			maxDeviceQueues, maxDepth)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, errors.New("the source is closed")
	}
	d := &Device{src: s, bits: s.bits}
	for q := range queues {
		if err := d.addQueue(keyOf(disk, q), depth); err != nil {
			return nil, errors.Join(fmt.Errorf("queue %d: %w", q, err), d.release())
		}
	}
	return d, nil
}

// addQueue makes a queue's slots, maps them, and tells the program.
func (d *Device) addQueue(k key, depth int) error {
	place, free := d.src.disks.find(k)
	switch {
	case place >= 0:
		return errors.New("the disk is tracked already")
	case d.src.disks.n >= d.src.maxQueues:
		return fmt.Errorf("%d queues are tracked already, the limit", d.src.disks.n)
	case free < 0:
		return fmt.Errorf("no room for it among the %d queues that are tracked", d.src.disks.n)
	}
	m, err := ebpf.NewMap(slotsSpec(depth))
	if err != nil {
		return fmt.Errorf("make a map: %w", err)
	}
	// The table and the mapping keep it.
	defer m.Close()
	mem, err := unix.Mmap(m.FD(), 0, depth*slotBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the slots: %w", err)
	}
	if err = d.src.queues.Put(uint32(free), m); err != nil {
		return errors.Join(err, unix.Munmap(mem))
	}
	d.src.disks.put(free, k)
	d.places = append(d.places, free)
	d.slots = append(d.slots, mem)
	return nil
}

// Lookup returns what the kernel knows of a request that the driver has handed over and that is not
// completed yet, given its queue, tag, position and length in sectors of 512 bytes. It may be called
// once for each request, and by one thread at a time for each queue: it empties the slot. It does not
// allocate and makes no system call.
//
// It is false if the program did not see the request or did not write it down ([Device.ShowAll]), and always of a nil
// device: there is no program.
func (d *Device) Lookup(queue, tag int, sector uint64, sectors uint32) (Event, bool) {
	if !d.Any(queue, tag) {
		return Event{}, false
	}
	return take(d.slots[queue][tag*slotBytes:], sector, sectors, &d.bits)
}

// Any is Lookup at a glance: false says that Lookup would find nothing, as for most requests.
func (d *Device) Any(queue, tag int) bool { return d != nil && d.slots[queue][tag*slotBytes] != 0 }

// ShowAll says whether requests are written down from which no attribute follows ([Event.Silent]), as from most. They are
// not at first: nobody needs to look at them but rules.
func (d *Device) ShowAll(all bool) {
	d.src.mu.Lock()
	defer d.src.mu.Unlock()
	if d.closed || d.src.mu.closed {
		return
	}
	for _, place := range d.places {
		d.src.disks.setAll(place, all)
	}
}

// Close ends the tracking and frees the memory. No Lookup may be under way or follow.
func (d *Device) Close() error {
	d.src.mu.Lock()
	defer d.src.mu.Unlock()
	return d.release()
}

// release is Close under the source's lock.
func (d *Device) release() error {
	if d.closed {
		return nil
	}
	d.closed = true
	var errs []error
	for i, place := range d.places {
		// The tables of a closed source are gone, and with them the entries.
		if !d.src.mu.closed {
			d.src.disks.remove(place)
			errs = append(errs, d.src.queues.Delete(uint32(place)))
		}
		errs = append(errs, unix.Munmap(d.slots[i]))
	}
	return errors.Join(errs...)
}

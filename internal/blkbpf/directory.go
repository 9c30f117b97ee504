package blkbpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A directory is a hash table in memory that the program looks into and this process writes: it says at which place of
// the table of queues the slots of a queue are. The kernel's own tables hash their keys with more care than a few
// names need, which would be a third of the program's work.
//
// An entry lies at the place that its key has by key.home, or at one of the next ones, without an empty place before it.
const (
	directoryBits  = 12
	directoryTries = 16 // how far from its home an entry may be
	directorySize  = 1<<directoryBits + directoryTries - 1

	// An entry: the disk's name in two words, padded with zeroes, the number of the queue, and whether all its
	// requests are to be written down.
	entryBytes = 32
	entryName  = 0
	entryRest  = 8
	entryQueue = 16
	entryAll   = 24
	// Instead of a name: no entry has been here since the places before it were taken, or one has.
	emptyName   = 0
	removedName = ^uint64(0)

	// For key.home: odd numbers.
	homeFactor = 0x3c6ef35f
	homeShift  = 32 - directoryBits
	queueStep  = 1021

	keyNameBytes = 16
)

// key tells queues apart.
type key struct{ name, rest, queue uint64 }

func keyOf(disk string, queue int) key {
	var b [keyNameBytes]byte
	copy(b[:], disk)
	return key{binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:]), uint64(queue)}
}

// home is where a key's entry is, if nothing else is there. The queues of a disk have homes far apart, so that those of
// another one find room between them. The program computes the same.
func (k key) home() int {
	h := k.name ^ k.rest*homeFactor
	h ^= h >> 32
	return int((uint64(uint32(h)*homeFactor>>homeShift) + k.queue*queueStep) % (1 << directoryBits))
}

// directory belongs to a source, under its lock.
type directory struct {
	m   *ebpf.Map
	mem []byte
	n   int // entries
}

type entry struct{ name, rest, queue, all uint64 }

func newDirectory() (d directory, err error) {
	d.m, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "ubcache_disks", Type: ebpf.Array, KeySize: 4, ValueSize: directorySize * entryBytes, MaxEntries: 1,
		Flags: unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return d, fmt.Errorf("make a map: %w", err)
	}
	d.mem, err = unix.Mmap(d.m.FD(), 0, directorySize*entryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return d, errors.Join(fmt.Errorf("map the directory: %w", err), d.m.Close())
	}
	return d, nil
}

func (d *directory) close() error {
	if d.mem == nil {
		return nil
	}
	err := errors.Join(unix.Munmap(d.mem), d.m.Close())
	d.mem = nil
	return err
}

func (d *directory) at(place int) *entry {
	return (*entry)(unsafe.Pointer(&d.mem[place*entryBytes : (place+1)*entryBytes][0]))
}

// find is the place of a key; -1 if it is not there. free is a place where it may be put, -1 if there is none.
func (d *directory) find(k key) (place, free int) {
	free = -1
	for place = k.home(); place < k.home()+directoryTries; place++ {
		e := d.at(place)
		if free < 0 && (e.name == emptyName || e.name == removedName) {
			free = place
		}
		if e.name == emptyName {
			break
		}
		if e.name == k.name && e.rest == k.rest && e.queue == k.queue {
			return place, free
		}
	}
	return -1, free
}

// put makes a free place that of a key. The program sees it when it is whole.
func (d *directory) put(place int, k key) {
	e := d.at(place)
	e.rest, e.queue, e.all = k.rest, k.queue, 0
	atomic.StoreUint64(&e.name, k.name)
	d.n++
}

// setAll says whether all requests of the queue at a place are to be written down.
func (d *directory) setAll(place int, all bool) {
	var v uint64
	if all {
		v = 1
	}
	atomic.StoreUint64(&d.at(place).all, v)
}

// remove frees a place. Nothing behind it may get lost for those who look for it from their home on.
func (d *directory) remove(place int) {
	d.n--
	atomic.StoreUint64(&d.at(place).name, removedName)
	if place+1 < directorySize && d.at(place+1).name != emptyName {
		return
	}
	for ; place >= 0 && d.at(place).name == removedName; place-- {
		atomic.StoreUint64(&d.at(place).name, emptyName)
	}
}

package cache

import (
	"sync"
	"sync/atomic"
)

// key names a block of a backing device: backing 12 bits, block 36 bits.
type key uint64

func makeKey(b BackingID, blk Block) key { return key(b)<<36 | key(blk) }

func (k key) backing() BackingID { return BackingID(k >> 36) }
func (k key) block() Block       { return Block(k & maxBlock) }

// state is the low 16 bits of an entry's first word.
type state uint16

const (
	stMask    state = 0xff    // which sectors of the slot are valid
	stDirty   state = 1 << 8  // the backing device does not have it
	stPending state = 1 << 9  // the backing device has it, but was not flushed since; stDirty is set too
	stBad     state = 1 << 10 // dirty, and the SSD cannot return it
	stRefOne  state = 1 << 11 // hits since the policy looked, 0 to 3
	stRefMax  state = 3 << 11
	stPinned  state = 1 << 13 // eviction keeps it
	stLeave   state = 1 << 14 // dirty, and leaves the cache as soon as it is clean; stays without the SSD, see leaveBare
	stQueued  state = 1 << 15 // the order of its device says when it is written back

	// stStored is what summaries keep.
	stStored = stMask | stDirty | stBad | stPinned
)

// onBacking reports whether the backing device has what the entry has.
func (s state) onBacking() bool { return s&(stDirty|stPending) != stDirty }

func (s state) full() bool { return s&stMask == fullMask }

// stShadow is the state of a slot with a version that the index does not know any more, but that the
// order of its device has to write back first. To whoever looks at slots it is dirty.
const stShadow = stDirty | stPending | stQueued

func (s state) shadow() bool { return s&stShadow == stShadow }

// index maps blocks to slots. An entry belongs to a slot, so the table also says what a slot
// holds. Entries are 16 bytes off the Go heap and chained through their slot numbers:
//
//	word 0: key 48 bits | state 16 bits; 0 if the slot holds nothing
//	word 1: checksum 32 bits | slot of the next entry of the chain 32 bits
//
// Chains are divided among stripes by region, and a stripe's lock guards its chains and the
// entries on them. It is never held across I/O. Word 0 is written under the lock of the key's
// stripe and may be read without.
type index struct {
	words   []uint64
	heads   []uint32 // per chain: slot+1, or 0
	perPart uint32   // chains per stripe
	stripes []stripe
	owners  []uint32 // four slots each: a tenant's row, see tenants; 0 for nobody
	mem     [3][]byte
}

type stripe struct {
	mu sync.Mutex
	// Guarded by mu: the range locks of the stripe's regions, and the newest record that took a
	// block of them out of the cache.
	locks     *rangeLock
	lastUnmap LSN
	_         [32]byte // own cache line
}

func newIndex(slots int64) (*index, error) {
	x := &index{}
	parts := int64(16)
	for parts < 1024 && slots/parts > 16<<10 {
		parts *= 2
	}
	x.perPart = uint32((slots + parts - 1) / parts)
	x.stripes = make([]stripe, parts)
	var err error
	if x.mem[0], err = offHeap(slots * 16); err != nil {
		return nil, err
	}
	if x.mem[1], err = offHeap(int64(x.perPart) * parts * 4); err != nil {
		freeOffHeap(x.mem[0])
		return nil, err
	}
	if x.mem[2], err = offHeap(slots); err != nil {
		freeOffHeap(x.mem[0])
		freeOffHeap(x.mem[1])
		return nil, err
	}
	hugePages(x.mem[0])
	hugePages(x.mem[1])
	x.words, x.heads, x.owners = wordsOf(x.mem[0]), halvesOf(x.mem[1]), halvesOf(x.mem[2])
	return x, nil
}

func (x *index) free() {
	x.words, x.heads, x.owners = nil, nil, nil
	for _, m := range x.mem {
		freeOffHeap(m)
	}
	x.mem = [3][]byte{}
}

func mix(v uint64) uint64 {
	v *= 0x9e3779b97f4a7c15
	v ^= v >> 32
	v *= 0xd6e8feb86659fd93
	return v ^ v>>32
}

// stripeOf is the stripe that guards the block and its region.
func (x *index) stripeOf(b BackingID, blk Block) *stripe {
	return &x.stripes[x.partOf(makeKey(b, blk))]
}

func (x *index) partOf(k key) uint64 {
	return mix(uint64(k>>regionShift)) & uint64(len(x.stripes)-1)
}

// head is the chain of a key: within the part of its stripe, by the whole key.
func (x *index) head(k key) *uint32 {
	in := mix(uint64(k)) >> 32 * uint64(x.perPart) >> 32
	return &x.heads[x.partOf(k)*uint64(x.perPart)+in]
}

// entry is a copy of an index entry.
type entry struct {
	slot  Slot
	st    state
	owner uint8 // of an entry to insert: the tenant's row; find leaves it out
	sum   uint32
}

// find looks a block up. The stripe is locked by the caller, as for all below.
func (x *index) find(k key) (e entry, ok bool) {
	for at := *x.head(k); at != 0; {
		i := 2 * uint64(at-1)
		w0, w1 := x.words[i], x.words[i+1]
		if key(w0>>16) == k {
			return entry{slot: Slot(at - 1), st: state(w0), sum: uint32(w1 >> 32)}, true
		}
		at = uint32(w1)
	}
	return entry{slot: noSlot}, false
}

// fetch brings what find needs for the keys into the CPU's caches, all at the same time: one by one
// each would wait for memory twice. It returns what it read, so that it is not left out. No lock is
// needed: what it reads does not matter.
//
//go:norace
func (x *index) fetch(keys []key) (sum uint64) {
	var heads [summarySlots]uint32
	for i, k := range keys {
		heads[i] = *x.head(k)
	}
	for _, at := range heads[:len(keys)] {
		if at != 0 {
			sum += x.words[2*uint64(at-1)]
		}
	}
	return sum
}

// insert puts a block that find does not find into the slot.
func (x *index) insert(k key, e entry) {
	h := x.head(k)
	i := 2 * uint64(e.slot)
	if x.words[i] != 0 {
		panic("cache: slot is in use")
	}
	x.words[i+1] = uint64(e.sum)<<32 | uint64(*h)
	atomic.StoreUint64(&x.words[i], uint64(k)<<16|uint64(e.st))
	*h = uint32(e.slot) + 1
}

// remove takes the entry of a slot away.
func (x *index) remove(k key, s Slot) {
	x.unlink(k, s)
	x.clear(s)
}

// clear makes a slot that is on no chain hold nothing.
func (x *index) clear(s Slot) { atomic.StoreUint64(&x.words[2*uint64(s)], 0) }

// fill makes a slot that is on no chain hold a version of a block.
func (x *index) fill(s Slot, k key, sum uint32, st state) {
	x.words[2*uint64(s)+1] = uint64(sum) << 32
	atomic.StoreUint64(&x.words[2*uint64(s)], uint64(k)<<16|uint64(st))
}

// unlink takes the entry of a slot out of its chain, but leaves what the slot holds.
func (x *index) unlink(k key, s Slot) {
	me := uint32(s) + 1
	gone := 2*uint64(s) + 1
	next := uint32(x.words[gone])
	h := x.head(k)
	if *h == me {
		*h = next
	} else {
		at := *h
		for uint32(x.words[2*uint64(at-1)+1]) != me { // at 0 is a broken chain and panics
			at = uint32(x.words[2*uint64(at-1)+1])
		}
		link := &x.words[2*uint64(at-1)+1]
		*link = *link&^(1<<32-1) | uint64(next)
	}
}

// setState replaces the state of an entry.
func (x *index) setState(s Slot, st state) {
	w := &x.words[2*uint64(s)]
	atomic.StoreUint64(w, *w&^0xffff|uint64(st))
}

// at is what a slot holds now; without the stripe's lock it may change at once.
func (x *index) at(s Slot) (key, state) {
	w := atomic.LoadUint64(&x.words[2*uint64(s)])
	return key(w >> 16), state(w)
}

// sumAt is the checksum of the slot's entry. The stripe is locked.
func (x *index) sumAt(s Slot) uint32 { return uint32(x.words[2*uint64(s)+1] >> 32) }

// ownerOf is the tenant's row of a slot's block; without the stripe's lock it may change at once.
func (x *index) ownerOf(s Slot) uint8 {
	return uint8(atomic.LoadUint32(&x.owners[s/4]) >> (s % 4 * 8))
}

// setOwner is for slots without an owner, or with 0 to take it away. The page of a slot that never
// had an owner stays untouched.
func (x *index) setOwner(s Slot, row uint8) {
	w, shift := &x.owners[s/4], s%4*8
	if row == 0 {
		atomic.AndUint32(w, ^(uint32(0xff) << shift))
		return
	}
	atomic.OrUint32(w, uint32(row)<<shift)
}

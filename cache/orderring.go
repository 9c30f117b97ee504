package cache

// queued is a version of a block that an ordered device has to write back in its turn.
type queued struct {
	k    key
	mask uint8 // valid sectors
	end  bool  // the batch ends with it
	slot Slot
	sum  uint32
	lsn  LSN   // of its map record
	at   int64 // Driver.Now of its insertion, 0 if an earlier process made it
}

// orderRing is a queue of versions, the oldest first: 32 bytes each, off the Go heap.
//
//	word 0: key 48 bits | mask 8 bits | flags 8 bits
//	word 1: LSN
//	word 2: checksum 32 bits | slot 32 bits
//	word 3: time
type orderRing struct {
	mem        []byte
	words      []uint64
	size       uint64 // places, a power of two
	head, tail uint64 // count what was taken and what was put in
}

const (
	queuedBytes = 32
	queuedWords = queuedBytes / 8
	queuedEnd   = 1 << 0
)

func (q *orderRing) len() int64 { return int64(q.tail - q.head) }

// put adds a version; the ring grows if it has to.
func (q *orderRing) put(v queued) {
	if q.tail-q.head == q.size {
		q.grow(max(2*q.size, pageSize/queuedBytes))
	}
	w := q.place(q.tail)
	w[0] = uint64(v.k)<<16 | uint64(v.mask)<<8
	if v.end {
		w[0] |= queuedEnd
	}
	w[1], w[2], w[3] = uint64(v.lsn), uint64(v.sum)<<32|uint64(v.slot), uint64(v.at)
	q.tail++
}

func (q *orderRing) place(i uint64) []uint64 {
	at := i & (q.size - 1) * queuedWords
	return q.words[at : at+queuedWords : at+queuedWords]
}

// at is version i, counted as head and tail count.
func (q *orderRing) at(i uint64) queued {
	w := q.place(i)
	return queued{
		k: key(w[0] >> 16), mask: uint8(w[0] >> 8), end: w[0]&queuedEnd != 0, slot: Slot(w[2]),
		sum: uint32(w[2] >> 32), lsn: LSN(w[1]), at: int64(w[3]),
	}
}

// lsn is the LSN of version i.
func (q *orderRing) lsn(i uint64) LSN { return LSN(q.place(i)[1]) }

// endAt makes a batch end with version i.
func (q *orderRing) endAt(i uint64) { q.place(i)[0] |= queuedEnd }

// grow makes room for at least n versions.
func (q *orderRing) grow(n uint64) {
	if err := q.reserve(n); err != nil {
		panic(err) // out of address space: the daemon restarts through recovery
	}
}

// reserve is grow where there may be no memory.
func (q *orderRing) reserve(n uint64) error {
	size := max(q.size, 1)
	for size < n {
		size *= 2
	}
	if size == q.size {
		return nil
	}
	mem, err := offHeap(int64(size) * queuedBytes)
	if err != nil {
		return err
	}
	bigger := orderRing{mem: mem, words: wordsOf(mem), size: size, head: q.head, tail: q.tail}
	for i := q.head; i != q.tail; i++ {
		copy(bigger.place(i), q.place(i))
	}
	freeOffHeap(q.mem)
	*q = bigger
	return nil
}

// free gives the memory back; the ring is empty then.
func (q *orderRing) free() {
	freeOffHeap(q.mem)
	*q = orderRing{head: q.tail, tail: q.tail}
}

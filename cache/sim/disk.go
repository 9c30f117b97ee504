package sim

import (
	"math/rand/v2"
	"sync"

	"ubcache/cache"
)

const (
	sectorSize = cache.SectorSize
	pageBytes  = 4096
)

// What is known of a sector besides its content.
const (
	markUnreadable = 1 << iota // reads fail until it is written
	markWrong                  // it is not what was written there
	markDoubted                // a read of it has failed, or was wrong
	markAllocated              // it takes space
)

// diskWrite is a write in the volatile cache.
type diskWrite struct {
	off  int64
	data []byte
	seq  uint32
}

// Disk is a simulated device. It is a cache.Storage for the control path, whose writes are
// volatile until Sync, too.
type Disk struct {
	size int64
	now  []byte // what reads return
	// saved has the durable content of sectors that have volatile versions: savedAt is its place
	// there and 1, by sector, and savedOf lists the sectors.
	saved   arena
	savedAt []int32
	savedOf []int32
	// volatile is in the order of completion; fua is the number of the newest durable write of a
	// sector, which volatile ones before it no longer change.
	volatile []diskWrite
	data     arena
	fua      []uint32
	seq      uint32
	base     int  // writes that left volatile, so that base+len(volatile) counts all
	given    bool // up: a flush has failed, and what it was to cover reads as written until the power goes
	marks    []uint8
	full     bool
	dead     bool  // all operations fail
	stalled  int64 // none ends before then
	gone     error // what all operations answer while it is away, nil if it is there
	forgets  bool  // it loses what it was not flushed for before it is there again
	forgot   bool  // it has, and the engine does not know yet
	// hook, if set, decides whether an operation of the control path fails.
	hook func(kind cache.OpKind, off, n int64) error
	// Writes counts completed writes, Flushes completed flushes.
	Writes, Flushes int
}

// arena is memory that is given back as a whole, and then used again.
type arena struct {
	chunks [][]byte
	used   int // of the last of them that is in use
	n      int // chunks in use
}

const chunkBytes = 256 << 10

func (a *arena) take(n int) []byte {
	if n > chunkBytes {
		return make([]byte, n)
	}
	if a.n == 0 || a.used+n > chunkBytes {
		if a.n == len(a.chunks) {
			a.chunks = append(a.chunks, make([]byte, chunkBytes))
		}
		a.n, a.used = a.n+1, 0
	}
	at := a.used
	a.used += n
	return a.chunks[a.n-1][at : at+n : at+n]
}

func (a *arena) reset() { a.n, a.used = 0, 0 }

// NewDisk returns a zeroed device of that size in bytes.
func NewDisk(size int64) *Disk {
	d, _ := disks.Get().(*Disk)
	if d == nil || int64(cap(d.now)) < size {
		n := max(size, 5<<20)
		d = &Disk{
			now: make([]byte, n), savedAt: make([]int32, n/sectorSize),
			fua: make([]uint32, n/sectorSize), marks: make([]uint8, n/sectorSize),
		}
	}
	n := (size + sectorSize - 1) / sectorSize
	d.size, d.now = size, d.now[:size]
	d.savedAt, d.fua, d.marks = d.savedAt[:n], d.fua[:n], d.marks[:n]
	return d
}

// disks are zeroed devices for other histories.
var disks sync.Pool

// recycle gives the device's memory to other histories.
func (d *Disk) recycle() {
	clear(d.now)
	clear(d.savedAt)
	clear(d.fua)
	clear(d.marks)
	d.saved.reset()
	d.data.reset()
	*d = Disk{
		now: d.now, savedAt: d.savedAt, fua: d.fua, marks: d.marks, saved: d.saved, data: d.data,
		savedOf: d.savedOf[:0], volatile: d.volatile[:0],
	}
	disks.Put(d)
}

// Size implements cache.Storage.
func (d *Disk) Size() int64 { return d.size }

// ReadAt implements cache.Storage.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if d.hook != nil {
		if err := d.hook(cache.OpRead, off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	if d.marked(off, int64(len(p)), markUnreadable) {
		return 0, errMedium
	}
	return copy(p, d.now[off:]), nil
}

// WriteAt implements cache.Storage.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if d.hook != nil {
		if err := d.hook(cache.OpWrite, off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	d.write(p, off)
	return len(p), nil
}

// Sync implements cache.Storage.
func (d *Disk) Sync() error {
	if d.hook != nil {
		if err := d.hook(cache.OpFlush, 0, 0); err != nil {
			return err
		}
	}
	d.flush(d.mark0())
	return nil
}

// zeroSectors is memory of zeroes that nobody writes to.
func zeroSectors(n int64) []byte {
	if n <= int64(len(zeroes)) {
		return zeroes[:n]
	}
	return make([]byte, n)
}

var zeroes [1 << 20]byte

func (d *Disk) marked(off, n int64, mark uint8) bool {
	for i := off / sectorSize; i < (off+n+sectorSize-1)/sectorSize; i++ {
		if d.marks[i]&mark != 0 {
			return true
		}
	}
	return false
}

func (d *Disk) mark(off, n int64, mark uint8) {
	for i := off / sectorSize; i < (off+n)/sectorSize; i++ {
		d.marks[i] |= mark
	}
}

// doubt marks the sectors that a read has not returned right, as far as they are why.
func (d *Disk) doubt(off, n int64) {
	for i := off / sectorSize; i < (off+n)/sectorSize; i++ {
		if d.marks[i]&(markUnreadable|markWrong) != 0 {
			d.marks[i] |= markDoubted
		}
	}
}

// unmark takes all of those marks off the device.
func (d *Disk) unmark(mark uint8) {
	for i := range d.marks {
		d.marks[i] &^= mark
	}
}

// allocated reports whether the whole range takes space already.
func (d *Disk) allocated(off, n int64) bool {
	for i := off / sectorSize; i < (off+n)/sectorSize; i++ {
		if d.marks[i]&markAllocated == 0 {
			return false
		}
	}
	return true
}

// put changes what reads return.
func (d *Disk) put(p []byte, off int64) {
	if off < 0 || off+int64(len(p)) > d.size || off%sectorSize != 0 || len(p)%sectorSize != 0 {
		panic("sim: write outside the device or unaligned")
	}
	d.Writes++
	d.seq++
	copy(d.now[off:], p)
	for i := off / sectorSize; i < (off+int64(len(p)))/sectorSize; i++ {
		d.marks[i] = markAllocated
	}
}

func (d *Disk) write(p []byte, off int64) {
	for i := int64(0); i < int64(len(p)); i += sectorSize {
		if n := (off + i) / sectorSize; d.savedAt[n] == 0 {
			copy(d.saved.take(sectorSize), d.now[off+i:])
			d.savedOf = append(d.savedOf, int32(n))
			d.savedAt[n] = int32(len(d.savedOf))
		}
	}
	d.put(p, off)
	q := d.data.take(len(p))
	copy(q, p)
	d.volatile = append(d.volatile, diskWrite{off: off, data: q, seq: d.seq})
}

// discard makes the range read as zeroes and take no space.
func (d *Disk) discard(off, n int64) {
	d.write(zeroSectors(n), off)
	for i := off / sectorSize; i < (off+n)/sectorSize; i++ {
		d.marks[i] &^= markAllocated
	}
}

// savedData is the durable content of the sector at that place of savedAt.
func (d *Disk) savedData(at int32) []byte {
	const per = chunkBytes / sectorSize
	i := int(at - 1)
	return d.saved.chunks[i/per][i%per*sectorSize:][:sectorSize]
}

// writeFUA is a write that is durable at once.
func (d *Disk) writeFUA(p []byte, off int64) {
	d.put(p, off)
	for i := int64(0); i < int64(len(p)); i += sectorSize {
		n := (off + i) / sectorSize
		d.fua[n] = d.seq
		if at := d.savedAt[n]; at != 0 {
			copy(d.savedData(at), p[i:])
		}
	}
}

// mark0 is what a flush submitted now covers.
func (d *Disk) mark0() int { return d.base + len(d.volatile) }

// flush makes durable what had completed at the mark.
func (d *Disk) flush(mark int) {
	d.Flushes++
	n := max(0, mark-d.base)
	d.base += n
	if n == len(d.volatile) && !d.given {
		d.settled()
		return
	}
	for i := range n {
		w := &d.volatile[i]
		for j := int64(0); j < int64(len(w.data)); j += sectorSize {
			if s := (w.off + j) / sectorSize; d.fua[s] < w.seq {
				copy(d.savedData(d.savedAt[s]), w.data[j:])
			}
		}
	}
	d.volatile = append(d.volatile[:0], d.volatile[n:]...)
}

// flushFails gives up what a flush was to cover: no later one makes it durable, only another write of it. It can
// be read until the power goes, as what Linux has in its page cache, or a drive in its own.
func (d *Disk) flushFails(mark int) {
	if n := max(0, mark-d.base); n > 0 {
		d.base += n
		d.volatile = append(d.volatile[:0], d.volatile[n:]...)
		d.given = true
	}
}

// settled forgets the volatile cache: what reads return is durable.
func (d *Disk) settled() {
	for _, s := range d.savedOf {
		d.savedAt[s] = 0
	}
	d.savedOf, d.volatile, d.given = d.savedOf[:0], d.volatile[:0], false
	d.saved.reset()
	d.data.reset()
}

// powerCut loses what is not durable, but for a random part. inFlight are writes that had not
// completed.
func (d *Disk) powerCut(rng *rand.Rand, inFlight []diskWrite) {
	for _, s := range d.savedOf {
		copy(d.now[int64(s)*sectorSize:], d.savedData(d.savedAt[s]))
	}
	keep := rng.IntN(4) // nearly nothing, half, nearly all; or each sector for itself
	for i := range d.volatile {
		switch x := rng.IntN(10); {
		case keep == 3:
			d.survive(&d.volatile[i], rng)
		case x < 1+4*keep:
			d.survive(&d.volatile[i], nil)
		case x == 9:
			d.survive(&d.volatile[i], rng) // torn
		}
	}
	for i := range inFlight {
		switch x := rng.IntN(3); {
		case x == 1 || keep == 3:
			d.survive(&inFlight[i], rng)
		case x == 0:
			d.survive(&inFlight[i], nil)
		}
	}
	d.base += len(d.volatile)
	d.settled()
}

// survive makes a write outlive a power cut, or with rng some of its sectors or pages.
func (d *Disk) survive(w *diskWrite, rng *rand.Rand) {
	unit, lost := int64(sectorSize), false
	if rng != nil && rng.IntN(2) == 0 {
		unit = pageBytes
	}
	for i := int64(0); i < int64(len(w.data)); i += sectorSize {
		if rng != nil && i%unit == 0 {
			lost = rng.IntN(2) == 0
		}
		n := (w.off + i) / sectorSize
		if w.seq != 0 && d.fua[n] >= w.seq || lost {
			continue
		}
		copy(d.now[w.off+i:], w.data[i:i+sectorSize])
		if w.seq == 0 { // in flight
			d.marks[n] = markAllocated
		}
	}
}

// Package sim runs the cache engine on simulated devices. One seed decides everything: options,
// requests, the order in which operations complete, crashes and what they leave. What clients see
// is compared with a model that knows, for every sector, which contents are legal.
//
// Fault model, per device:
//   - operations complete in any order, any time after they were submitted;
//   - a completed write is in the device's volatile cache; a flush makes durable what had
//     completed when the flush was submitted, a FUA write is durable when it completes;
//   - a power cut keeps any subset, sector by sector, of the writes that are not durable,
//     in flight ones included; every sector has some version between the durable and the newest;
//   - a killed daemon loses its memory and the operations in flight may still happen, or not;
//     the device keeps its volatile cache, and the pending ring survives.
package sim

import (
	"math/rand/v2"

	"ubcache/cache"
)

const (
	sectorSize = cache.SectorSize
	pageBytes  = 4096
)

// store is sparse memory in pages; what was never written reads as zero.
type store map[int64]*[pageBytes]byte

func (s store) read(p []byte, off int64) {
	for len(p) > 0 {
		at := off % pageBytes
		n := min(int64(len(p)), pageBytes-at)
		if pg := s[off/pageBytes]; pg != nil {
			copy(p[:n], pg[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

func (s store) write(p []byte, off int64) {
	for len(p) > 0 {
		at := off % pageBytes
		n := min(int64(len(p)), pageBytes-at)
		pg := s[off/pageBytes]
		if pg == nil {
			pg = new([pageBytes]byte)
			s[off/pageBytes] = pg
		}
		copy(pg[at:], p[:n])
		p, off = p[n:], off+n
	}
}

// diskWrite is a write in the volatile cache. lost has the sectors that a later durable write has
// replaced.
type diskWrite struct {
	off  int64
	data []byte
	lost map[int64]bool
}

// Disk is a simulated device. It is a cache.Storage for the control path, whose writes are
// volatile until Sync, too.
type Disk struct {
	size     int64
	now      store // what reads return
	durable  store
	volatile []diskWrite
	base     int   // writes that left volatile, so that base+len(volatile) counts all
	gone     error // what the control path gets of a device that has vanished
	// Writes counts completed writes, Flushes completed flushes.
	Writes, Flushes int
}

// NewDisk returns a zeroed device of that size in bytes.
func NewDisk(size int64) *Disk {
	return &Disk{size: size, now: store{}, durable: store{}}
}

// Size implements cache.Storage.
func (d *Disk) Size() int64 { return d.size }

// ReadAt implements cache.Storage.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if d.gone != nil {
		return 0, d.gone
	}
	d.now.read(p, off)
	return len(p), nil
}

// WriteAt implements cache.Storage.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if d.gone != nil {
		return 0, d.gone
	}
	d.write(p, off)
	return len(p), nil
}

// Sync implements cache.Storage.
func (d *Disk) Sync() error {
	if d.gone != nil {
		return d.gone
	}
	d.flush(d.mark())
	return nil
}

func (d *Disk) write(p []byte, off int64) {
	if off < 0 || off+int64(len(p)) > d.size || off%sectorSize != 0 || len(p)%sectorSize != 0 {
		panic("sim: write outside the device or unaligned")
	}
	d.Writes++
	d.now.write(p, off)
	d.volatile = append(d.volatile, diskWrite{off: off, data: append([]byte(nil), p...)})
}

// writeFUA is a write that is durable at once.
func (d *Disk) writeFUA(p []byte, off int64) {
	d.Writes++
	d.now.write(p, off)
	d.durable.write(p, off)
	for i := range d.volatile {
		w := &d.volatile[i]
		lo, hi := max(off, w.off), min(off+int64(len(p)), w.off+int64(len(w.data)))
		for at := lo; at < hi; at += sectorSize {
			if w.lost == nil {
				w.lost = map[int64]bool{}
			}
			w.lost[at] = true
		}
	}
}

// mark is what a flush submitted now covers.
func (d *Disk) mark() int { return d.base + len(d.volatile) }

// flush makes durable what had completed at the mark.
func (d *Disk) flush(mark int) {
	d.Flushes++
	n := max(0, mark-d.base)
	for i := range n {
		d.apply(&d.volatile[i], nil)
	}
	d.volatile = append([]diskWrite(nil), d.volatile[n:]...)
	d.base += n
}

// apply makes a volatile write durable, or with rng some of its sectors.
func (d *Disk) apply(w *diskWrite, rng *rand.Rand) {
	for i := int64(0); i < int64(len(w.data)); i += sectorSize {
		if w.lost[w.off+i] || (rng != nil && rng.IntN(2) == 0) {
			continue
		}
		d.durable.write(w.data[i:i+sectorSize], w.off+i)
	}
}

// powerCut loses what is not durable, but for a random part. inFlight are writes that had not
// completed.
func (d *Disk) powerCut(rng *rand.Rand, inFlight []diskWrite) {
	keep := rng.IntN(3) // nearly nothing, half, nearly all
	for _, set := range [][]diskWrite{d.volatile, inFlight} {
		for i := range set {
			switch x := rng.IntN(10); {
			case x < 1+4*keep:
				d.apply(&set[i], nil)
			case x == 9:
				d.apply(&set[i], rng) // torn
			}
		}
	}
	d.base += len(d.volatile)
	d.volatile = nil
	d.now = store{}
	for i, p := range d.durable {
		q := *p
		d.now[i] = &q
	}
}

package daemon

import (
	"unsafe"

	"ubcache/cache"
	"ubcache/internal/uring"
)

// A round of the loop often has many small writes for the SSD, and as the engine gives slots away
// in order, they lie side by side there. The driver holds them back until the round's end and sends
// each run as one vectored write: the block layer and the SSD then handle one request, not sixteen.
// Writes from pages of a ublk request cannot be gathered, a submission takes one such buffer only.

const (
	gatherOps   = 32      // of one run
	gatherBytes = 1 << 20 // of one run
	// gatherData marks the user data of a run; below it is the run's number.
	gatherData = 1 << 40
)

// gather is a run of writes.
type gather struct {
	ops [gatherOps]*cache.Op
	n   int
	off int64 // where it begins on the device
	end int64
	iov []uring.Iovec
}

// gathers are a driver's runs.
type gathers struct {
	all  []*gather
	free []int32
	open int32 // the run that grows, or noFlight
	mem  []*uring.Arena
}

// hold takes a write into the open run, or reports that it cannot be part of one.
func (d *driver) hold(op *cache.Op) bool {
	if op.Kind != cache.OpWrite || op.Dev != cache.SSD || op.Mem == nil || op.FUA ||
		op.Len > gatherBytes/4 {
		return false
	}
	g := &d.gathers
	if g.open != noFlight {
		if r := g.all[g.open]; r.n < gatherOps && r.end == op.Off &&
			r.end+op.Len-r.off <= gatherBytes {
			r.add(op)
			return true
		}
		d.sendHeld()
	}
	if !g.take() {
		return false
	}
	r := g.all[g.open]
	r.n, r.off, r.end = 0, op.Off, op.Off
	r.add(op)
	return true
}

func (r *gather) add(op *cache.Op) {
	r.ops[r.n] = op
	r.iov[r.n] = uring.Iovec{Base: uring.Addr(op.Mem), Len: uint64(op.Len)}
	r.n++
	r.end += op.Len
}

// take opens an unused run; false if there is no memory for another.
func (g *gathers) take() bool {
	if n := len(g.free); n > 0 {
		g.open = g.free[n-1]
		g.free = g.free[:n-1]
		return true
	}
	const size = gatherOps * int(unsafe.Sizeof(uring.Iovec{}))
	const batch = 4096 / size
	m, err := uring.NewArena(batch * size)
	if err != nil {
		return false
	}
	g.mem = append(g.mem, m)
	for i := range batch {
		b := m.Slice(i*size, size)
		g.free = append(g.free, int32(len(g.all)))
		g.all = append(g.all, &gather{
			iov: unsafe.Slice((*uring.Iovec)(unsafe.Pointer(unsafe.SliceData(b))), gatherOps),
		})
	}
	return g.take()
}

// sendHeld submits the open run. It is called before each enter of the ring.
func (d *driver) sendHeld() {
	g := &d.gathers
	if g.open == noFlight {
		return
	}
	i, r := g.open, g.all[g.open]
	g.open = noFlight
	if r.n == 1 {
		d.start(r.ops[0], 0)
		g.release(i)
		return
	}
	s := d.port.NewSQE(gatherData | uint64(i))
	s.PrepWritev(d.files[cache.SSD].file, r.iov[:r.n], uint64(r.off), 0)
}

func (g *gathers) release(i int32) {
	r := g.all[i]
	clear(r.ops[:r.n])
	r.n = 0
	g.free = append(g.free, i)
}

// gathered takes the result of a run. What was not written goes on alone, so that a failure is that
// of the operation that met it.
func (d *driver) gathered(i int32, res int32) {
	r := d.gathers.all[i]
	done := int64(max(res, 0))
	for _, op := range r.ops[:r.n] {
		n := min(done, op.Len)
		done -= n
		if n == op.Len {
			d.lane.Complete(op, nil)
			continue
		}
		d.start(op, n)
	}
	d.gathers.release(i)
}

// close gives the memory back. Nothing may be in flight.
func (g *gathers) close() {
	for _, m := range g.mem {
		_ = m.Free()
	}
	g.mem, g.all, g.free = nil, nil, nil
}

package sim

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"ubcache/cache"
)

// orderModel says which contents a backing device may have at any time if it is ordered. What is
// looked at is what a disk would show if the SSD were lost now, and with a power cut of the disk
// besides.
//
// Such an image shows one version of each sector. It is legal if nothing is missing that a flush
// promised to whatever it shows: if it shows a write that was issued after a flush F had been
// acknowledged, then of each sector it shows no version older than one that had been acknowledged
// when F was issued. That is: all batches up to some n, and any part of batch n+1.
type orderModel struct {
	clock   uint64
	writes  map[uint64]*orderWrite // by version number
	sectors [][]*orderWrite        // what was written to each
	flushes []orderFlush           // acknowledged, in the order of that
	again   []*orderWrite          // what is there though it may have been lost: of one sector each
}

type orderWrite struct {
	version
	issued uint64
	ended  uint64 // 0 while it is in flight
	acked  uint64 // 0 if it was not, or has perhaps been lost: then it makes nothing else old
	fua    bool
	stays  bool // no power cut takes it
}

type orderFlush struct {
	issued, acked uint64
	fua           bool // of a write, which ends a batch, but is not a flush if the device is not ordered
}

func newOrderModel(sectors int) *orderModel {
	o := &orderModel{writes: map[uint64]*orderWrite{}, sectors: make([][]*orderWrite, sectors)}
	for i := range o.sectors {
		o.sectors[i] = []*orderWrite{{}} // what was there at first
	}
	return o
}

func (o *orderModel) write(v version, first, n int) {
	if o == nil {
		return
	}
	o.clock++
	w := &orderWrite{version: v, issued: o.clock}
	o.writes[v.number] = w
	for i := first; i < first+n; i++ {
		o.sectors[i] = append(o.sectors[i], w)
	}
}

// done notes an acknowledgement; maybe says that the write may have had no effect.
func (o *orderModel) done(v version, maybe, fua bool) {
	if o == nil {
		return
	}
	o.clock++
	w := o.writes[v.number]
	w.ended = o.clock
	if !maybe {
		w.acked, w.fua = o.clock, fua
	}
	if fua {
		o.flushes = append(o.flushes, orderFlush{w.issued, o.clock, true})
	}
}

// dead notes that a crash ended a write that had not been acknowledged.
func (o *orderModel) dead(v version) {
	if o != nil {
		o.clock++
		o.writes[v.number].ended = o.clock
	}
}

func (o *orderModel) undone(v version) {
	if o == nil {
		return
	}
	w := o.writes[v.number]
	for i := range o.sectors {
		o.sectors[i] = slices.DeleteFunc(o.sectors[i], func(x *orderWrite) bool { return x == w })
	}
}

func (o *orderModel) flush() uint64 {
	if o == nil {
		return 0
	}
	o.clock++
	return o.clock
}

func (o *orderModel) flushDone(issued uint64) {
	if o == nil {
		return
	}
	o.clock++
	o.flushes = append(o.flushes, orderFlush{issued, o.clock, false})
}

// promise is what an image has to show: what had been acknowledged when the newest of those flushes
// was issued that had been acknowledged at some time, and what was written with FUA until then.
type promise struct{ issued, at uint64 }

func (o *orderModel) promised(at uint64) promise {
	p := promise{at: at}
	for _, f := range o.flushes {
		if f.acked < at {
			p.issued = max(p.issued, f.issued)
		}
	}
	return p
}

func (p promise) covers(w *orderWrite) bool {
	return w.acked != 0 && (w.acked <= p.issued || w.fua && w.acked < p.at)
}

// there notes that a sector has that version, though it may have been lost: the next flush promises it. stays says that
// no power cut takes it any more.
func (o *orderModel) there(sector int, v version, stays bool) {
	if o == nil {
		return
	}
	o.clock++
	for i, w := range o.sectors[sector] {
		if w.number == v.number && w.number != 0 {
			n := *w // of the other sectors nobody knows
			n.acked, n.fua, n.stays = o.clock, false, stays
			o.sectors[sector][i], o.again = &n, append(o.again, &n)
		}
	}
}

// powerCut may have taken what no flush has promised.
func (o *orderModel) powerCut() {
	if o == nil {
		return
	}
	o.clock++
	p := promise{at: o.clock}
	for _, f := range o.flushes {
		if !f.fua {
			p.issued = max(p.issued, f.issued)
		}
	}
	for _, w := range o.writes {
		if !p.covers(w) {
			w.acked = 0
		}
	}
	for _, w := range o.again {
		if !p.covers(w) && !w.stays {
			w.acked = 0
		}
	}
}

// old reports whether a newer version than w of its sector was promised.
func (o *orderModel) old(i int, w *orderWrite, p promise) bool {
	for _, n := range o.sectors[i] {
		if p.covers(n) && (w.number == 0 && n.number != 0 ||
			w.ended != 0 && w.ended < n.issued) {
			return true
		}
	}
	return false
}

// check looks at an image. It returns how many blocks of it are older than what was acknowledged.
func (o *orderModel) check(image []byte) (behind int64, err error) {
	sector := func(i int) []byte { return image[i*sectorSize : (i+1)*sectorSize] }
	may := make([][]*orderWrite, 0, len(o.sectors)) // by sector that was ever written
	at := make([]int, 0, len(o.sectors))
	for i, all := range o.sectors {
		if len(all) == 1 {
			continue
		}
		p := sector(i)
		var c []*orderWrite
		for _, w := range all {
			if binary.LittleEndian.Uint64(p) == w.stamp && matches(p, i, w.stamp) {
				c = append(c, w)
			}
		}
		if len(c) == 0 {
			return 0, fmt.Errorf("sector %d has what was never written there", i)
		}
		may, at = append(may, c), append(at, i)
	}
	// The newest that must be shown decides what is promised, and that may rule out more.
	var promised promise
	for again := true; again; {
		again = false
		newest := uint64(0)
		for j, c := range may {
			c = slices.DeleteFunc(c, func(w *orderWrite) bool { return o.old(at[j], w, promised) })
			if may[j] = c; len(c) == 0 {
				return 0, fmt.Errorf("sector %d has version %d, older than what was flushed by clock %d, "+
					"while the image shows something newer than that flush: %d", at[j],
					binary.LittleEndian.Uint64(sector(at[j])), promised.issued, promised.at)
			}
			oldest := c[0].issued
			for _, w := range c {
				oldest = min(oldest, w.issued)
			}
			newest = max(newest, oldest)
		}
		if now := o.promised(newest); now.at > promised.at {
			promised, again = now, true
		}
	}
	last := int64(-1)
	for j, c := range may {
		blk := int64(at[j] / blockSectors)
		if blk != last && !slices.ContainsFunc(c, func(w *orderWrite) bool {
			return !o.old(at[j], w, promise{issued: o.clock})
		}) {
			behind++
			last = blk
		}
	}
	return behind, nil
}

// NewOrderedConfig draws a configuration of a history in which devices are ordered, and the SSD fails nothing that could lose
// what the order needs; in a third of them it fails writes of data, which then go past it, or is full. In another third the backing devices go away often, with what they were
// not flushed for, while data reaches them in every way there is, and the SSD stays.
func NewOrderedConfig(seed uint64) Config {
	c := NewConfig(seed)
	c.Ordered, c.Faults, c.FaultRate = true, 0, 0
	if seed%3 == 1 {
		c.Vanish, c.Gone, c.Flushes = 0, 200, 20
		c.ModeChanges, c.Through, c.Discards = true, false, true
	}
	if faults := rand.New(rand.NewPCG(seed, 7)); faults.IntN(2) == 0 {
		c.fail(faults, ofBackings)
	}
	if seed%3 == 2 {
		c.Faults |= harmless
		c.FaultRate = max(c.FaultRate, 100)
	}
	return c
}

// orders is what the simulator knows of ordered devices.
type orders struct {
	rng   *rand.Rand
	sound []bool // by device: its image is to be consistent from now on
	// broken counts, of the present start, how often the order was given up: then it begins anew.
	broken []int64
	failed uint64 // devices that have failed a change or a flush, for which others may wait
	tuns   []cache.Tunables
}

// orderTunables makes a device ordered, of histories in which devices are.
func (s *Sim) orderTunables(t *cache.Tunables, mode cache.Mode, m *model) cache.Mode {
	if !s.cfg.Ordered {
		return mode
	}
	o := &s.orders
	if o.rng == nil {
		o.rng = rand.New(rand.NewPCG(s.cfg.Seed, 3))
	}
	m.order = newOrderModel(len(m.sectors))
	if o.rng.IntN(4) > 0 {
		mode = cache.Writeback
	}
	t.Ordered = o.rng.IntN(4) > 0
	t.OrderedAge = time.Duration(1+o.rng.IntN(20)) * time.Second
	t.OrderedMax = int64(1+o.rng.IntN(4)) << 20
	o.sound, o.broken, o.tuns = append(o.sound, false), append(o.broken, 0), append(o.tuns, *t)
	return mode
}

// lookAtImages looks at the images now and then, and sometimes switches the order on or off.
func (s *Sim) lookAtImages() {
	o := &s.orders
	if o.rng == nil || s.err != nil || s.c == nil {
		return
	}
	if s.script { // its order is switched by nobody
		if o.rng.IntN(8) == 0 {
			s.lookAtAllImages()
		}
		return
	}
	switch o.rng.IntN(400) {
	case 0, 1, 2, 3, 4:
		s.lookAtAllImages()
	case 5:
		if i := o.rng.IntN(len(o.tuns)); o.rng.IntN(4) == 0 && s.well() && s.leaves[i].stage == staying {
			t := &o.tuns[i]
			t.Ordered, o.sound[i] = !t.Ordered, false
			t.OrderedMax = int64(1+o.rng.IntN(4)) << 20
			s.trace("device %d: ordered %v", i, t.Ordered)
			if err := s.c.SetTunables(s.ids[i], *t); err != nil {
				s.fail(err)
			}
		}
	}
}

func (s *Sim) lookAtAllImages() {
	o := &s.orders
	if o.rng == nil || s.err != nil {
		return
	}
	for i, st := range s.noteBroken() {
		if o.sound[i] = o.sound[i] || st.Ordered == "on"; !o.sound[i] || len(s.van.bad[i]) > 0 {
			continue // an image lacks what the SSD has lost
		}
		// As it is; as after a power cut that takes what it can; and with parts of it.
		d, m := s.backs[i], s.models[i]
		behind, err := m.order.check(d.now)
		if err == nil && behind*cache.BlockSize > st.UnsettledBytes && !d.forgot { // what that has cost is not known yet
			err = fmt.Errorf("%d blocks are behind, but only %d bytes are said to be",
				behind, st.UnsettledBytes)
		}
		if behind > 0 {
			s.res.Behind++
		}
		for n := 0; err == nil && n < 3; n++ {
			s.res.Images++
			_, err = m.order.check(s.afterPowerCut(d, n))
		}
		if err != nil {
			s.fail(fmt.Errorf("the image of ordered device %d: %w", i, err))
		}
	}
}

// noteBroken notes which orders were given up since the last look, and returns the state of all devices.
func (s *Sim) noteBroken() (all []*cache.BackingStatus) {
	o := &s.orders
	if o.rng == nil {
		return nil
	}
	status := s.c.Status().Backings
	for i, id := range s.ids {
		at := slices.IndexFunc(status, func(b cache.BackingStatus) bool { return b.ID == id })
		if at < 0 { // detached
			all = append(all, &cache.BackingStatus{})
			continue
		}
		st := &status[at]
		if st.OrderedBroken > o.broken[i] {
			o.sound[i] = false
			s.res.Broken++
		}
		o.broken[i] = st.OrderedBroken
		all = append(all, st)
	}
	return all
}

// afterPowerCut is what a power cut might leave on a disk: n 0 nothing that is not durable, else
// some.
func (s *Sim) afterPowerCut(d *Disk, n int) []byte {
	rng := s.orders.rng
	image := slices.Clone(d.now)
	for _, i := range d.savedOf {
		if at := d.savedAt[i]; at != 0 {
			copy(image[int64(i)*sectorSize:], d.savedData(at))
		}
	}
	if n == 0 {
		return image
	}
	apply := func(p []byte, off int64, seq uint32, torn bool) {
		for i := int64(0); i < int64(len(p)); i += sectorSize {
			if d.fua[(off+i)/sectorSize] < seq && (!torn || rng.IntN(2) == 0) {
				copy(image[off+i:], p[i:i+sectorSize])
			}
		}
	}
	for i := range d.volatile {
		w := &d.volatile[i]
		if x := rng.IntN(4); x < 2 {
			apply(w.data, w.off, w.seq, x == 1)
		}
	}
	for _, f := range s.ops {
		if s.disk(f.op.Dev) == d && f.op.Kind == cache.OpWrite && rng.IntN(2) == 0 {
			apply(s.mem(f.op), f.op.Off, math.MaxUint32, true)
		}
	}
	return image
}

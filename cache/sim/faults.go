// Package sim runs the cache engine on simulated devices. One seed decides everything: options,
// requests, the order in which operations complete, faults, crashes and what they leave. What
// clients see is compared with a model that knows, for every sector, which contents are legal, and
// for every request whether it may fail.
//
// # Fault model
//
// Time and order, of every device:
//   - operations complete in any order, any time after they were submitted;
//   - a completed write is in the device's volatile cache; a flush makes durable what had
//     completed when the flush was submitted, a FUA write is durable when it completes.
//
// Crashes:
//   - a power cut keeps any subset, sector by sector (512 bytes), of the writes that are not
//     durable, in flight ones included: writes are lost, reordered and torn. Every sector has some
//     version between the durable and the newest. The pending ring is gone;
//   - a power cut of one device only: the machine goes down, but the other device has a power
//     supply of its own and keeps all that had completed;
//   - a killed daemon loses its memory; the operations in flight may still happen, or not. The
//     devices keep their volatile caches, and the pending ring survives. The backing device may
//     lose its volatile cache at the same time;
//   - each of them again while the cache starts, after any write of the start.
//
// Devices that go away and come back:
//   - the SSD vanishes, and is taken back by a new start; see vanish.go;
//   - a backing device goes, is held for or not, and comes back in place, perhaps without what it had
//     not been flushed for; see gone.go.
//
// Not in it: an SSD that loses its volatile cache under a living machine without failing an operation.
// The pending ring then speaks of data that is gone, and nothing tells.
//
// Faults of devices, each alone or with others:
//   - FaultSSDSector, FaultBackingSector: latent sector errors. Reads of those sectors fail until
//     they are written again;
//   - FaultRead, FaultWrite, FaultFlush, on either device: one operation fails. A failed write has
//     changed any part of its sectors, or none. A failed flush has made nothing durable. What it covered
//     on the SSD can be read until the power goes, but no later flush makes it durable: only another write
//     does, and another flush. The same may come of a failed write with FUA. On a backing device a later one does;
//   - FaultFull, either device: thinly provisioned, and out of space. Writes to places never written
//     before, or discarded since, fail with ENOSPC for some time;
//   - FaultBackingDead: the backing device fails all operations for some time;
//   - FaultSSDStall, FaultBackingStall: no operation on the device ends for up to two seconds;
//   - FaultCorrupt: a data sector of the SSD silently changes: flipped bits, zeroes, another
//     sector's content;
//   - FaultLost, FaultMisdirected: a write of data to the SSD reports success and never happened,
//     or happened somewhere else in the data area. Only where the cache keeps data checksums:
//     without them nothing can notice it;
//   - FaultMetadata: at a start, one superblock, one copy of a summary page, or a page of the journal
//     is damaged or cannot be read. Of superblocks and summaries the other copy serves. A journal page
//     that later pages prove to have been written must make the start refuse, if it is needed.
//
// Silent loss of metadata by a drive that reports success is not in the model beyond that: the
// newest journal page has no witness. Nor is corruption of the backing device: what it returns is
// its word, unless a request brings checksums.
//
// What may fail: a read, if the backing device failed a read of its sectors, or if a block of it is
// dirty and the SSD has lost that (in units of cache blocks; so may a write of part of such a
// block); a change, if the backing device failed one of its sectors, or a flush, or the journal
// could not be written; a flush, if a flush or the journal failed. Nothing else may, and no
// request may ever return wrong data.
//
// Besides: a start after a crash is warm (warm.go), an SSD that is lost fails only what needs it (needed.go), one that does not
// answer holds up no read of what is clean, and admits nothing (stall.go), and a bucket that it has failed is used no more
// (retired.go).
package sim

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"ubcache/cache"
)

// Fault is a kind of fault of a device.
type Fault uint8

// The kinds of faults. The numbers are part of replay commands.
const (
	FaultSSDSector Fault = iota
	FaultBackingSector
	FaultSSDRead
	FaultSSDWrite
	FaultSSDFlush
	FaultBackingRead
	FaultBackingWrite
	FaultBackingFlush
	FaultSSDFull
	FaultBackingFull
	FaultCorrupt
	FaultLost
	FaultMisdirected
	FaultMetadata
	FaultBackingDead
	FaultSSDStall
	FaultBackingStall
	numFaults
)

var faultNames = [numFaults]string{
	"bad SSD sector", "bad backing sector", "SSD read error", "SSD write error", "SSD flush error",
	"backing read error", "backing write error", "backing flush error", "SSD full", "backing full",
	"silent corruption", "lost write", "misdirected write", "damaged metadata",
	"dead backing", "stalled SSD", "stalled backing",
}

func (f Fault) String() string { return faultNames[f] }

// faultSet is a set of kinds.
type faultSet uint32

func (s faultSet) has(f Fault) bool { return s>>f&1 != 0 }

// silent are the faults that only data checksums can find.
const silent = faultSet(1<<FaultCorrupt | 1<<FaultLost | 1<<FaultMisdirected)

// ofBackings are those of backing devices.
const ofBackings = faultSet(1<<FaultBackingSector | 1<<FaultBackingRead | 1<<FaultBackingWrite | 1<<FaultBackingFlush |
	1<<FaultBackingFull | 1<<FaultBackingDead | 1<<FaultBackingStall)

// harmless are those of the SSD that lose nothing, if they are not of metadata.
const harmless = faultSet(1<<FaultSSDWrite | 1<<FaultSSDFull)

var (
	errMedium = fmt.Errorf("sim: medium error: %w", syscall.EIO)
	errFull   = fmt.Errorf("sim: thinly provisioned device: %w", syscall.ENOSPC)
	errCrash  = errors.New("sim: crash")
)

// armed is a fault that waits for an operation of its kind.
type armed struct {
	kind Fault
	meta bool // of the journal, summaries and superblocks; else of data
	dev  cache.BackingID
}

// arm draws a fault. Those of sectors happen at once.
func (s *Sim) arm() {
	kind := Fault(s.rng.IntN(int(numFaults)))
	if !s.cfg.Faults.has(kind) || kind == FaultMetadata {
		return
	}
	a := armed{kind: kind, meta: s.rng.IntN(4) == 0, dev: s.ids[s.rng.IntN(len(s.ids))]}
	a.meta = a.meta && !s.cfg.Ordered // see NewOrderedConfig
	switch kind {
	case FaultSSDSector, FaultCorrupt:
		s.hurtSSD(kind)
	case FaultBackingSector:
		d := s.disk(a.dev)
		s.hurt(kind, d, int64(s.rng.IntN(int(d.size/sectorSize)))*sectorSize, 1+s.rng.IntN(16))
	case FaultBackingDead:
		d := s.disk(a.dev)
		if d.dead = !d.dead; d.dead {
			s.happened(kind)
			s.trace("%v: device %d", kind, a.dev)
		}
	case FaultSSDStall, FaultBackingStall:
		d := s.ssd
		if kind == FaultBackingStall {
			d = s.disk(a.dev)
		}
		s.happened(kind)
		d.stalled = s.now + int64(s.rng.IntN(int(2*time.Second)))
		s.trace("%v until %d", kind, d.stalled)
	case FaultSSDFull, FaultBackingFull:
		d := s.ssd
		if kind == FaultBackingFull {
			d = s.disk(a.dev)
		}
		d.full = !d.full
		if d.full {
			s.happened(kind)
			s.trace("%v: on", kind)
		}
	default:
		if len(s.armed) < 4 {
			s.armed = append(s.armed, a)
		}
	}
}

func (s *Sim) happened(kind Fault) { s.res.Faults[kind]++ }

// hurtSSD hurts a sector of a block that is cached, if one is found.
func (s *Sim) hurtSSD(kind Fault) {
	for range 6 {
		dev := s.rng.IntN(len(s.ids))
		blk := int64(s.rng.IntN(len(s.models[dev].sectors))) / blockSectors
		p, ok := s.c.Locate(s.ids[dev], blk*cache.BlockSize)
		if !ok {
			continue
		}
		at := p.Off + int64(s.rng.IntN(blockSectors))*sectorSize
		s.trace("%v at %d: device %d block %d, %+v", kind, at, dev, blk, p)
		s.hurt(kind, s.ssd, at, 1)
		return
	}
}

// hurt makes sectors unreadable or wrong.
func (s *Sim) hurt(kind Fault, d *Disk, off int64, sectors int) {
	s.happened(kind)
	for i := range int64(sectors) {
		at := off + i*sectorSize
		switch {
		case at >= d.size:
			return
		case kind == FaultCorrupt:
			s.corrupt(d, at)
		default:
			d.marks[at/sectorSize] |= markUnreadable
		}
	}
}

// corrupt changes a sector silently.
func (s *Sim) corrupt(d *Disk, at int64) {
	var p [sectorSize]byte
	copy(p[:], d.now[at:])
	switch s.rng.IntN(3) {
	case 0:
		p[s.rng.IntN(sectorSize)] ^= 1 << s.rng.IntN(8)
	case 1:
		clear(p[:])
	default:
		copy(p[:], d.now[int64(s.rng.IntN(int(d.size/sectorSize)))*sectorSize:])
	}
	if string(p[:]) == string(d.now[at:at+sectorSize]) {
		p[0] ^= 1
	}
	d.writeFUA(p[:], at)
	d.marks[at/sectorSize] |= markWrong
}

// outcome decides how an operation that is about to complete goes, and applies its effect on the
// device.
func (s *Sim) outcome(f *flyingOp) error {
	op, d := f.op, s.disk(f.op.Dev)
	if s.Trace != nil { // what is passed on would be allocated
		s.trace("  op %s dev=%d off=%d len=%d fua=%v", op.Kind, op.Dev, op.Off, op.Len, op.FUA)
	}
	kind, hit := s.struck(f)
	if hit {
		s.happened(kind)
		s.trace("    %v", kind)
	}
	var err error
	switch {
	case hit && (kind == FaultLost || kind == FaultMisdirected):
		s.mislay(kind, op, d)
		return nil
	case hit:
		err = errMedium
		s.partly(op, d)
		switch {
		case op.Dev != cache.SSD:
		case op.Kind == cache.OpFlush:
			d.flushFails(f.mark)
		case op.FUA && s.rng.IntN(2) == 0: // made of a write and a flush
			d.flushFails(d.mark0())
		}
	case d.dead, op.Kind == cache.OpRead && d.marked(op.Off, op.Len, markUnreadable):
		err = errMedium
	case op.Kind == cache.OpWrite && d.full && !d.allocated(op.Off, op.Len):
		err = errFull
	default:
		s.effect(f)
		s.journalEnds(op)
	}
	if err != nil {
		s.trace("    %v", err)
		s.retires(op)
	}
	s.excuse(op, err)
	s.noteForgot(op, err)
	return err
}

// noteForgot notes that the SSD may have dropped what it had not been flushed for.
func (s *Sim) noteForgot(op *cache.Op, err error) {
	if op.Dev == cache.SSD && err != nil && err != errFull && (op.Kind == cache.OpFlush || op.FUA) {
		s.van.forgot = true
	}
}

// struck takes the armed fault that fits the operation.
func (s *Sim) struck(f *flyingOp) (Fault, bool) {
	if s.strike != nil {
		return s.strike(f)
	}
	for i, a := range s.armed {
		if a.fits(f.op, s.isMeta(f.op)) {
			s.armed = append(s.armed[:i], s.armed[i+1:]...)
			return a.kind, true
		}
	}
	return 0, false
}

// isMeta reports whether an operation of the SSD is one of metadata.
func (s *Sim) isMeta(op *cache.Op) bool { return op.Off < s.geo.DataOff }

func (a *armed) fits(op *cache.Op, meta bool) bool {
	if op.Dev == cache.SSD {
		switch a.kind {
		case FaultSSDRead:
			return op.Kind == cache.OpRead
		case FaultSSDWrite:
			return op.Kind == cache.OpWrite && meta == a.meta
		case FaultSSDFlush:
			return op.Kind == cache.OpFlush
		case FaultLost, FaultMisdirected:
			return op.Kind == cache.OpWrite && !meta
		}
		return false
	}
	if op.Dev != a.dev {
		return false
	}
	switch a.kind {
	case FaultBackingRead:
		return op.Kind == cache.OpRead
	case FaultBackingWrite:
		return op.Kind != cache.OpRead && op.Kind != cache.OpFlush
	case FaultBackingFlush:
		return op.Kind == cache.OpFlush
	}
	return false
}

// mislay makes a write not happen, or happen elsewhere in the data area.
func (s *Sim) mislay(kind Fault, op *cache.Op, d *Disk) {
	d.mark(op.Off, op.Len, markWrong)
	if kind == FaultLost {
		return
	}
	slots := (d.size - s.geo.DataOff - op.Len) / cache.BlockSize
	to := s.geo.DataOff + int64(s.rng.IntN(int(slots)))*cache.BlockSize
	s.trace("    to %d", to)
	if to == op.Off {
		to += cache.BlockSize
	}
	d.write(s.mem(op), to)
	d.mark(to, op.Len, markWrong)
}

// partly is the effect of an operation that fails: that of any of its sectors.
func (s *Sim) partly(op *cache.Op, d *Disk) {
	if op.Kind == cache.OpRead || op.Kind == cache.OpFlush {
		// One bad sector fails the read of many blocks; which it was is seen when each is read by itself.
		if op.Kind == cache.OpRead && op.Dev == cache.SSD && op.Len <= cache.BlockSize {
			d.mark(op.Off, op.Len, markDoubted)
		}
		return
	}
	data := zeroSectors(op.Len)
	if op.Kind == cache.OpWrite {
		data = s.mem(op)
	}
	how := s.rng.IntN(3) // nothing, all, some
	for i := int64(0); i < op.Len; i += sectorSize {
		if how == 1 || how == 2 && s.rng.IntN(2) == 0 {
			d.write(data[i:i+sectorSize], op.Off+i)
		}
	}
}

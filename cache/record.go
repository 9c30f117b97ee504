package cache

import (
	"encoding/binary"
	"fmt"
)

// recordKind is what a journal record says.
type recordKind uint8

const (
	// recMap: the block is in the slot now, with that mask and checksum; what it had is dead.
	recMap recordKind = 1 + iota
	// recUnmap: blocks block … block+count-1 are not cached; with recCleanOnly, dirty ones stay.
	recUnmap
	// recClean: the block in the slot is no longer dirty.
	recClean
	// recFree: nothing in the bucket is cached.
	recFree
	// recDrop: no block of the backing device is cached.
	recDrop
	// recSettled: the backing device has all that was queued for it by records before block, which
	// is an LSN.
	recSettled
)

const (
	recDirty     = 1 << 0
	recCleanOnly = 1 << 1
	recPinned    = 1 << 2
	recOrdered   = 1 << 3 // the slot has a version that was queued; see order
	recPending   = 1 << 4 // dirty, but the backing device had it
	recBad       = 1 << 5 // dirty, and the SSD does not have it

	recordBytes = 24
)

// record is one change of the index. On the SSD it has 24 bytes, little-endian: kind, mask,
// flags, 0, backing (2), 0 (2), checksum or count (4), slot or bucket (4), block (8).
type record struct {
	kind    recordKind
	mask    uint8
	flags   uint8
	backing BackingID
	sum     uint32 // recMap: checksum; recUnmap: count of blocks
	slot    uint32 // recFree: the bucket
	block   Block
}

func settledRecord(id BackingID, before LSN) record {
	return record{kind: recSettled, backing: id, block: Block(before)}
}

func (r *record) encode(p []byte) {
	le := binary.LittleEndian
	_ = p[recordBytes-1]
	p[0], p[1], p[2], p[3] = byte(r.kind), r.mask, r.flags, 0
	le.PutUint16(p[4:], uint16(r.backing))
	le.PutUint16(p[6:], 0)
	le.PutUint32(p[8:], r.sum)
	le.PutUint32(p[12:], r.slot)
	le.PutUint64(p[16:], uint64(r.block))
}

func decodeRecord(p []byte) record {
	le := binary.LittleEndian
	return record{
		kind: recordKind(p[0]), mask: p[1], flags: p[2],
		backing: BackingID(le.Uint16(p[4:])),
		sum:     le.Uint32(p[8:]), slot: le.Uint32(p[12:]), block: Block(le.Uint64(p[16:])),
	}
}

// check reports a record that no engine wrote.
func (r *record) check(g *Geometry) error {
	ok := true
	switch r.kind {
	case recMap:
		ok = int64(r.slot) < g.slots() && r.mask != 0 && r.block <= maxBlock && r.backing != 0
	case recClean:
		ok = int64(r.slot) < g.slots() && r.block <= maxBlock && r.backing != 0
	case recUnmap:
		ok = r.backing != 0 && uint64(r.block)+uint64(r.sum) <= maxBlock+1
	case recFree:
		ok = r.slot < g.Buckets
	case recDrop, recSettled:
		ok = r.backing != 0
	default:
		ok = false
	}
	if !ok || r.backing > 1<<12-1 {
		return fmt.Errorf("%w: impossible journal record %+v", ErrCorrupt, *r)
	}
	return nil
}

func (r *record) String() string {
	switch r.kind {
	case recMap:
		also := ""
		if r.flags&recPinned != 0 {
			also = " pinned"
		}
		if r.flags&recBad != 0 {
			also += " lost"
		}
		if r.flags&recOrdered != 0 {
			also += " ordered"
		}
		return fmt.Sprintf("map backing=%d block=%d slot=%d mask=%02x dirty=%v sum=%08x%s",
			r.backing, r.block, r.slot, r.mask, r.flags&recDirty != 0, r.sum, also)
	case recUnmap:
		return fmt.Sprintf("unmap backing=%d block=%d count=%d clean-only=%v",
			r.backing, r.block, r.sum, r.flags&recCleanOnly != 0)
	case recClean:
		return fmt.Sprintf("clean backing=%d block=%d slot=%d", r.backing, r.block, r.slot)
	case recFree:
		return fmt.Sprintf("free bucket=%d", r.slot)
	case recDrop:
		return fmt.Sprintf("drop backing=%d", r.backing)
	case recSettled:
		return fmt.Sprintf("settled backing=%d before=%d", r.backing, r.block)
	}
	return fmt.Sprintf("unknown record %d", r.kind)
}

package cache

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// The pending ring holds the journal records that are not on the SSD yet. Its memory is the
// daemon's to provide (Options.Pending): a file on tmpfs outlives the process, so that a killed
// daemon loses no acknowledged write, though nothing is written to the SSD for it. A power cut
// loses the ring, and with it what no FLUSH had covered: that is what a volatile cache may do.
//
// First page: magic (8), cache UUID (16), epoch (8), capacity (8), first LSN not on the SSD (8),
// next LSN (8), 1 if the SSD was lost (8), a bit for each backing device that has lost writes (8); then records of 24
// bytes at LSN modulo capacity. The next LSN is stored last, by one atomic store, so a record is there as a whole or
// not at all.
const (
	pendingMagic   = "UBCPEND\x01"
	pendingUUID    = 8
	pendingEpoch   = 24
	pendingCap     = 32
	pendingDurable = 40
	pendingNext    = 48
	// pendingLost is not 0 if the SSD was lost: what the records speak of may have been in its
	// volatile cache.
	pendingLost = 56
	// pendingUntold has a bit for each backing device, from number 1 on, that has lost writes that were
	// acknowledged and not flushed, unless it is some time since a FLUSH has told of that. A daemon that is
	// killed leaves its clients alive, so the next one tells them; after a power cut nobody waits for it.
	pendingUntold = 64

	// PendingBytes is the size that Options.Pending must have.
	PendingBytes   = pageSize + maxPendingRecs*recordBytes
	maxPendingRecs = 64 << 10
)

type pendingRing struct {
	mem   []byte
	words []uint64
	cap   uint64
}

// pendingRecords are the records of [durable, next) that an earlier process has left.
type pendingRecords struct {
	first LSN // of the first
	list  []record
	// lost says that the SSD was lost meanwhile: the records may speak of data that it does not have.
	lost bool
}

// loadPending returns what an earlier process of this cache and epoch left; nothing if the memory is
// not such a ring.
func loadPending(mem []byte, id UUID, epoch uint64) (r pendingRecords, err error) {
	if len(mem) < PendingBytes || string(mem[:8]) != pendingMagic {
		return r, nil
	}
	le := binary.LittleEndian
	if UUID(mem[pendingUUID:pendingUUID+16]) != id || le.Uint64(mem[pendingEpoch:]) != epoch {
		return r, nil
	}
	durable, next := le.Uint64(mem[pendingDurable:]), le.Uint64(mem[pendingNext:])
	n := le.Uint64(mem[pendingCap:])
	if n == 0 || n > maxPendingRecs || next < durable || next-durable > n {
		return r, fmt.Errorf("%w: pending ring has records %d to %d in %d places",
			ErrCorrupt, durable, next, n)
	}
	for l := durable; l < next; l++ {
		r.list = append(r.list, decodeRecord(mem[pageSize+l%n*recordBytes:]))
	}
	r.first, r.lost = LSN(durable), le.Uint64(mem[pendingLost:]) != 0
	return r, nil
}

// loadUntold returns the backing devices that have lost writes, as an earlier process of this cache and epoch left
// it; false if the memory is not such a ring.
func loadUntold(mem []byte, id UUID, epoch uint64) (bits uint64, ok bool) {
	if len(mem) < PendingBytes || string(mem[:8]) != pendingMagic ||
		UUID(mem[pendingUUID:pendingUUID+16]) != id || binary.LittleEndian.Uint64(mem[pendingEpoch:]) != epoch {
		return 0, false
	}
	return binary.LittleEndian.Uint64(mem[pendingUntold:]), true
}

// reset makes the ring an empty one of this cache and epoch, beginning at next. untold has the backing devices that
// have lost writes.
func (p *pendingRing) reset(id UUID, epoch uint64, records uint64, next LSN, untold uint64) {
	p.words, p.cap = wordsOf(p.mem), records
	atomic.StoreUint64(&p.words[0], 0) // no magic while it is neither the old nor the new one
	copy(p.mem[pendingUUID:], id[:])
	le := binary.LittleEndian
	le.PutUint64(p.mem[pendingEpoch:], epoch)
	le.PutUint64(p.mem[pendingCap:], records)
	le.PutUint64(p.mem[pendingDurable:], uint64(next))
	le.PutUint64(p.mem[pendingNext:], uint64(next))
	le.PutUint64(p.mem[pendingLost:], 0)
	le.PutUint64(p.mem[pendingUntold:], untold)
	atomic.StoreUint64(&p.words[0], binary.NativeEndian.Uint64([]byte(pendingMagic)))
}

func (p *pendingRing) at(l LSN) []byte {
	return p.mem[pageSize+uint64(l)%p.cap*recordBytes:][:recordBytes]
}

// publish makes the records before next part of the ring.
func (p *pendingRing) publish(next LSN) { atomic.StoreUint64(&p.words[pendingNext/8], uint64(next)) }

// distrust and trust note whether the SSD may have lost what it had not been flushed for.
func (p *pendingRing) distrust() { atomic.StoreUint64(&p.words[pendingLost/8], 1) }
func (p *pendingRing) trust()    { atomic.StoreUint64(&p.words[pendingLost/8], 0) }

// forget drops the records before durable, which the SSD has.
func (p *pendingRing) forget(durable LSN) {
	atomic.StoreUint64(&p.words[pendingDurable/8], uint64(durable))
}

// keepUntold notes that a backing device has lost writes, and forgetUntold that its clients know.
func (p *pendingRing) keepUntold(id BackingID) {
	atomic.OrUint64(&p.words[pendingUntold/8], 1<<(id-1))
}

func (p *pendingRing) forgetUntold(id BackingID) {
	atomic.AndUint64(&p.words[pendingUntold/8], ^(uint64(1) << (id - 1)))
}

func (p *pendingRing) untold() uint64 { return atomic.LoadUint64(&p.words[pendingUntold/8]) }

package shm

import (
	"sync/atomic"
	"unsafe"

	"ubcache/attrs"
)

// pageSlots are the slots of a page as they lie in memory, which both sides change: little-endian, as the
// machines are that this is built for. The C header has the same.
type pageSlots struct {
	set     setSlot
	answers [Answers]answerSlot
}

// setSlot is the attribute slot: the request that the page belongs to, and its set or a part of it.
type setSlot struct {
	seq, first     uint32
	start          uint64
	length, number uint32
	setBytes       uint32
	overflow       uint32 // answers that found no room
	body           slotBody
}

// answerSlot is an answer, or a part of one.
type answerSlot struct {
	claim         uint64
	done, bytes   uint32
	start         uint64
	length, chunk uint32
	body          slotBody
}

// slotBody is a set or results, or a part of them.
type slotBody [BodyBytes]byte

func (b *slotBody) short() *attrs.Short { return (*attrs.Short)(unsafe.Pointer(b)) }

// at are the slots of a page of the data area.
func (m *memory) at(page int) *pageSlots {
	if uint(page) >= uint(m.pages) {
		panic("shm: no such page")
	}
	return (*pageSlots)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(m.mem)), m.slots+int64(page)*pageSlotsBytes))
}

// more is not 0 if there are answers in other slots than the first, which is taken first, or there was no room for one.
func (p *pageSlots) more() uint32 {
	const _ = uint(Answers-3) + uint(3-Answers) // each is here
	return atomic.LoadUint32(&p.set.overflow) | uint32(atomic.LoadUint64(&p.answers[1].claim)) |
		uint32(atomic.LoadUint64(&p.answers[2].claim))
}

// free leaves the answer slots to the request with that number; 0 is none.
func (p *pageSlots) free(seq uint32) {
	claim := claimOf(seq, 0)
	p.answers[0].claim, p.answers[1].claim, p.answers[2].claim = claim, claim, claim
}

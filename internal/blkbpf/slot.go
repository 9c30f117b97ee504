package blkbpf

import "encoding/binary"

// A slot is what the program writes of one request, in the machine's byte order. It has a cache
// line of its own.
const (
	slotBytes = 64

	slotFilled = 0 // 1 byte: 1 from the program until Lookup, else 0
	slotBlkLen = 4 // 4 bytes: the request's length in bytes
	slotSector = 8
	slotCgroup = 16
	slotFlags  = 24 // 4 bytes: cmd_flags of the request
	slotPID    = 28 // 4 bytes
	slotUID    = 32 // 4 bytes
	slotTask   = 36 // 4 bytes: flags of the issuing task
	slotSaid   = 40 // 4 bytes: the priority, and the write hint from bit 16 on
)

// taskKernel is the bit of a kernel thread in a task's flags (PF_KTHREAD).
const taskKernel = 0x00200000

// opWrite is the bit that all operations to a device have, and none from it (op_is_write).
const opWrite = 1

// take reads a slot that is filled if it is that of the request, and empties it.
//
// Nothing here is atomic: the program wrote the slot before it gave the request to the driver,
// and writes it again only after the request was completed and its tag given to another one.
// Both ways lead through the kernel and the ring, which order memory accesses.
func take(slot []byte, sector uint64, sectors uint32, bits *flagBits) (e Event, ok bool) {
	_ = slot[slotBytes-1]
	slot[slotFilled] = 0
	if binary.NativeEndian.Uint64(slot[slotSector:]) != sector ||
		binary.NativeEndian.Uint32(slot[slotBlkLen:])>>9 != sectors {
		return e, false
	}
	said := binary.NativeEndian.Uint32(slot[slotSaid:])
	flags := binary.NativeEndian.Uint32(slot[slotFlags:])
	return Event{
		IOPrio:     uint16(said),
		WriteHint:  uint8(said >> 16),
		Write:      flags&opWrite != 0,
		Readahead:  flags&bits.readahead != 0,
		Meta:       flags&bits.meta != 0,
		Prio:       flags&bits.prio != 0,
		Background: flags&bits.background != 0,
		Sync:       flags&bits.sync != 0,
		Kernel:     binary.NativeEndian.Uint32(slot[slotTask:])&taskKernel != 0,
		PID:        binary.NativeEndian.Uint32(slot[slotPID:]),
		UID:        binary.NativeEndian.Uint32(slot[slotUID:]),
		Cgroup:     binary.NativeEndian.Uint64(slot[slotCgroup:]),
	}, true
}

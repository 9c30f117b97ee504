package shm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"ubcache/attrs/shm/hostile"
)

// Version is that of the layout and of the protocol.
const Version = 1

const (
	// PageBytes is the size of a data page, whatever the machine's pages are.
	PageBytes = 4096
	// SlotBytes is the size of one slot, BodyBytes that of the part of it for a set or results.
	SlotBytes = 512
	BodyBytes = SlotBytes - slotHeaderBytes
	// Answers is how many answers a page has room for.
	Answers = 3
	// MaxPages is the largest number of data pages: 4 GiB, what ublk registers as one buffer.
	MaxPages = 1 << 20
	// MaxEntries is the largest ring.
	MaxEntries = 4096

	magic           = "UBSM"
	slotHeaderBytes = 32
	pageSlotsBytes  = (1 + Answers) * SlotBytes
	ringHeadBytes   = 4096
)

// Fields of the header, by their offset in bytes.
const (
	headerMagic     = 0
	headerVersion   = 4
	headerSize      = 8
	headerPageBytes = 16
	headerSlotBytes = 20
	headerAnswers   = 24
	headerPages     = 28
	headerEntries   = 32
	headerFlags     = 36
	headerRing      = 40
	headerSlots     = 48
	headerData      = 56
	headerBytes     = 64
)

var le = binary.LittleEndian

// Errors that a caller can act on.
var (
	// ErrLayout: the memory is not a region as this version has it.
	ErrLayout = errors.New("not a shared memory region")
	// ErrSeals: the memory is no memfd that is sealed against shrinking and growing.
	ErrSeals = errors.New("memory is not sealed: a memfd with F_SEAL_SHRINK, F_SEAL_GROW and " +
		"F_SEAL_SEAL is needed")
	// ErrTooLarge: the region is larger than a client may have.
	ErrTooLarge = errors.New("region is too large")
	// ErrFault: the memory could not be accessed; its owner has taken it away.
	ErrFault = hostile.ErrFault
	// ErrBroken: the other side does not keep to the protocol of the ring.
	ErrBroken = errors.New("the ring is broken")
	// ErrPlace: the data does not lie in the region.
	ErrPlace = errors.New("not in the shared region")
)

// layout says where everything is. Given the number of pages and entries there is only one, so a
// server takes no offset from the header.
type layout struct {
	pages, entries int
	ring           int64 // 0 without a ring
	slots          int64
	data           int64
	size           int64
}

func layoutOf(pages, entries int) layout {
	l := layout{pages: pages, entries: entries}
	at := int64(PageBytes)
	if entries > 0 {
		l.ring = at
		at += ringHeadBytes + roundUp(int64(entries)*(EntryBytes+CompletionBytes))
	}
	l.slots = at
	l.data = at + roundUp(int64(pages)*pageSlotsBytes)
	l.size = l.data + int64(pages)*PageBytes
	return l
}

func roundUp(n int64) int64 { return (n + PageBytes - 1) &^ (PageBytes - 1) }

// check says what is wrong with the numbers that a layout is made from.
func (l *layout) check() error {
	switch {
	case l.pages < 1 || l.pages > MaxPages:
		return fmt.Errorf("%w: %d data pages, 1 to %d are possible", ErrLayout, l.pages, MaxPages)
	case l.entries < 0 || l.entries > MaxEntries || l.entries&(l.entries-1) != 0:
		return fmt.Errorf("%w: a ring of %d entries, powers of two to %d are possible", ErrLayout,
			l.entries, MaxEntries)
	}
	return nil
}

// holds says whether n bytes from byte off on are in the data area. Nothing is there too, at a
// place that has a page.
func (l *layout) holds(off, n int64) bool {
	all := int64(l.pages) * PageBytes
	return off >= 0 && n >= 0 && off < all && n <= all-off
}

// pagesOf is the first page and the number of pages that n bytes from byte off on lie in; a request
// without data has the page it names.
func pagesOf(off, n int64) (first, count int) {
	at, end := uint64(off), uint64(off)+uint64(max(n, 1))
	return int(at / PageBytes), int((end-1)/PageBytes - at/PageBytes + 1)
}

// encode writes the header to the start of b.
func (l *layout) encode(b []byte) {
	copy(b[headerMagic:], magic)
	le.PutUint32(b[headerVersion:], Version)
	le.PutUint64(b[headerSize:], uint64(l.size))
	le.PutUint32(b[headerPageBytes:], PageBytes)
	le.PutUint32(b[headerSlotBytes:], SlotBytes)
	le.PutUint32(b[headerAnswers:], Answers)
	le.PutUint32(b[headerPages:], uint32(l.pages))
	le.PutUint32(b[headerEntries:], uint32(l.entries))
	le.PutUint32(b[headerFlags:], 0)
	le.PutUint64(b[headerRing:], uint64(l.ring))
	le.PutUint64(b[headerSlots:], uint64(l.slots))
	le.PutUint64(b[headerData:], uint64(l.data))
}

// decode makes the layout that the header in b, which is private, describes, of memory of so many
// bytes.
func (l *layout) decode(b []byte, size int64) error {
	if string(b[headerMagic:headerMagic+len(magic)]) != magic {
		return fmt.Errorf("%w: no header", ErrLayout)
	}
	if v := le.Uint32(b[headerVersion:]); v != Version {
		return fmt.Errorf("%w: version %d, this one knows %d", ErrLayout, v, Version)
	}
	pages, entries := le.Uint32(b[headerPages:]), le.Uint32(b[headerEntries:])
	n := layout{pages: int(pages), entries: int(entries)}
	if err := n.check(); err != nil {
		return err
	}
	n = layoutOf(int(pages), int(entries))
	var want [headerBytes]byte
	n.encode(want[:])
	if string(want[:]) != string(b[:headerBytes]) || n.size != size {
		return fmt.Errorf("%w: sizes and offsets are not those of version %d", ErrLayout, Version)
	}
	*l = n
	return nil
}

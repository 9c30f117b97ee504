package daemon

import "ubcache/internal/uring"

// directBuffers are the memory into which the data of requests is copied: of two sizes, so many of
// each that a disk has enough to do, for all clients of a cache. A page costs memory from its first
// use on.
type directBuffers struct {
	mem   []*uring.Arena
	small directList
	large directList
}

// directList are those of one size.
type directList struct {
	free [][]byte
	made bool // else there are none, and perhaps no memory for them
}

const (
	directSmall  = 64 << 10
	directSmalls = 256
	directLarges = 48
)

// get returns n bytes, page-aligned; nil if there is no buffer left. n is at most maxDirect.
func (b *directBuffers) get(n int) []byte {
	b.make(&b.small, directSmalls, directSmall)
	b.make(&b.large, directLarges, maxDirect)
	list := &b.large
	if n <= directSmall && len(b.small.free) > 0 {
		list = &b.small
	}
	last := len(list.free) - 1
	if last < 0 {
		return nil
	}
	buf := list.free[last]
	list.free = list.free[:last]
	return buf[:n]
}

// never reports that there is no buffer of n bytes to wait for, as there is no memory.
func (b *directBuffers) never(n int) bool {
	return !b.large.made && (n > directSmall || !b.small.made)
}

func (b *directBuffers) put(buf []byte) {
	switch cap(buf) {
	case directSmall:
		b.small.free = append(b.small.free, buf[:directSmall])
	case maxDirect:
		b.large.free = append(b.large.free, buf[:maxDirect])
	}
}

// make cuts new memory, if that has not been done, and if there is some.
func (b *directBuffers) make(l *directList, count, size int) {
	if l.made {
		return
	}
	m, err := uring.NewArena(count * size)
	if err != nil {
		return
	}
	b.mem, l.made = append(b.mem, m), true
	for i := range count {
		l.free = append(l.free, m.Slice(i*size, size))
	}
}

func (b *directBuffers) close() {
	for _, m := range b.mem {
		_ = m.Free()
	}
	*b = directBuffers{}
}

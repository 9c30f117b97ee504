package daemon

import "ubcache/internal/uring"

// directBuffers are the memory into which the data of requests is copied: of two sizes, so many of
// each that a disk has enough to do, for all clients of a cache. A page costs memory from its first
// use on.
type directBuffers struct {
	mem   []*uring.Arena
	small [][]byte
	large [][]byte
	made  bool
}

const (
	directSmall  = 64 << 10
	directSmalls = 256
	directLarges = 48
)

// get returns n bytes, page-aligned; nil if there is no buffer left. n is at most maxDirect.
func (b *directBuffers) get(n int) []byte {
	if !b.made {
		b.made = true
		b.small = b.slices(directSmalls, directSmall)
		b.large = b.slices(directLarges, maxDirect)
	}
	list := &b.large
	if n <= directSmall && len(b.small) > 0 {
		list = &b.small
	}
	last := len(*list) - 1
	if last < 0 {
		return nil
	}
	buf := (*list)[last]
	*list = (*list)[:last]
	return buf[:n]
}

func (b *directBuffers) put(buf []byte) {
	switch cap(buf) {
	case directSmall:
		b.small = append(b.small, buf[:directSmall])
	case maxDirect:
		b.large = append(b.large, buf[:maxDirect])
	}
}

// slices cuts new memory; none where there is none.
func (b *directBuffers) slices(count, size int) (list [][]byte) {
	m, err := uring.NewArena(count * size)
	if err != nil {
		return nil
	}
	b.mem = append(b.mem, m)
	for i := range count {
		list = append(list, m.Slice(i*size, size))
	}
	return list
}

func (b *directBuffers) close() {
	for _, m := range b.mem {
		_ = m.Free()
	}
	*b = directBuffers{}
}

package client

import (
	"fmt"
	"slices"
	"sync"

	"ubcache/attrs/shm"
)

// memory gives out the pages of the region, first fit.
type memory struct {
	mu    sync.Mutex
	free  []extent    // in order, never side by side
	taken map[int]int // first page: how many
}

type extent struct{ page, n int }

func (m *memory) init(pages int) {
	m.free, m.taken = []extent{{0, pages}}, map[int]int{}
}

// get returns the first of n pages; false if there is no such room.
func (m *memory) get(n int) (int, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.free {
		e := &m.free[i]
		if e.n < n {
			continue
		}
		page := e.page
		e.page, e.n = e.page+n, e.n-n
		if e.n == 0 {
			m.free = slices.Delete(m.free, i, i+1)
		}
		m.taken[page] = n
		return page, true
	}
	return 0, false
}

// put gives pages back; false if they are not taken.
func (m *memory) put(page int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.taken[page]
	if !ok {
		return false
	}
	delete(m.taken, page)
	i, _ := slices.BinarySearchFunc(m.free, page, func(e extent, p int) int { return e.page - p })
	m.free = slices.Insert(m.free, i, extent{page, n})
	if i+1 < len(m.free) && page+n == m.free[i+1].page {
		m.free[i].n += m.free[i+1].n
		m.free = slices.Delete(m.free, i+1, i+2)
	}
	if i > 0 && m.free[i-1].page+m.free[i-1].n == page {
		m.free[i-1].n += m.free[i].n
		m.free = slices.Delete(m.free, i, i+1)
	}
	return true
}

// Alloc returns n bytes of the shared memory, which begin at a page and have their pages for
// themselves. I/O with such buffers needs no copy. ErrMemory if there is no room.
func (d *Device) Alloc(n int) ([]byte, error) {
	if n <= 0 {
		return nil, fmt.Errorf("allocate %d bytes: %w", n, ErrMemory)
	}
	page, ok := d.memory.get((n + shm.PageBytes - 1) / shm.PageBytes)
	if !ok {
		return nil, fmt.Errorf("allocate %d bytes: %w", n, ErrMemory)
	}
	at := page * shm.PageBytes
	return d.region.Data()[at : at+n : at+n], nil
}

// Free gives back a buffer as Alloc has returned it. No request may be using it.
func (d *Device) Free(b []byte) {
	off, ok := d.region.Offset(b)
	if !ok || off%shm.PageBytes != 0 || !d.memory.put(int(off/shm.PageBytes)) {
		panic("client: freed a buffer that Alloc did not return")
	}
}

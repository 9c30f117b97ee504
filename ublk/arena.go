package ublk

import "ubcache/internal/uring"

// Arena is page-aligned memory outside the Go heap, for I/O.
type Arena = uring.Arena

// NewArena maps size bytes of zeroed memory. It stays until its Free is called.
func NewArena(size int) (*Arena, error) { return uring.NewArena(size) }

// AddrOf is the address of b's first byte, for the Prep methods that take one.
func AddrOf(b []byte) uintptr { return uring.Addr(b) }

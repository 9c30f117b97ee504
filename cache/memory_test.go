package cache

import (
	"errors"
	"syscall"
	"testing"
)

// Without memory, what needs some of the engine's own fails or goes without, and all else goes on; with
// memory again nothing is left of it.
func TestNoMemory(t *testing.T) {
	h := small(t)
	h.write(0, fill(1, 8))
	h.drain()
	h.write(16*BlockSize, fill(2, 8))
	noMemory.Store(true)
	defer noMemory.Store(false)
	h.wantRead(0, fill(1, 8))
	h.write(4*BlockSize, fill(3, 4))
	h.wantRead(32*BlockSize, fill(0, 4))
	for _, r := range []*Request{
		{Op: ReqRead, Off: 512, Len: 512, Data: make([]byte, 512)},                // to be verified as a whole
		{Op: ReqWrite, Off: 512, Len: 512, Data: fill(9, 1)[:512]},                // to be merged
		{Op: ReqWrite, Off: 15*BlockSize + 512, Len: BlockSize, Data: fill(9, 1)}, // at both ends
	} {
		if err := h.do(r); !errors.Is(err, syscall.ENOMEM) {
			t.Errorf("%s at %d+%d without memory: %v", r.Op, r.Off, r.Len, err)
		}
	}
	h.flush()
	noMemory.Store(false)
	h.wantRead(0, append(fill(1, 4), fill(3, 4)...))
	h.wantRead(16*BlockSize, fill(2, 8))
	h.write(512, fill(9, 1)[:512])
	h.drain()
	h.wantRead(16*BlockSize, fill(2, 8))
}

package sim

import (
	"syscall"
	"unsafe"

	"ubcache/cache"
)

// target gives a read the client's memory, mostly aligned as devices need it.
func (s *Sim) target(r *request) {
	r.target = s.buffer(r.n + blockSectors)
	at := int(-uintptr(unsafe.Pointer(&r.target[0])) % cache.BlockSize)
	if s.rng.IntN(8) == 0 {
		at = (at + sectorSize) % cache.BlockSize
	}
	r.Target = r.target[at:][:r.Len:r.Len]
}

// meddle is what a client may do to its memory while a read into it is under way: take it away, so that the read
// fails, or change what has been read, which shows where there are checksums.
func (s *Sim) meddle(op *cache.Op) error {
	if op.Kind != cache.OpRead || op.Mem == nil || !s.aimed(op) {
		return nil
	}
	switch s.rng.IntN(8) {
	case 0:
		s.res.Meddled++
		s.trace("    the client's memory is gone")
		return syscall.EFAULT
	case 1:
		if s.cfg.Checksums {
			s.res.Meddled++
			s.trace("    the client changes it")
			op.Mem[s.rng.IntN(len(op.Mem))] ^= 0x55
		}
	}
	return nil
}

// aimed reports whether an operation is into a client's memory.
func (s *Sim) aimed(op *cache.Op) bool {
	for _, r := range s.reqs {
		if len(r.Target) != 0 {
			from, at := uintptr(unsafe.Pointer(&r.Target[0])), uintptr(unsafe.Pointer(&op.Mem[0]))
			if from <= at && at < from+uintptr(len(r.Target)) {
				return true
			}
		}
	}
	return false
}

// placed looks for a read's data where it is.
func (s *Sim) placed(r *request) {
	if r.Placed && r.Err == nil {
		s.res.Placed++
		copy(r.data, r.Target)
	}
}

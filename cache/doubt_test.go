package cache

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
)

// shortLived is an SSD on which a start dies: it takes so many writes.
type shortLived struct {
	memStorage
	left *int
}

func (s shortLived) WriteAt(p []byte, off int64) (int, error) {
	if *s.left--; *s.left < 0 {
		return 0, syscall.EIO
	}
	return s.memStorage.WriteAt(p, off)
}

// startsDie ends the daemon and lets the next start die after each of its writes in turn, until one has all of them, of
// which there are as many as least. After each, next sees what the start after that makes of it.
func (v *lossy) startsDie(least int, next func(writes int)) {
	v.t.Helper()
	ssd, ring := slices.Clone(v.ssd), slices.Clone(v.opts.Pending)
	v.c.Abandon()
	for writes := 0; ; writes++ {
		copy(v.ssd, ssd)
		copy(v.opts.Pending, ring)
		left := writes
		if c, err := Open(shortLived{v.ssd, &left}, v.opts); err == nil {
			c.Abandon()
			if writes < least {
				v.t.Fatalf("a start with %d writes", writes)
			}
			return
		}
		next(writes)
	}
}

// TestLostStaysLostIfTheStartDies: the start after a loss of the SSD, which had written data in its volatile cache,
// dies after each of its writes in turn, by a kill or by a power cut. What is lost is never read as
// something else.
func TestLostStaysLostIfTheStartDies(t *testing.T) {
	for _, sums := range []bool{true, false} {
		for _, cut := range []bool{false, true} {
			for _, mode := range []Mode{Writeback, Writethrough} {
				t.Run(fmt.Sprintf("checksums=%v,power cut=%v,%v", sums, cut, mode), func(t *testing.T) {
					v := newLossy(t, FormatOptions{NoChecksums: !sums}, mode)
					v.write(9*BlockSize, fill(9, 1))
					v.flush()
					before := bytes.Clone(v.ssd)
					for i := v.c.geo.DataOff; i < int64(len(before)); i++ {
						before[i] = 0x77 // of another time
					}
					v.write(0, fill(1, 1))
					if mode == Writethrough {
						v.wantRead(3*BlockSize, fill(0, 1))
					}
					v.vanish()
					copy(v.ssd, before)
					v.startsDie(4, func(writes int) {
						if cut {
							clear(v.opts.Pending[:pageSize])
						}
						v.restart()
						for _, block := range []int64{0, 3} {
							want := fill(0, 1) // as it was before, or as the backing device has it
							if block == 0 && (mode == Writethrough || !cut) {
								want = fill(1, 1)
							}
							got, err := v.read(block*BlockSize, BlockSize)
							lost := mode == Writeback && block == 0 && errors.Is(err, ErrDirtyBad)
							if !lost && (err != nil || !bytes.Equal(got, want)) {
								t.Errorf("died after %d writes: block %d reads as %x, %v", writes, block, got[:2], err)
							}
						}
					})
				})
			}
		}
	}
}

// TestFailedCommitLeavesOlderRecords: of the pages of a failed commit the first is not on the SSD, and the second says of a block
// that the backing device had it. Then a change of that fails, so the block is dirty in the pending ring. The next start dies
// when it has written the first page anew, which brings the second one back. The start after that must not believe it: the SSD may
// have lost the block, and the backing device has something else.
func TestFailedCommitLeavesOlderRecords(t *testing.T) {
	v := newLossy(t, FormatOptions{NoChecksums: true}, Writethrough)
	const block = pageRecords + 1
	v.write(0, fill(1, block+1))
	v.stuck = func(op *Op) bool { return op.Dev != SSD }
	v.start(&Request{Op: ReqWrite, Off: block * BlockSize, Len: BlockSize, Data: fill(2, 1)})
	v.until("the change", func() bool { return len(v.ops) == 1 && v.stuck(v.ops[0]) })
	v.fail = func(op *Op) error {
		switch {
		case op.Dev == SSD && op.FUA:
			copy(v.ssd[op.Off+pageSize:], op.Mem[pageSize:])
			v.gone = true
			return errMedium
		case op.Dev != SSD && op.Kind == OpWrite:
			copy(v.back[op.Off:], op.Mem[:SectorSize])
			return errMedium
		}
		return v.outcome(op)
	}
	v.start(&Request{Op: ReqFlush})
	v.until("the loss", v.c.ssdHealth.settled.Load)
	v.stuck = nil
	v.until("the failed change", func() bool { return v.b.dirty.Load() == 1 })
	v.fail = v.outcome
	v.startsDie(6, func(writes int) {
		v.restart()
		_, err := v.read(block*BlockSize, BlockSize)
		v.wantError(err, ErrDirtyBad, fmt.Sprintf("the block, if the start dies after %d writes", writes))
	})
}

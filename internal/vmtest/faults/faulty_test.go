//go:build vm

package faults

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// faulty is a device whose table is swapped live for one that fails.
type faulty struct {
	dev, base string
	shift     int64 // where it begins on base, in sectors
	sectors   int64
	from, to  int64 // the sectors that the faults are in
}

func newFaulty(t *testing.T, name, base string) *faulty {
	t.Helper()
	return newShifted(t, name, base, 0)
}

// newShifted begins at that sector of base. Behind the start, an SSD is not found there by its superblock when its
// own device is gone.
func newShifted(t *testing.T, name, base string, shift int64) *faulty {
	t.Helper()
	f := &faulty{base: base, shift: shift, sectors: vmtest.SizeBytes(t, base)/512 - shift}
	f.to = f.sectors
	f.dev = vmtest.Mapper(t, name, f.linear(0, f.sectors))
	return f
}

func (f *faulty) linear(from, to int64) string {
	return fmt.Sprintf("%d %d linear %s %d\n", from, to-from, f.base, f.shift+from)
}

// fault puts a target in the place of sectors from to to: its name, and what follows device and
// offset in its line.
func (f *faulty) fault(t *testing.T, target, args string) {
	t.Helper()
	f.faultAt(t, f.from, f.to, target, args)
}

func (f *faulty) faultAt(t *testing.T, from, to int64, target, args string) {
	t.Helper()
	line := fmt.Sprintf("%d %d error\n", from, to-from)
	if target != "error" {
		line = fmt.Sprintf("%d %d %s %s %d %s\n", from, to-from, target, f.base, f.shift+from, args)
	}
	table := line
	if from > 0 {
		table = f.linear(0, from) + table
	}
	if to < f.sectors {
		table += f.linear(to, f.sectors)
	}
	vmtest.Swap(t, f.dev, table)
}

// flakey lets a part of all requests go wrong: a feature of dm-flakey with its arguments.
func (f *faulty) flakey(t *testing.T, features int, feature string) {
	t.Helper()
	// Never up, down for an hour.
	f.fault(t, "flakey", fmt.Sprintf("0 3600 %d %s", features, feature))
}

func (f *faulty) heal(t *testing.T) {
	t.Helper()
	vmtest.Swap(t, f.dev, f.linear(0, f.sectors))
}

// onlyData has the faults in what holds data, and spares journal and other metadata
// (cache/FORMAT.md: byte 120 of the superblock).
func (f *faulty) onlyData(t *testing.T) {
	t.Helper()
	file, err := os.Open(f.base)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := make([]byte, 128)
	if _, err := file.ReadAt(p, f.shift*512+64<<10); err != nil {
		t.Fatal(err)
	}
	if string(p[:7]) != "UBCACHE" {
		t.Fatal("no superblock")
	}
	f.from = int64(binary.LittleEndian.Uint64(p[120:])) / 512
}

// Sizes in MiB of what these tests use; all data fits into the cache.
const (
	faultSSD     = 64
	faultBacking = 96
	faultRange   = 3 << 20 // bytes of each oracle
)

// stage is a cache on devices that can fail, with load on it.
type stage struct {
	t            *testing.T
	y            *vmtest.Tally
	c            *vmtest.Cache
	ssd, backing *faulty
	dev          string
	oracles      []*vmtest.Oracle
}

func newStage(t *testing.T, fault string, flags ...string) *stage {
	t.Helper()
	vmtest.Modprobe(t, "dm_flakey", "dm_delay")
	return newStageOn(t, fault, vmtest.Slice(t, "ssd", 0, faultSSD), vmtest.Slice(t, "ssd", 512, faultBacking),
		flags...)
}

func newStageOn(t *testing.T, fault, ssd, backing string, flags ...string) *stage {
	t.Helper()
	s := &stage{t: t, y: vmtest.Fault(t, fault)}
	s.ssd = newFaulty(t, "faulty-ssd", ssd)
	s.begin(t, backing, flags)
	s.ssd.onlyData(t)
	return s
}

// begin starts the cache.
func (s *stage) begin(t *testing.T, backing string, flags []string) {
	t.Helper()
	s.backing = newFaulty(t, "faulty-backing", backing)
	s.c = vmtest.NewCache(t, s.ssd.dev)
	s.dev = s.c.Attach(t, s.backing.dev, "data", append(flags, alwaysFlags...)...)
	for i := range 4 {
		s.oracles = append(s.oracles, vmtest.NewOracle(t, s.dev, int64(i)*faultRange, faultRange))
	}
}

// alwaysFlags send everything through the cache, and make what needs a backing device that is gone fail at
// once instead of waiting.
var alwaysFlags = []string{"--sequential-cutoff=0", "--backing-loss=fail"}

// served waits until the device is served and the cache has its backing device.
func (s *stage) served() {
	s.t.Helper()
	vmtest.Wait(s.t, time.Minute, "return of the backing device", func() bool {
		d := s.c.Device(s.t, "data")
		return d.Service == "served" && d.Presence == "present"
	})
}

// keepsDirty makes a cache in writeback that writes nothing back by itself.
var keepsDirty = []string{"--mode=writeback", "--dirty-target=80", "--dirty-max=90", "--writeback-delay=24h"}

// load does n random operations on each of some oracles at once. A failed one is an error that
// should not be, unless allowed says otherwise.
func (s *stage) load(n int, oracles []*vmtest.Oracle, allowed func(o *vmtest.Oracle, op vmtest.OracleOp) bool) {
	s.t.Helper()
	var wg sync.WaitGroup
	for i, o := range oracles {
		rnd := rand.New(rand.NewPCG(uint64(n), uint64(i)+uint64(o.Version())<<8))
		wg.Go(func() {
			for range n {
				op, err := o.Random(s.y, rnd)
				if err != nil && (allowed == nil || !allowed(o, op)) {
					s.y.Failed("under load: %v: %v", op, err)
				}
			}
		})
	}
	wg.Wait()
}

// readAll reads everything; no error is allowed.
func (s *stage) readAll(what string) {
	s.t.Helper()
	for _, o := range s.oracles {
		o.ReadAll(s.y, what, 64, nil)
	}
}

// readSectors reads each block by itself and returns how many of them failed. A block may
// fail only if allowed says so of it.
func (s *stage) readBlocks(what string, o *vmtest.Oracle, allowed func(o *vmtest.Oracle, at int) bool) (failed int) {
	s.t.Helper()
	o.ReadAll(s.y, what, 8, func(at int, err error) {
		failed++
		if !allowed(o, at) {
			s.y.Failed("%s: block of sector %d: %v", what, at, err)
		}
	})
	return failed
}

// writtenBlock allows an error for a block that has been written to.
func writtenBlock(o *vmtest.Oracle, at int) bool { return o.Written(at, 8) }

// end writes everything back, takes the cache away, and compares the backing device.
func (s *stage) end() {
	s.t.Helper()
	if s.t.Failed() {
		return
	}
	for _, o := range s.oracles {
		o.Close()
	}
	vmtest.Ubcache(s.t, "detach", "data")
	for _, o := range s.oracles {
		o.Reopen(s.t, s.backing.dev)
	}
	s.readAll("on the backing device in the end")
}

func (s *stage) stats() vmtest.DeviceStats { return s.c.Stats(s.t).Devices["data"] }

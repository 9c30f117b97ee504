package sim

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"ubcache/attrs"
	"ubcache/cache"
)

// lockedDisk is a Disk for several threads.
type lockedDisk struct {
	mu sync.Mutex
	*Disk
}

func (d *lockedDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Disk.ReadAt(p, off)
}

func (d *lockedDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Disk.WriteAt(p, off)
}

func (d *lockedDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Disk.Sync()
}

// threadLane is a Driver with a thread of its own; operations take effect when its loop comes
// round, on memory.
type threadLane struct {
	l     *cache.Lane
	disks []*lockedDisk // by cache.BackingID
	ops   []*cache.Op
	wake  chan struct{}
	start time.Time
	done  map[uint32]error
	pause func(*cache.Op) // before an operation, if set
}

func (t *threadLane) Submit(op *cache.Op) { t.ops = append(t.ops, op) }

func (t *threadLane) Finish(r *cache.Request) { t.done[r.Tag] = r.Err }

func (t *threadLane) CopyOut(r *cache.Request, off int, dst []byte) error {
	copy(dst, r.Data[off:])
	return nil
}

func (t *threadLane) CopyIn(r *cache.Request, off int, src []byte) error {
	copy(r.Data[off:], src)
	return nil
}

func (t *threadLane) Wake() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *threadLane) Now() int64 { return int64(time.Since(t.start)) + 1 }

func (t *threadLane) Clock() int64 { return t.Now() }

// round does what there is to do and reports whether there was anything.
func (t *threadLane) round() bool {
	select {
	case <-t.wake:
		t.l.Run()
	default:
		if len(t.ops) == 0 {
			return false
		}
	}
	ops := t.ops
	t.ops = nil
	for _, op := range ops {
		d := t.disks[op.Dev]
		if t.pause != nil {
			t.pause(op)
		}
		switch op.Kind {
		case cache.OpRead:
			_, _ = d.ReadAt(op.Mem, op.Off)
		case cache.OpWrite:
			_, _ = d.WriteAt(op.Mem, op.Off)
		case cache.OpFlush:
			_ = d.Sync()
		default:
			_, _ = d.WriteAt(make([]byte, op.Len), op.Off)
		}
		t.l.Complete(op, nil)
	}
	return true
}

func newThreadLane(c *cache.Cache, disks []*lockedDisk) *threadLane {
	t := &threadLane{
		disks: disks, wake: make(chan struct{}, 1), start: time.Now(), done: map[uint32]error{},
	}
	t.l = c.NewLane(t)
	return t
}

// TestParallelLanes lets several threads work on neighbouring blocks of one device, each on its
// own sectors, while the background lane writes back and evicts: what each reads is what it wrote
// last. It is for the race detector as much as for the result.
func TestParallelLanes(t *testing.T) {
	const lanes, perLane = 4, 3000
	ssd := &lockedDisk{Disk: NewDisk(6 << 20)}
	back := &lockedDisk{Disk: NewDisk(8 << 20)}
	if _, err := cache.Format(ssd, cache.FormatOptions{BucketBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(ssd, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tun := cache.DefaultTunables()
	tun.SequentialCutoff, tun.Ordered = 0, true
	b, err := c.Attach(cache.AttachOptions{
		Name: "p", Mode: cache.Writeback, LBS: 512, Tunables: tun,
		Identity: cache.Identity{Size: 8 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.SetAbilities(true, true)
	if err := c.SetTenantQuota(attrs.Tenant{ID: 1}, cache.TenantQuota{Blocks: 200, Share: 50}); err != nil {
		t.Fatal(err)
	}
	disks := []*lockedDisk{ssd, back}

	bg := newThreadLane(c, disks)
	c.StartBackground(bg.l)
	var stop atomic.Bool
	var bgDone, wg sync.WaitGroup
	bgDone.Add(1)
	go func() {
		defer bgDone.Done()
		for !stop.Load() {
			bg.l.Tick()
			if !bg.round() {
				time.Sleep(100 * time.Microsecond) // an idle loop would wait in its ring
			}
		}
	}()
	all := make([]*threadLane, lanes)
	for i := range all {
		all[i] = newThreadLane(c, disks)
		wg.Add(1)
		go func() {
			defer wg.Done()
			last := make([]uint64, int(b.Size())/sectorSize/lanes)
			if err := work(all[i], b, i, lanes, perLane, last); err != nil {
				t.Error(err)
			}
		}()
	}
	seen := int64(0)
	for i := range 40 {
		now := c.Stats().Attributes.ByAttribute["trace"].Seen // under load, too
		if now < seen {
			t.Errorf("%d traced requests, then %d", seen, now)
		}
		seen = now
		_ = c.Traces()
		time.Sleep(5 * time.Millisecond) // modes change under load
		if err := c.SetMode(b.ID(), cache.Mode(i%5)); err != nil {
			t.Error(err)
		}
		if i%6 == 5 { // so does the order
			tun.Ordered = !tun.Ordered
			if err := c.SetTunables(b.ID(), tun); err != nil {
				t.Error(err)
			}
		}
	}
	wg.Wait()
	if c.Stats().Backings[b.ID()].SettledBatches == 0 {
		t.Error("nothing was written back in order")
	}
	s := c.Stats().Attributes
	if a := s.ByAttribute["trace"]; a.Handled != a.Seen || a.Seen < lanes*perLane/6 ||
		len(s.ByPriority) < lanes || len(c.Traces()) == 0 {
		t.Errorf("%+v, %d priorities, %d traces", a, len(s.ByPriority), len(c.Traces()))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Settle(ctx); err != nil {
		t.Fatal(err)
	}
	stop.Store(true)
	bgDone.Wait()
	if p := c.Verify(); len(p) > 0 {
		t.Error(p)
	}
	for _, l := range append(all, bg) {
		l.l.Close()
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// attributesOf are what every thread's counters get something of.
func attributesOf(rng *rand.Rand, lane int) *attrs.Set {
	var set attrs.Set
	set.SetHint(attrs.Hint(rng.IntN(8)))
	set.SetTenant(attrs.Tenant{ID: uint64(rng.IntN(100))})
	set.SetPriority(attrs.Priority{Class: attrs.Class(1 + rng.IntN(3)), Level: uint8(lane)})
	set.SetLifetime(attrs.Lifetime(1 + rng.IntN(5)))
	set.SetTrace(rng.Uint64())
	set.SetTiming()
	set.SetDeadline(time.Hour)
	return &set
}

// work writes and reads the sectors whose number is i modulo lanes; last is what was written to each.
func work(t *threadLane, b *cache.Backing, i, lanes, n int, last []uint64) error {
	rng := rand.New(rand.NewPCG(uint64(i), 3))
	sectors := len(last)
	buf := make([]byte, sectorSize)
	block, target := make([]byte, cache.BlockSize), make([]byte, 2*cache.BlockSize)
	target = target[-uintptr(unsafe.Pointer(&target[0]))%cache.BlockSize:][:cache.BlockSize]
	for k := range n {
		s := rng.IntN(sectors)
		r := &cache.Request{
			Backing: b.ID(), Off: int64(s*lanes+i) * sectorSize, Len: sectorSize, Data: buf,
			Tag: uint32(k),
		}
		want := last[s]
		if rng.IntN(2) == 0 {
			r.Attrs = attributesOf(rng, i)
		}
		if k%50 == 49 {
			r.Op = cache.ReqFlush
		} else if rng.IntN(2) == 0 {
			r.Op = cache.ReqWrite
			r.FUA = rng.IntN(16) == 0
			last[s] = uint64(k + 1)
			for j := 0; j < sectorSize; j += 8 {
				binary.LittleEndian.PutUint64(buf[j:], uint64(k+1))
			}
		}
		at, aimed := 0, r.Op == cache.ReqRead && rng.IntN(2) == 0
		if aimed { // all of the block, into memory that may be the client's
			at = int(r.Off % cache.BlockSize)
			r.Off, r.Len, r.Data, r.Target = r.Off-int64(at), cache.BlockSize, block, target
		}
		t.l.Submit(r)
		for {
			if err, ok := t.done[r.Tag]; ok {
				if err != nil {
					return err
				}
				delete(t.done, r.Tag)
				break
			}
			if !t.round() {
				time.Sleep(20 * time.Microsecond) // as above
			}
		}
		if r.Op == cache.ReqRead {
			got := r.Data[at:]
			if r.Placed {
				got = target[at:]
			} else if aimed {
				return fmt.Errorf("lane %d, request %d: its data is not where it should be", i, k)
			}
			for j := 0; j < sectorSize; j += 8 {
				if got := binary.LittleEndian.Uint64(got[j:]); got != want {
					return fmt.Errorf("lane %d, request %d: sector %d has %d, want %d", i, k, s, got, want)
				}
			}
		}
	}
	return nil
}

package cache

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"ubcache/attrs"
)

// nullDriver completes every operation successfully, at once or, with dev set, on memory.
type nullDriver struct {
	lane *Lane
	ops  []*Op
	ssd  memStorage
	back memStorage
	done int
	now  int64
}

func (d *nullDriver) Submit(op *Op)                       { d.ops = append(d.ops, op) }
func (d *nullDriver) Finish(*Request)                     { d.done++ }
func (d *nullDriver) CopyOut(*Request, int, []byte) error { return nil }
func (d *nullDriver) CopyIn(*Request, int, []byte) error  { return nil }
func (d *nullDriver) Wake()                               {}
func (d *nullDriver) Now() int64                          { return d.now }
func (d *nullDriver) Clock() int64                        { return d.now }

// run completes what is under way.
func (d *nullDriver) run() {
	for len(d.ops) > 0 {
		op := d.ops[len(d.ops)-1]
		d.ops = d.ops[:len(d.ops)-1]
		if d.ssd != nil {
			dev := d.ssd
			if op.Dev != SSD {
				dev = d.back
			}
			switch op.Kind {
			case OpRead:
				copy(op.Mem, dev[op.Off:])
			case OpWrite:
				copy(dev[op.Off:], op.Mem)
			}
		}
		d.lane.Complete(op, nil)
	}
}

// do plays a request to its end; tick lets the background work, too.
func (d *nullDriver) do(r *Request) error {
	d.done = 0
	d.lane.Submit(r)
	for d.run(); d.done == 0; d.tick() {
		continue
	}
	return r.Err
}

func (d *nullDriver) tick() {
	d.now += int64(tickEvery)
	d.lane.Tick()
	for d.run(); ; d.run() {
		if d.lane.Run(); len(d.ops) == 0 {
			return
		}
	}
}

const benchBlocks = 4096

// newBenchCache is a cache in memory with benchBlocks clean blocks, and its lane.
func newBenchCache(b *testing.B, o FormatOptions) (*Cache, *nullDriver, *Backing) {
	b.Helper()
	d := &nullDriver{
		now: 1, ssd: make(memStorage, 128<<20), back: make(memStorage, benchBlocks*BlockSize),
	}
	if _, err := Format(d.ssd, o); err != nil {
		b.Fatal(err)
	}
	c, err := Open(d.ssd, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Abandon)
	d.lane = c.NewLane(d)
	c.StartBackground(d.lane)
	back := attachBench(b, c, benchBlocks*BlockSize)
	data := alignedBytes(len(d.back))
	for i := 0; i < len(data); i += BlockSize {
		data[i] = byte(i / BlockSize)
	}
	for off := 0; off < len(data); off += regionBytes {
		err := d.do(&Request{
			Backing: back.ID(), Op: ReqWrite, Off: int64(off), Len: regionBytes,
			Data: data[off:][:regionBytes],
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return c, d, back
}

func attachBench(b *testing.B, c *Cache, size int64) *Backing {
	b.Helper()
	tun := DefaultTunables()
	tun.SequentialCutoff, tun.WritebackDelay = 0, time.Hour
	back, err := c.Attach(AttachOptions{
		Name: "disk", Mode: Writeback, LBS: 512, Identity: Identity{Size: size}, Tunables: tun,
		UUID: UUID{0xb},
	})
	if err != nil {
		b.Fatal(err)
	}
	back.SetAbilities(true, true)
	return back
}

// received makes a set one that has come from a client: those that say the same have a stamp in common.
func received(b *testing.B, s *attrs.Set) {
	b.Helper()
	raw := make([]byte, attrs.MaxBytes)
	n, err := s.Encode(raw)
	if err == nil {
		err = new(attrs.SetDecoder).Decode(s, raw[:n])
	}
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkHit is a 4 KiB read hit without any device: what the engine itself costs. With
// checksums nearly all of it is the checksum.
func BenchmarkHit(b *testing.B) {
	var some attrs.Set
	some.SetHint(attrs.HintCache)
	some.SetPriority(attrs.Priority{Class: attrs.ClassRT})
	some.SetTenant(attrs.Tenant{ID: 5})
	received(b, &some)
	for _, m := range []struct {
		name   string
		copied bool
		set    *attrs.Set
	}{
		{"zero-copy", false, nil},
		{"copy", true, nil},
		{"zero-copy, attributes", false, &some},
		{"copy, all attributes", true, everything(nil)},
	} {
		b.Run(m.name, func(b *testing.B) {
			_, d, back := newBenchCache(b, FormatOptions{NoChecksums: !m.copied})
			data := alignedBytes(benchBlocks * BlockSize)
			if err := d.do(&Request{Backing: back.ID(), Len: int64(len(data)), Data: data}); err != nil {
				b.Fatal(err)
			}
			d.ssd = nil // data is right already
			r := &Request{
				Backing: back.ID(), Op: ReqRead, Len: BlockSize, Attrs: m.set,
				Results: &attrs.Results{},
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				r.Off = int64(i) * 2741 % benchBlocks * BlockSize
				if m.copied {
					r.Data = data[r.Off:][:BlockSize:BlockSize]
				}
				d.lane.Submit(r)
				d.run()
			}
			b.StopTimer()
			if s := d.lane.c.Stats().Backings[back.ID()]; r.Err != nil || s.MissBlocks+s.HealedBlocks > 0 {
				b.Fatalf("not only hits: %+v, %v", s, r.Err)
			}
		})
	}
}

// BenchmarkWrite is a 4 KiB overwrite in writeback mode on memory, with the commits, checkpoints
// and evictions that it causes.
func BenchmarkWrite(b *testing.B) {
	for _, copied := range []bool{false, true} {
		b.Run(map[bool]string{false: "zero-copy", true: "copy"}[copied], func(b *testing.B) {
			_, d, back := newBenchCache(b, FormatOptions{NoChecksums: !copied})
			r := &Request{Backing: back.ID(), Op: ReqWrite, Len: BlockSize}
			if copied {
				r.Data = alignedBytes(BlockSize)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				r.Off = int64(i) * 2741 % benchBlocks * BlockSize
				if err := d.do(r); err != nil {
					b.Fatal(err)
				}
				if i%256 == 0 {
					d.tick()
				}
			}
		})
	}
}

// sparseFile is a device whose holes cost nothing.
type sparseFile struct{ *os.File }

func (f sparseFile) Size() int64 {
	i, err := f.Stat()
	if err != nil {
		panic(err)
	}
	return i.Size()
}

// BenchmarkIndex loads the index of a full cache of 64 GiB: 16 Mi blocks of 4 KiB at random
// places. It reports resident memory a block, all of the cache's state included, and the time; and for
// a start after a stop in order how long it takes until the first request is answered, and until all is
// loaded beside that.
func BenchmarkIndex(b *testing.B) {
	const blocks = 16 << 20
	name := filepath.Join(b.TempDir(), "ssd")
	makeFull(b, name, blocks)
	for range b.N {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		debug.FreeOSMemory()
		before, start := residentBytes(b), time.Now()
		c, err := Open(sparseFile{f}, Options{Load: LoadOptions{Blocks: -1}})
		if err != nil {
			b.Fatal(err)
		}
		took := time.Since(start)
		debug.FreeOSMemory()
		used := residentBytes(b) - before
		if n := c.Status().Backings[0].CachedBytes / BlockSize; n != blocks {
			b.Fatalf("%d blocks are cached, not %d", n, blocks)
		}
		b.ReportMetric(float64(used)/blocks, "B/block")
		b.ReportMetric(took.Seconds(), "load-s")
		c.closing.Store(true) // all summaries are written
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		debug.FreeOSMemory()
		firstIO(b, sparseFile{f}, blocks)
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCrashStart starts the cache of [BenchmarkIndex] after a crash: half of the journal, which is where checkpoints begin,
// is overwrites of blocks at random places. It reports how many records that is, and the time until the first request is answered.
func BenchmarkCrashStart(b *testing.B) {
	const blocks = 16 << 20
	name := filepath.Join(b.TempDir(), "ssd")
	makeFull(b, name, blocks)
	records := overwrite(b, name, blocks)
	for range b.N {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		c, err := Open(sparseFile{f}, Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "crash-start-s")
		b.ReportMetric(float64(records)/1e6, "Mrecords")
		if n := c.Status().Backings[0].DirtyBytes / BlockSize; n < int64(records)*9/10 {
			b.Fatalf("%d blocks are dirty after %d records", n, records)
		}
		c.Abandon()
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// overwrite fills half of the journal: bucket after bucket is emptied and filled with dirty blocks.
func overwrite(b *testing.B, name string, blocks int64) (records int) {
	b.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	c, err := Open(sparseFile{f}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Abandon()
	var recs []record
	per := c.geo.slotsPerBucket()
	most := int(c.geo.JournalPages/2) * pageRecords
	for id := BucketID(0); len(recs)+int(per) < most; id++ {
		recs = append(recs, record{kind: recFree, slot: uint32(id)})
		for i := range per {
			slot := int64(id)*per + i
			s := uint64(slot) * 0x85ebca6b % uint64(blocks)
			recs = append(recs, record{
				kind: recMap, mask: fullMask, flags: recDirty, backing: 1, slot: uint32(slot),
				block: Block(s * 0x9e3779b1 % uint64(2*blocks)),
			})
		}
	}
	if err := c.commitBlocking(&c.journal, c.journal.mu.next, recs); err != nil {
		b.Fatal(err)
	}
	return len(recs)
}

// firstIO opens the cache and reads a block at once.
func firstIO(b *testing.B, f sparseFile, blocks int64) {
	b.Helper()
	start := time.Now()
	c, err := Open(f, Options{})
	if err != nil {
		b.Fatal(err)
	}
	d := &fileDriver{ssd: f, begun: start}
	l := c.NewLane(d)
	c.StartBackground(l)
	p := alignedBytes(BlockSize)
	l.Submit(&Request{Backing: 1, Op: ReqRead, Off: 1 << 30, Len: BlockSize, Data: p})
	l.Tick() // the loading begins; in the daemon that is another thread
	for !d.done {
		d.step(b, l)
	}
	first := time.Since(start)
	if c.Loading().Percent == 100 {
		b.Fatal("everything was loaded before the first request")
	}
	for c.Loading().Percent < 100 {
		l.Tick()
		for len(d.ops) > 0 {
			d.step(b, l)
		}
	}
	b.ReportMetric(float64(first.Microseconds())/1000, "first-io-ms")
	b.ReportMetric(time.Since(start).Seconds(), "late-load-s")
	// The block that was read may have been one of them.
	if n := c.Status().CachedBytes / BlockSize; n != blocks && n != blocks+1 {
		b.Fatalf("%d blocks are cached, not %d", n, blocks)
	}
	if n := c.Loading().LostPages; n != 0 {
		b.Fatalf("%d pages are lost", n)
	}
	c.Abandon()
}

// fileDriver does I/O on a file, one operation after the other; the backing device is full of zeroes.
type fileDriver struct {
	ssd   sparseFile
	begun time.Time
	ops   []*Op
	done  bool
}

func (d *fileDriver) Submit(op *Op)                       { d.ops = append(d.ops, op) }
func (d *fileDriver) Finish(*Request)                     { d.done = true }
func (d *fileDriver) CopyOut(*Request, int, []byte) error { return nil }
func (d *fileDriver) CopyIn(*Request, int, []byte) error  { return nil }
func (d *fileDriver) Wake()                               {}
func (d *fileDriver) Now() int64                          { return int64(time.Since(d.begun)) + 1 }
func (d *fileDriver) Clock() int64                        { return d.Now() }

func (d *fileDriver) step(b *testing.B, l *Lane) {
	b.Helper()
	if len(d.ops) > 0 {
		op := d.ops[0]
		d.ops = d.ops[1:]
		var err error
		switch {
		case op.Kind == OpRead && op.Dev == SSD:
			_, err = d.ssd.ReadAt(op.Mem[:op.Len], op.Off)
		case op.Kind == OpRead:
			clear(op.Mem[:op.Len])
		case op.Kind == OpWrite && op.Dev == SSD:
			_, err = d.ssd.WriteAt(op.Mem[:op.Len], op.Off)
		}
		if err != nil {
			b.Fatal(err)
		}
		l.Complete(op, nil)
	}
	l.Run()
}

// makeFull makes a cache on a file whose summaries say that every slot of it holds a clean block.
func makeFull(b *testing.B, name string, blocks int64) {
	b.Helper()
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	// Two pages of summaries a bucket, the journal, and the start.
	buckets := blocks * BlockSize / defaultBucketBytes
	size := blocks*BlockSize + buckets*2*pageSize + 1<<30
	size -= size % pageSize
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	if _, err := Format(sparseFile{f}, FormatOptions{}); err != nil {
		b.Fatal(err)
	}
	c, err := Open(sparseFile{f}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Abandon()
	back := attachBench(b, c, 2*blocks*BlockSize)
	for s := range Slot(blocks) {
		// An odd factor makes it a permutation of twice as many blocks, half of them cached.
		k := makeKey(back.ID(), Block(uint64(s)*0x9e3779b1%uint64(2*blocks)))
		c.index.insert(k, entry{slot: s, st: state(fullMask), sum: uint32(s)})
	}
	page := alignedBytes(int(c.geo.summaryPages() * pageSize))
	for i := range buckets {
		c.snapshot(BucketID(i), 1, page)
		for n := range 2 {
			off := c.geo.summaryOff(n, BucketID(i))
			sealSummary(page, off)
			if _, err := f.WriteAt(page, off); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// residentBytes is the process's anonymous memory in RAM.
func residentBytes(b *testing.B) (n int64) {
	b.Helper()
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "Anonymous: %d kB", &n); err == nil {
			return n << 10
		}
	}
	b.Fatal("no Anonymous in smaps_rollup")
	return 0
}

//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killRow is a series of kills with one kind of cache.
type killRow struct {
	name   string
	kills  int
	mode   string
	format []string
}

func killRows(t testing.TB) []killRow {
	if !Full(t) {
		return []killRow{{"writeback", 5, "writeback", nil}}
	}
	return []killRow{
		{"writeback", 10, "writeback", nil},
		{"writeback-nosums", 5, "writeback", []string{"--no-checksums"}},
		{"writethrough", 5, "writethrough", nil},
	}
}

// TestKill kills the daemon again and again under fio, which verifies what it writes, and starts it
// again: writers wait, and none sees an error, an old block or half of one.
func TestKill(t *testing.T) {
	for _, r := range killRows(t) {
		t.Run(r.name, func(t *testing.T) {
			Limit(t, 4*time.Minute)
			r.run(t)
		})
	}
}

func (r killRow) run(t *testing.T) {
	c := NewCache(t, Slice(t, "ssd", 0, 96), r.format...)
	const backingMiB = 192
	dev := c.Attach(t, Slice(t, "ssd", 1024, backingMiB), "data", "--mode="+r.mode, "--sequential-cutoff=0")
	load := startLoad(dev)
	t.Cleanup(func() { load.over.Store(true) })
	probe := startProbe(t, dev, (backingMiB-1)<<20)
	y := Fault(t, "daemon killed (kill -9), "+r.name)
	rnd := rand.New(rand.NewPCG(uint64(r.kills), 3))
	var pauses, beyond []time.Duration
	for range repeats(t, r.kills) {
		y.Tried(1)
		// Load and probe are well under way, and the moment is another one each time.
		seen := c.Stats(t).Devices["data"].Writes
		Wait(t, time.Minute, "writes", func() bool {
			return c.Stats(t).Devices["data"].Writes > seen+100 || load.failed() || probe.failed()
		})
		time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond)
		probe.longest.Store(0)
		c.Kill(t)
		before := probe.done.Load()
		begin := time.Now()
		c.Start(t)
		restart := time.Since(begin)
		// One of these was under way at the kill, or began after it.
		Wait(t, time.Minute, "the probe's next write", func() bool {
			return probe.done.Load() > before+1 || probe.failed()
		})
		pause := time.Duration(probe.longest.Load())
		pauses, beyond = append(pauses, pause), append(beyond, pause-restart)
		if err := errors.Join(load.err(), probe.err()); err != nil {
			y.Load(err)
			return
		}
	}
	rounds := load.stop()
	if err := errors.Join(load.err(), probe.stop()); err != nil {
		y.Load(err)
		return
	}
	n := len(pauses)
	slices.Sort(pauses)
	median := notBeyondRestart(t, beyond)
	fmt.Printf("%s: %d kills, pause min %d ms, median %d ms, max %d ms, of it beyond the restart %d ms (median); "+
		"fio ended %d rounds, probe wrote %d blocks\n", t.Name(), n, pauses[0].Milliseconds(),
		pauses[n/2].Milliseconds(), pauses[n-1].Milliseconds(), median.Milliseconds(), rounds, probe.done.Load())
	if rounds == 0 {
		t.Error("fio has not verified anything")
	}
}

// load is fio, once and again until it is stopped. Each round writes and then verifies.
type load struct {
	wg     sync.WaitGroup
	over   atomic.Bool
	rounds int
	fault  atomic.Pointer[error]
}

func startLoad(dev string) *load {
	l := &load{}
	l.wg.Go(func() {
		for !l.over.Load() {
			_, err := TryFio(dev, 3*time.Minute,
				"numjobs=2", "size=64m", "offset_increment=64m", "io_size=24m", "iodepth=16",
				"rw=randwrite", "norandommap=1", "serialize_overlap=1", "blockalign=512",
				"bssplit=512/15:2560/10:4k/40:12k/15:64k/15:256k/5",
				"verify=crc32c", "verify_fatal=1", "verify_backlog=300", "verify_backlog_batch=150",
				"fsync=50", fmt.Sprint("randseed=", l.rounds+1))
			if err != nil {
				l.fault.Store(&err)
				return
			}
			l.rounds++
		}
	})
	return l
}

func (l *load) failed() bool { return l.fault.Load() != nil }

func (l *load) err() error {
	if e := l.fault.Load(); e != nil {
		return *e
	}
	return nil
}

// stop waits for the end of the present round and returns how many there were.
func (l *load) stop() int {
	l.over.Store(true)
	l.wg.Wait()
	return l.rounds
}

// probe writes and reads back one block all the time; its slowest request is the pause that a
// writer sees.
type probe struct {
	wg      sync.WaitGroup
	over    atomic.Bool
	done    atomic.Int64 // blocks written and read back
	longest atomic.Int64 // nanoseconds, since it was last set to zero
	fault   atomic.Pointer[error]
}

func startProbe(t testing.TB, dev string, off int64) *probe {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	out, in := mem[:4096], mem[4096:]
	p := &probe{}
	p.wg.Go(func() {
		defer func() { _ = errors.Join(f.Close(), unix.Munmap(mem)) }()
		for i := uint64(1); !p.over.Load(); i++ {
			Fill(out, i)
			at := off + int64(i%64)*4096
			err := errors.Join(
				p.timed(func() error { _, err := f.WriteAt(out, at); return err }),
				p.timed(func() error { _, err := f.ReadAt(in, at); return err }))
			if err == nil && !bytes.Equal(in, out) {
				err = fmt.Errorf("probe: read back %s at %d", errProbe, at)
			}
			if err != nil {
				p.fault.Store(&err)
				return
			}
			p.done.Add(1)
		}
	})
	// A test that fails does not wait for it: its I/O may hang until the device is deleted.
	t.Cleanup(func() { p.over.Store(true) })
	return p
}

func (p *probe) timed(do func() error) error {
	start := time.Now()
	err := do()
	if took := int64(time.Since(start)); took > p.longest.Load() {
		p.longest.Store(took)
	}
	return err
}

func (p *probe) failed() bool { return p.fault.Load() != nil }

func (p *probe) err() error {
	if e := p.fault.Load(); e != nil {
		return *e
	}
	return nil
}

func (p *probe) stop() error {
	p.over.Store(true)
	p.wg.Wait()
	return p.err()
}

// TestKillUnderFileSystem kills the daemon while files are copied into a mounted filesystem.
func TestKillUnderFileSystem(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 256))
	dev := c.Attach(t, Slice(t, "slow", 0, 1024), "data", writeback...)
	y := Fault(t, "daemon killed under a filesystem")
	fileSystems[0].Create(t, dev)
	src, want := newTree(t, 800, 5)
	mounted(t, dev, func(dir string) {
		var copied atomic.Bool
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				to := filepath.Join(dir, fmt.Sprintf("copy-%d", i))
				// sync makes the copy go to the device now, into the kills.
				if _, err := Try(t, "sh", "-c", "cp -a --sparse=always "+src+" "+to+" && sync -f "+to); err != nil {
					t.Error(err)
					return
				}
				want.Compare(t, to, ListTree(t, to))
				copied.Store(true)
			}
		})
		for range 4 {
			seen := c.Stats(t).Devices["data"].Writes
			Wait(t, time.Minute, "writes", func() bool { return c.Stats(t).Devices["data"].Writes > seen+20 })
			c.Kill(t)
			c.Start(t)
			y.Tried(1)
		}
		Wait(t, 2*time.Minute, "a whole copy", func() bool { return copied.Load() || t.Failed() })
		cancel()
		wg.Wait()
	})
	fileSystems[0].Verify(t, dev)
	mounted(t, dev, func(dir string) {
		want.Compare(t, "first copy", ListTree(t, filepath.Join(dir, "copy-0")))
	})
}

//go:build vm

package vmtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fragile is an SSD that can be made to fail, by another device-mapper table under the daemon.
type fragile struct {
	t       testing.TB
	dev     string
	good    string
	sectors int64
}

func newFragile(t testing.TB, sizeMiB int) *fragile {
	t.Helper()
	below := Slice(t, "ssd", 0, sizeMiB)
	// Shifted, so that what lies below is not taken for the SSD under another name.
	const shift = 2048
	f := &fragile{t: t, sectors: SizeBytes(t, below)/512 - shift}
	f.good = fmt.Sprintf("0 %d linear %s %d", f.sectors, below, shift)
	f.dev = Mapper(t, "fragile", f.good)
	t.Cleanup(f.back)
	return f
}

func (f *fragile) table(table string) {
	f.t.Helper()
	Run(f.t, "dmsetup", "suspend", "--noflush", "--nolockfs", f.dev)
	Run(f.t, "dmsetup", "load", f.dev, "--table", table)
	Run(f.t, "dmsetup", "resume", f.dev)
}

// vanish makes every I/O fail.
func (f *fragile) vanish() { f.t.Helper(); f.table(fmt.Sprintf("0 %d error", f.sectors)) }
func (f *fragile) back()   { f.t.Helper(); f.table(f.good) }

// stall makes every I/O hang, until back.
func (f *fragile) stall() {
	f.t.Helper()
	Run(f.t, "dmsetup", "suspend", "--noflush", "--nolockfs", f.dev)
}

// device is a cached device that is read and written past the page cache.
type device struct {
	t   testing.TB
	y   *Tally
	f   *os.File
	mem []byte
}

func openDevice(t testing.TB, y *Tally, path string) *device {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &device{t, y, f, mem}
}

func (d *device) write(off int64, v byte, n int) error {
	copy(d.mem, bytes.Repeat([]byte{v}, n))
	_, err := d.f.WriteAt(d.mem[:n], off)
	return err
}

var errOther = errors.New("other data")

func (d *device) read(off int64, v byte, n int) error {
	if _, err := d.f.ReadAt(d.mem[:n], off); err != nil {
		return err
	}
	if !bytes.Equal(d.mem[:n], bytes.Repeat([]byte{v}, n)) {
		return fmt.Errorf("read at %d has %d instead of %d: %w", off, d.mem[0], v, errOther)
	}
	return nil
}

func (d *device) must(err error) {
	d.t.Helper()
	switch {
	case errors.Is(err, errOther):
		d.y.Wrong("%v", err)
		d.t.FailNow()
	case err != nil:
		d.y.Failed("%v", err)
		d.t.FailNow()
	}
}

// mustFail ends the test if what nobody has any more was read.
func (d *device) mustFail(what string, err error) {
	d.t.Helper()
	switch {
	case err == nil || errors.Is(err, errOther):
		d.y.Wrong("%s: %v", what, err)
		d.t.FailNow()
	case !errors.Is(err, syscall.EIO):
		d.t.Fatalf("%s: %v", what, err)
	}
}

// TestSSDLoss takes the SSD away under a running cache and brings it back.
func TestSSDLoss(t *testing.T) {
	for _, k := range []struct {
		name string
		test func(*testing.T, *Tally)
		full bool
	}{
		{"clean data, fio goes on", lossClean, false},
		{"dirty data, I/O waits", lossHeld, false},
		{"dirty data, ssd-loss=error", lossDirty, false},
		{"dirty data, ssd-loss=read-only", lossReadOnly, true},
		{"dirty data, ssd-loss=stop", lossStop, true},
		{"stalls", lossStall, false},
	} {
		t.Run(k.name, func(t *testing.T) {
			if k.full {
				OnlyFull(t)
			}
			Limit(t, 5*time.Minute)
			k.test(t, Fault(t, "SSD lost: "+k.name))
		})
	}
}

// lossClean: fio writes and verifies without an error while the SSD vanishes and comes back, by which the
// daemon starts anew, with an empty cache for what the SSD has missed.
func lossClean(t *testing.T, y *Tally) {
	ssd := newFragile(t, 96)
	c := NewCache(t, ssd.dev)
	dev := c.Attach(t, Slice(t, "ssd", 1024, 192), "data", "--mode=writethrough", "--sequential-cutoff=0")
	pid := c.Status(t).PID
	load := startLoad(dev)
	t.Cleanup(func() { load.over.Store(true) })
	for range 2 {
		seen := c.Stats(t).Devices["data"].Writes
		Wait(t, time.Minute, "writes", func() bool {
			return c.Stats(t).Devices["data"].Writes > seen+200 || load.failed()
		})
		y.Tried(1)
		ssd.vanish()
		WaitSSD(t, "lost")
		seen = c.Stats(t).Devices["data"].Writes
		Wait(t, time.Minute, "writes without the SSD", func() bool {
			return c.Stats(t).Devices["data"].Writes > seen+200 || load.failed()
		})
		t.Logf("%s", Ubcache(t, "status"))
		if left, _ := filepath.Glob("/var/lib/ubcache/missed/*"); len(left) != 1 {
			t.Errorf("markers: %v", left)
		}
		ssd.back()
		WaitSSD(t, "ok")
	}
	load.stop()
	if err := load.err(); err != nil {
		y.Load(err)
		t.FailNow()
	}
	if left, _ := filepath.Glob("/var/lib/ubcache/missed/*"); len(left) != 0 {
		t.Errorf("markers are left: %v", left)
	}
	if now := c.Status(t).PID; now != pid {
		t.Errorf("process %d runs instead of %d", now, pid)
	}
}

// lossHeld: the SSD is away for less than requests wait. No error, and dirty data is there again.
func lossHeld(t *testing.T, y *Tally) {
	ssd := newFragile(t, 96)
	c := NewCache(t, ssd.dev)
	dev := c.Attach(t, Slice(t, "slow", 0, 192), "data", "--mode=writeback", "--ssd-loss-hold=2m",
		"--writeback-delay=1h", "--dirty-target=60")
	d := openDevice(t, y, dev)
	d.must(d.write(0, 1, 1<<20))
	d.must(d.f.Sync())
	d.must(d.write(1<<20, 2, 1<<20)) // not flushed: its records are in the pending ring at most
	y.Tried(1)
	ssd.vanish()
	done := make(chan error, 1)
	e := openDevice(t, y, dev)
	go func() {
		done <- errors.Join(e.read(0, 1, 1<<20), e.read(1<<20, 2, 1<<20), e.write(0, 3, 4096), e.f.Sync())
	}()
	WaitSSD(t, "lost")
	select {
	case err := <-done:
		y.Failed("what needs the SSD did not wait for it: %v", err)
		t.FailNow()
	case <-time.After(time.Second):
	}
	ssd.back()
	WaitSSD(t, "ok")
	select {
	case err := <-done:
		d.must(err)
	case <-time.After(time.Minute):
		y.Failed("requests go on waiting")
		t.FailNow()
	}
	d.must(d.read(0, 3, 4096))
	d.must(d.read(4096, 1, 1<<20-4096))
	if n := c.Device(t, "data").DirtyBytes; n != 2<<20 {
		t.Errorf("%d bytes are dirty", n)
	}
}

// lossDirty: after the hold dirty sectors fail, and no others. The SSD that comes back is refused by the
// running daemon and by the next, which says what to do.
func lossDirty(t *testing.T, y *Tally) {
	ssd := newFragile(t, 96)
	c := NewCache(t, ssd.dev)
	dev := c.Attach(t, Slice(t, "slow", 0, 192), "data", "--mode=writeback", "--ssd-loss-hold=1s",
		"--writeback-delay=1h", "--dirty-target=60")
	d := openDevice(t, y, dev)
	d.must(d.write(0, 1, 64<<10))
	d.must(d.f.Sync())
	y.Tried(1)
	ssd.vanish()
	d.mustFail("read of dirty data", d.read(4096, 1, 4096))
	d.must(d.read(128<<10, 0, 64<<10))
	d.must(d.write(4096, 5, 4096))
	d.must(d.read(4096, 5, 4096))
	d.mustFail("read of other dirty data", d.read(8192, 1, 512))
	d.must(d.f.Sync())
	pid := c.Status(t).PID
	ssd.back()
	Wait(t, time.Minute, "word of the SSD that is back", func() bool {
		log, _ := os.ReadFile(runtimeDir + "/main.log")
		return bytes.Contains(log, []byte("is back, but is not used"))
	})
	if s := c.Status(t); s.Cache.SSDState != "lost" || s.PID != pid {
		t.Errorf("the SSD is %s, process %d (was %d)", s.Cache.SSDState, s.PID, pid)
	}
	d.must(d.read(4096, 5, 4096))
	d.must(d.f.Close())
	Ubcache(t, "stop")
	Refused(t, refused, "--drop data", "start")
	Ubcache(t, "start", "--drop", "data")
	d = openDevice(t, y, c.Device(t, "data").Path)
	d.must(d.read(4096, 5, 4096))
	d.must(d.read(8192, 0, 4096))
	d.must(d.f.Close())
}

// lossReadOnly: after the hold dirty sectors fail, and every change.
func lossReadOnly(t *testing.T, y *Tally) {
	d := lossOf(t, y, "read-only")
	d.must(d.read(128<<10, 0, 64<<10))
	d.mustFail("write of other sectors", d.write(128<<10, 5, 4096))
	d.must(d.read(128<<10, 0, 64<<10))
	d.mustFail("write of dirty data", d.write(4096, 5, 4096))
	d.must(d.f.Close())
}

// lossStop: after the hold everything fails.
func lossStop(t *testing.T, y *Tally) {
	d := lossOf(t, y, "stop")
	d.mustFail("read of other sectors", d.read(128<<10, 0, 4096))
	d.mustFail("write of other sectors", d.write(128<<10, 5, 4096))
	d.must(d.f.Close())
}

// lossOf loses the SSD with 64 KiB of dirty data, beyond the hold. When the SSD is back, nothing has changed meanwhile,
// and all is there again.
func lossOf(t *testing.T, y *Tally, policy string) *device {
	t.Helper()
	ssd := newFragile(t, 96)
	c := NewCache(t, ssd.dev)
	dev := c.Attach(t, Slice(t, "slow", 0, 192), "data", "--mode=writeback", "--ssd-loss-hold=1s", "--ssd-loss="+policy,
		"--writeback-delay=1h", "--dirty-target=60")
	d := openDevice(t, y, dev)
	d.must(d.write(0, 1, 64<<10))
	d.must(d.f.Sync())
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		ssd.back()
		WaitSSD(t, "ok")
		d := openDevice(t, y, dev)
		d.must(d.read(0, 1, 64<<10))
		d.must(d.read(128<<10, 0, 64<<10))
		d.must(d.f.Close())
	})
	y.Tried(1)
	ssd.vanish()
	WaitSSD(t, "lost")
	d.mustFail("read of dirty data", d.read(4096, 1, 4096))
	return d
}

// lossStall: while the SSD hangs, reads of what the disk has go there; afterwards all is as before.
func lossStall(t *testing.T, y *Tally) {
	ssd := newFragile(t, 96)
	c := NewCache(t, ssd.dev)
	c.SetSSDLimits(t, "1s", "5m")
	dev := c.Attach(t, Slice(t, "slow", 0, 192), "data", "--mode=writethrough", "--sequential-cutoff=0")
	d := openDevice(t, y, dev)
	d.must(d.write(0, 1, 1<<20))
	d.must(d.f.Sync())
	Ubcache(t, "flush", "data")
	hits := c.Stats(t).Devices["data"].HitBlocks
	d.must(d.read(0, 1, 1<<20))
	if now := c.Stats(t).Devices["data"].HitBlocks; now != hits+256 {
		t.Fatalf("%d hits, expected 256", now-hits)
	}
	y.Tried(1)
	ssd.stall()
	stuck := make(chan error, 1)
	e := openDevice(t, y, dev)
	go func() { stuck <- e.read(0, 1, 4096) }()
	WaitSSD(t, "slow")
	start := time.Now()
	d.must(d.read(0, 1, 1<<20))
	d.must(d.write(64<<20, 2, 4096))
	d.must(d.read(64<<20, 2, 4096))
	t.Logf("read and wrote in %v without the SSD", time.Since(start).Round(time.Millisecond))
	select {
	case err := <-stuck: // the SSD had begun it, and has it still
		d.must(err)
	case <-time.After(30 * time.Second):
		y.Failed("a read that the SSD had begun goes on waiting")
	}
	ssd.back()
	WaitSSD(t, "ok")
	hits = c.Stats(t).Devices["data"].HitBlocks
	d.must(d.read(0, 1, 1<<20))
	if now := c.Stats(t).Devices["data"].HitBlocks; now != hits+256 {
		t.Errorf("%d hits after the stall, expected 256", now-hits)
	}
}

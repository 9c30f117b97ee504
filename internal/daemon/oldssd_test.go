package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "ubcache/attrs/client"
	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/control"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// oldBench has a cache of which older copies of the SSD are put in its place.
type oldBench struct {
	*directBench
	ssd  string
	user *blockdev.Device // has a device for itself
}

func newOldBench(t *testing.T, mode string) *oldBench {
	b := &oldBench{directBench: newDirectBench(t, directOptions{mode: mode})}
	b.ssd = filepath.Join(b.dir, "ssd")
	for _, name := range []string{"disk0", "disk1"} {
		_, err := b.set(context.Background(), control.SetArgs{Name: name, Settings: map[string]string{
			"writeback-delay": "1h", "ssd-loss-hold": "0s",
		}}, nil)
		must(t, err)
	}
	return b
}

func (b *oldBench) write(v byte) {
	b.t.Helper()
	d := b.open(api.Options{})
	must(b.t, b.writeAt(d, 0, v, 8192))
	b.flushed(d)
	closeDevice(b.t, d)
}

func (b *oldBench) want(v byte) {
	b.t.Helper()
	d := b.open(api.Options{})
	b.wantAt(d, 0, v, 8192)
	closeDevice(b.t, d)
}

func (b *oldBench) drain() {
	b.t.Helper()
	_, err := b.flush(context.Background(), control.NameArgs{Name: "disk0"}, func(control.Progress) {})
	must(b.t, err)
}

func (b *oldBench) stop() {
	b.t.Helper()
	must(b.t, b.Stop(context.Background(), true))
	b.notNewer()
}

// swap puts an older copy, or a newer one, in the SSD's place, which it moves to away.
func (b *oldBench) swap(in, away string) {
	b.t.Helper()
	must(b.t, os.Rename(b.ssd, b.ssd+away))
	copyImage(b.t, b.ssd+in, b.ssd)
}

// start starts the cache with an option of start.
func (b *oldBench) start(o Options) error {
	b.t.Helper()
	with := b.opts
	with.Drop, with.Keep = o.Drop, o.Keep
	in, err := Start(context.Background(), with)
	if err == nil {
		b.Instance = in
		b.notNewer()
	}
	return err
}

// refused wants that the start is refused, in one line that names the ways out.
func (b *oldBench) refused() {
	b.t.Helper()
	before := head(b.t, b.ssd)
	err := b.start(Options{})
	if report.CodeOf(err) != report.Refused || strings.Contains(err.Error(), "\n") ||
		!strings.Contains(err.Error(), "older copy") || !strings.Contains(err.Error(), "--drop disk0") ||
		!strings.Contains(err.Error(), "--keep disk0") {
		b.t.Fatalf("start with an older copy: %v", err)
	}
	if head(b.t, b.ssd) != before {
		b.t.Error("the refused start has changed the SSD")
	}
}

// notNewer checks what the comparison at the start counts on.
func (b *oldBench) notNewer() {
	b.t.Helper()
	kept, err := missed.ReadSuper(b.stateDir, b.conf.UUID)
	must(b.t, err)
	i, err := blockdev.Inspect(b.ssd)
	must(b.t, err)
	d, err := i.OpenForReading()
	must(b.t, err)
	defer d.Close()
	sb, err := cache.ReadSuper(d)
	must(b.t, err)
	if kept != nil && (kept.Seq > sb.Seq || kept.Epoch > sb.Epoch) {
		b.t.Errorf("the copy of the superblock is newer (%d, %d) than the SSD (%d, %d)", kept.Seq, kept.Epoch, sb.Seq, sb.Epoch)
	}
}

// TestOlderSSDAtStart: what an older copy of the SSD has is dropped where nothing was dirty, neither on it nor on the
// newer one; and the newer one is then the older.
func TestOlderSSDAtStart(t *testing.T) {
	for _, running := range []bool{false, true} {
		b := newOldBench(t, "writethrough")
		b.write(1)
		b.stop()
		if !running {
			copyImage(t, b.ssd, b.ssd+".old")
		}
		b.again()
		if running { // of the same start, and not stopped in order
			copyImage(t, b.ssd, b.ssd+".old")
		}
		b.write(2)
		b.stop()
		b.swap(".old", ".new")
		must(t, b.start(Options{}))
		for _, d := range b.Status().Devices {
			if d.CachedBytes != 0 {
				t.Errorf("%d bytes are cached of %s", d.CachedBytes, d.Name)
			}
		}
		b.want(2)
		b.write(3)
		b.stop()
		b.again() // it is the SSD now
		if n := b.Status().Devices[0].CachedBytes; n == 0 {
			t.Error("a cache that was stopped in order is cold")
		}
		b.stop()
		b.swap(".new", ".old")
		must(t, b.start(Options{}))
		b.want(3)
	}
}

// TestOlderSSDWithDirtyData: it is refused if anything may have been dirty on it, or on the one that it is a copy of.
func TestOlderSSDWithDirtyData(t *testing.T) {
	t.Run("on the copy", func(t *testing.T) {
		for _, keep := range []bool{false, true} {
			b := newOldBench(t, "")
			b.write(1)
			b.stop()
			copyImage(t, b.ssd, b.ssd+".old")
			b.again()
			b.write(2)
			b.drain()
			b.stop()
			b.swap(".old", ".new")
			b.refused()
			if keep {
				must(t, b.start(Options{Keep: []string{"disk0"}}))
				b.want(1)
			} else {
				must(t, b.start(Options{Drop: []string{"disk0"}}))
				b.want(2)
			}
			b.stop()
			b.again() // it is the SSD now
		}
	})
	for name, end := range map[string]func(b *oldBench){
		"on the newer one": (*oldBench).stop,
		"killed":           func(b *oldBench) { b.crash() },
		"killed, and nothing was dirty at the start": func(b *oldBench) {
			b.drain()
			b.crash()
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newOldBench(t, "")
			b.write(1)
			b.drain()
			b.stop()
			copyImage(t, b.ssd, b.ssd+".old")
			b.again()
			b.write(2)
			end(b)
			b.swap(".old", ".new")
			b.refused()
			b.swap(".new", ".old")
			must(t, b.start(Options{})) // nothing is lost
			b.want(2)
			b.write(3)
			b.stop()
			b.swap(".old", ".new")
			b.refused()
			must(t, b.start(Options{Drop: []string{"disk0", "disk1"}}))
			b.stop()
			b.swap(".new", ".old")
			if err := b.start(Options{}); report.CodeOf(err) != report.Refused {
				t.Errorf("the SSD that was given up: %v", err)
			}
			must(t, b.start(Options{Drop: []string{"disk0"}}))
		})
	}
}

// TestOlderSSDUnknown: where the state folder has nothing, or something older, an SSD is believed as ever; and a copy
// of the superblock that cannot be read is none.
func TestOlderSSDUnknown(t *testing.T) {
	b := newOldBench(t, "")
	kept := filepath.Join(b.stateDir, "super", b.conf.UUID)
	b.write(1)
	b.stop()
	copyImage(t, kept, b.dir+"/kept")
	for _, spoil := range []func(){
		func() { must(t, os.RemoveAll(b.stateDir)) },
		func() { copyImage(t, b.dir+"/kept", kept) },
		func() { must(t, os.Truncate(kept, 100)) },
	} {
		must(t, b.start(Options{}))
		if b.Status().Devices[0].DirtyBytes != 8192 {
			t.Error("dirty data is not there")
		}
		b.stop()
		spoil()
	}
	must(t, b.start(Options{}))
	b.want(1)
}

// TestDamagedSuperblockIsNotOld: if the newer copy of the superblock is damaged, the other one may be the one before.
func TestDamagedSuperblockIsNotOld(t *testing.T) {
	const a, z, size = 64 << 10, 128 << 10, 64 << 10 // both copies, see FORMAT.md
	b := newOldBench(t, "")
	b.write(1)
	before, err := os.ReadFile(b.ssd)
	must(t, err)
	b.stop()
	f, err := os.OpenFile(b.ssd, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, size), a)
	must(t, err)
	_, err = f.WriteAt(before[z:][:size], z)
	must(t, err)
	must(t, f.Close())
	must(t, b.start(Options{}))
	if b.newer != nil {
		t.Error("the SSD is taken for an older copy")
	}
	b.want(1)
}

// TestSSDIsNotTakenForOlder: whatever way the daemon ends, the SSD is not older than what the state folder has.
func TestSSDIsNotTakenForOlder(t *testing.T) {
	b := newOldBench(t, "")
	b.write(1)
	all := []func(){
		b.stop,
		func() { b.crash() },
		func() { must(t, b.HandOver(context.Background())) },
		func() { // its SSD is lost, comes back, and is lost again
			d := b.open(api.Options{Device: "disk1"})
			must(t, b.writeAt(d, 0, 1, 4096))
			b.flushed(d)
			closeDevice(t, d)
			d = b.open(api.Options{})
			b.loseSSD(d)
			closeDevice(t, d)
			_, err := b.set(context.Background(), control.SetArgs{Name: "disk1", Settings: map[string]string{"ssd-loss": "stop"}}, nil)
			must(t, err)
			b.crash()
		},
	}
	for i := range all {
		for j := range all {
			for _, k := range []int{i, j} {
				all[k]()
				b.notNewer()
				must(t, b.start(Options{}))
				if b.newer != nil {
					t.Fatal("the SSD is taken for an older copy")
				}
				b.want(1)
			}
		}
	}
}

// TestBothSuperblocksLost: with nothing dirty the cache starts as it was; otherwise, or if the state folder has nothing, or
// something older, it is refused and left alone.
func TestBothSuperblocksLost(t *testing.T) {
	for _, magic := range []bool{false, true} {
		b := newOldBench(t, "writethrough")
		lose := func() { b.loseSupers(magic) }
		refused := func() {
			t.Helper()
			before := head(t, b.ssd)
			if err := b.start(Options{}); err == nil || strings.Contains(err.Error(), "\n") {
				t.Fatalf("start without superblocks: %v", err)
			}
			if head(t, b.ssd) != before {
				t.Error("the refused start has changed the SSD")
			}
		}
		b.write(1)
		b.stop()
		lose()
		must(t, b.start(Options{}))
		b.want(1)
		if n := b.Status().Devices[0].CachedBytes; n == 0 {
			t.Error("it is cold")
		}
		b.stop()
		copyImage(t, filepath.Join(b.stateDir, "super", b.conf.UUID), b.dir+"/kept")
		b.again()
		b.write(2)
		b.crash()
		copyImage(t, b.ssd, b.ssd+".whole")
		lose()
		refused() // not stopped in order
		copyImage(t, b.dir+"/kept", filepath.Join(b.stateDir, "super", b.conf.UUID))
		refused() // of an earlier stop
		must(t, os.RemoveAll(b.stateDir))
		refused()
		copyImage(t, b.ssd+".whole", b.ssd)
		b.again()
		_, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: map[string]string{"mode": "writeback"}}, nil)
		must(t, err)
		b.write(3)
		b.stop()
		copyImage(t, b.ssd, b.ssd+".whole")
		lose()
		refused() // with dirty data
		copyImage(t, b.ssd+".whole", b.ssd)
		b.again()
		b.want(3)
	}
}

// TestOlderSSDOfTheSameStart: a copy from before the last change of what the SSD has of its devices is noticed, also if it is of the
// same start, which the power cut ended.
func TestOlderSSDOfTheSameStart(t *testing.T) {
	ctx, quiet := context.Background(), func(control.Progress) {}
	for name, what := range map[string]func(b *oldBench) error{
		"set": func(b *oldBench) error {
			_, err := b.set(ctx, control.SetArgs{Name: "disk0", Settings: map[string]string{"writeback-delay": "2h"}}, nil)
			return err
		},
		"set, which fails": func(b *oldBench) error {
			must(b.t, os.Rename(b.opts.ConfigPath, b.opts.ConfigPath+".away"))
			_, err := b.set(ctx, control.SetArgs{Name: "disk0", Settings: map[string]string{"writeback-delay": "2h"}}, nil)
			if err == nil {
				b.t.Error("set without a configuration")
			}
			return os.Rename(b.opts.ConfigPath+".away", b.opts.ConfigPath)
		},
		"attach": func(b *oldBench) error {
			return b.attachData("x", makeImage(b.t, filepath.Join(b.dir, "x"), directDiskBytes), false, false)
		},
		"detach": func(b *oldBench) error {
			_, err := b.detach(ctx, control.DetachArgs{Name: "disk1"}, quiet)
			return err
		},
		"detach, which has begun": func(b *oldBench) error {
			_, err := b.detach(ctx, control.DetachArgs{Name: "disk1", NoWait: true}, quiet)
			return err
		},
		"a device that comes late": func(b *oldBench) error {
			must(b.t, os.Rename(filepath.Join(b.dir, "disk2.away"), filepath.Join(b.dir, "disk2")))
			return b.reopenLate("late")
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newOldBench(t, "")
			late := filepath.Join(b.dir, "disk2")
			must(t, b.attachData("late", makeImage(t, late, directDiskBytes), true, false))
			b.stop()
			must(t, os.Rename(late, late+".away"))
			b.again()
			b.write(1)
			copyImage(t, b.ssd, b.ssd+".old") // the half of a mirror drops out
			must(t, what(b))
			b.notNewer()
			b.write(2)
			b.drain()
			b.crash()
			b.swap(".old", ".new")
			must(t, os.RemoveAll(filepath.Join(b.dir, "run")))
			b.refused()
			b.swap(".new", ".old")
			must(t, b.start(Options{}))
			b.want(2)
		})
	}
	t.Run("detach, cancelled", func(t *testing.T) {
		b := newOldBench(t, "")
		_, err := b.detach(ctx, control.DetachArgs{Name: "disk1", NoWait: true}, quiet)
		must(t, err)
		b.write(1)
		copyImage(t, b.ssd, b.ssd+".old")
		_, err = b.cancelDetach(ctx, control.NameArgs{Name: "disk1"}, nil)
		must(t, err)
		b.notNewer()
		b.crash()
		b.swap(".old", ".new")
		must(t, os.RemoveAll(filepath.Join(b.dir, "run")))
		b.refused()
		b.swap(".new", ".old")
		must(t, b.start(Options{}))
	})
}

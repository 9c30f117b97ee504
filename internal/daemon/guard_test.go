package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	api "ubcache/attrs/client"
	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// goneBench is a running cache whose disk0 can be pulled: what the rings then do with its file fails, and
// so do probes of it.
type goneBench struct {
	*directBench
	d      *api.Device
	s      *served
	pulled atomic.Pointer[blockdev.Device] // the device that is gone
	errno  atomic.Int32                    // of operations on it
	hit    atomic.Int64                    // operations that came to it while it was gone
	probes atomic.Int64                    // of devices that are there
}

func newGoneBench(t *testing.T, loss string) *goneBench {
	t.Helper()
	b := &goneBench{}
	b.errno.Store(int32(unix.EIO))
	b.directBench = newDirectBench(t, directOptions{alive: func(d *blockdev.Device) error {
		if d == b.pulled.Load() {
			return unix.EIO
		}
		b.probes.Add(1)
		return d.Alive()
	}})
	var err error
	b.s, err = b.find("disk0")
	must(t, err)
	b.set1("backing-loss", loss)
	b.d = b.open(api.Options{Bytes: 8 << 20})
	t.Cleanup(func() { closeDevice(t, b.d) })
	for _, l := range []*loop{b.bg, b.directServer().loop} {
		must(t, l.do(func() error {
			l.spoil = func(userData uint64, res int32) int32 {
				if userData&gatherData != 0 {
					return res
				}
				op := l.ops[int32(userData)].op
				if p := b.pulled.Load(); p == nil || op.Dev != b.s.b.ID() || l.files[op.Dev].fd != p.FD() {
					return res
				}
				b.hit.Add(1)
				return -b.errno.Load()
			}
			return nil
		}))
	}
	return b
}

func (b *goneBench) set1(name, value string) {
	b.t.Helper()
	_, err := b.set(context.Background(), control.SetArgs{
		Name: "disk0", Settings: map[string]string{name: value},
	}, nil)
	must(b.t, err)
}

func (b *goneBench) pull() { b.pulled.Store(b.s.dev) }

func (b *goneBench) plug() { b.pulled.Store(nil) }

func (b *goneBench) await(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s does not come; disk0 is %s: %s", what, b.s.b.Presence(), b.s.guard.problem())
		}
	}
}

func (b *goneBench) awaitPresence(p cache.Presence) {
	b.t.Helper()
	b.await(p.String(), func() bool { return b.s.b.Presence() == p })
}

// begin starts an operation; the channel has its outcome.
func (b *goneBench) begin(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func (b *goneBench) read(off int64, want []byte) error {
	p := make([]byte, len(want))
	if _, _, err := b.d.ReadAt(p, off, nil); err != nil {
		return err
	}
	if !bytes.Equal(p, want) {
		return errors.New("other data")
	}
	return nil
}

func (b *goneBench) write(off int64, p []byte) {
	b.t.Helper()
	_, _, err := b.d.WriteAt(p, off, nil)
	must(b.t, err)
}

func (b *goneBench) writeBack() {
	b.t.Helper()
	_, err := b.flush(context.Background(), control.NameArgs{Name: "disk0"}, func(control.Progress) {})
	must(b.t, err)
}

func wantWaiting(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("%s did not wait: %v", what, err)
	case <-time.After(50 * time.Millisecond):
	}
}

func wantDone(t *testing.T, what string, done <-chan error, want error) {
	t.Helper()
	select {
	case err := <-done:
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not end", what)
	}
}

func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	fill(p, seed)
	return p
}

// TestBackingReturnsElsewhere: hits and writes go on, the rest waits; another device is refused; the device
// comes back as another one with the same data, and has everything in the end.
func TestBackingReturnsElsewhere(t *testing.T) {
	b := newGoneBench(t, "hold")
	clean, dirty, late := pattern(1, 64<<10), pattern(2, 64<<10), pattern(3, 64<<10)
	b.write(0, clean)
	b.writeBack()
	b.write(1<<20, dirty)
	b.pull()
	old := b.s.dev.Info.Path
	miss := b.begin(func() error { return b.read(32<<20, make([]byte, 4096)) })
	b.awaitPresence(cache.Holding)
	around := b.begin(func() error {
		var s attrs.Set
		s.SetMode(attrs.Writearound)
		_, _, err := b.d.WriteAt(pattern(4, 4096), 40<<20, &s)
		return err
	})
	must(t, b.read(0, clean))
	must(t, b.read(1<<20, dirty))
	b.write(2<<20, late)
	_, err := b.d.Flush(nil)
	must(t, err)
	must(t, b.read(2<<20, late))
	wantWaiting(t, "a miss", miss)
	wantWaiting(t, "a write around", around)
	tries := b.hit.Load()

	st, _ := b.device(uint16(b.s.b.ID()))
	if st.Presence != "holding" || !strings.Contains(st.Problem, "gone for") {
		t.Errorf("status: %q, %q", st.Presence, st.Problem)
	}
	if _, err := b.detach(context.Background(), control.DetachArgs{Name: "disk0"}, nil); report.CodeOf(err) != report.Refused {
		t.Errorf("detach of a device that is gone: %v", err)
	}
	if r, err := b.recordOf(b.s.b.ID()); err != nil || r.Detaching {
		t.Errorf("a refused detach has begun: %v", err)
	}
	if _, err := b.flush(context.Background(), control.NameArgs{Name: "disk0"}, func(control.Progress) {}); !errors.Is(err, cache.ErrAbsent) && !strings.Contains(err.Error(), "gone") {
		t.Errorf("flush of a device that is gone: %v", err)
	}

	// What is not the device.
	reopen := func(path string) error {
		_, err := b.reopen(context.Background(), control.ReopenArgs{Name: "disk0", Device: path}, nil)
		return err
	}
	short := makeImage(t, filepath.Join(b.dir, "short"), directDiskBytes/2)
	empty := makeImage(t, filepath.Join(b.dir, "empty"), directDiskBytes)
	for path, want := range map[string]string{
		short: "bytes instead of", empty: "is not what the cache has of it", b.dir + "/none": "no such file",
	} {
		err := reopen(path)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("reopen of %s: %v", filepath.Base(path), err)
		}
	}
	if b.s.b.Presence() != cache.Holding || b.hit.Load() != tries {
		t.Errorf("disk0 is %s, and was tried %d times", b.s.b.Presence(), b.hit.Load()-tries)
	}

	moved := filepath.Join(b.dir, "moved")
	copyFile(t, old, moved)
	must(t, reopen(moved))
	b.awaitPresence(cache.Present)
	wantDone(t, "the miss", miss, nil)
	wantDone(t, "the write around", around, nil)
	b.writeBack()
	image := openDeviceImage(t, moved)
	for off, want := range map[int64][]byte{
		0: clean, 1 << 20: dirty, 2 << 20: late, 40 << 20: pattern(4, 4096),
	} {
		got := make([]byte, len(want))
		image.read(t, off, got)
		if !bytes.Equal(got, want) {
			t.Errorf("the device does not have what was written at %d", off)
		}
	}
	f, err := config.Load(b.opts.ConfigPath)
	must(t, err)
	if got := f.Caches["fast"].Backings["disk0"].Device; got != moved {
		t.Errorf("the configuration has %s", got)
	}
	if err := reopen(""); report.CodeOf(err) != report.Refused {
		t.Errorf("reopen of a device that is there: %v", err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	r, err := os.Open(from)
	must(t, err)
	defer r.Close()
	w, err := os.Create(to)
	must(t, err)
	_, err = io.Copy(w, r)
	must(t, errors.Join(err, w.Close()))
}

// TestBackingReturnsInPlace: the device comes back to life under its old file, and is found by itself.
func TestBackingReturnsInPlace(t *testing.T) {
	// So long that what fails before has not been held, on a machine however slow.
	const hold = 5 * time.Second
	const nearly = hold * 9 / 10
	b := newGoneBench(t, "hold="+hold.String())
	clean := pattern(1, 64<<10)
	b.write(0, clean)
	b.writeBack()
	b.write(1<<20, clean)
	b.errno.Store(int32(unix.ENODEV))
	b.pull()
	begun := time.Now()
	miss := b.begin(func() error { return b.read(32<<20, make([]byte, 4096)) })
	b.awaitPresence(cache.Holding)
	wantWaiting(t, "a miss", miss)
	wantDone(t, "the miss", miss, unix.EIO) // after the hold
	if took := time.Since(begun); took < nearly {
		t.Errorf("it failed after %v", took)
	}
	begun = time.Now()
	wantDone(t, "another miss", b.begin(func() error { return b.read(33<<20, make([]byte, 4096)) }), unix.EIO)
	if took := time.Since(begun); took >= nearly { // at once
		t.Errorf("it failed after %v", took)
	}
	must(t, b.read(0, clean))
	b.write(2<<20, clean)
	b.plug()
	b.awaitPresence(cache.Present)
	must(t, b.read(32<<20, make([]byte, 4096)))
	b.writeBack()
	got := make([]byte, len(clean))
	for _, off := range []int64{0, 1 << 20, 2 << 20} {
		if openDeviceImage(t, b.s.dev.Info.Path).read(t, off, got); !bytes.Equal(got, clean) {
			t.Errorf("the device does not have what was written at %d", off)
		}
	}
}

// TestBackingFails: with the policy fail nothing waits; nobody has to come with a request for the device's
// absence to be noticed.
func TestBackingFails(t *testing.T) {
	b := newGoneBench(t, "fail")
	b.pull()
	b.write(0, pattern(1, 64<<10))
	must(t, b.cache.SetDrain(b.s.b.ID(), true))
	b.awaitPresence(cache.Failing) // writeback has noticed
	must(t, b.cache.SetDrain(b.s.b.ID(), false))
	wantDone(t, "a miss", b.begin(func() error { return b.read(32<<20, make([]byte, 4096)) }), unix.EIO)
	must(t, b.read(0, pattern(1, 64<<10)))
	b.set1("backing-loss", "hold") // at once
	b.awaitPresence(cache.Holding)
	miss := b.begin(func() error { return b.read(32<<20, make([]byte, 4096)) })
	wantWaiting(t, "a miss", miss)
	b.plug()
	wantDone(t, "the miss", miss, nil)
}

// TestBadSectorIsNoAbsence: an error of a device that is there is the request's, after a second try.
func TestBadSectorIsNoAbsence(t *testing.T) {
	b := newGoneBench(t, "hold")
	var tries atomic.Int64
	l := b.directServer().loop
	must(t, l.do(func() error {
		l.spoil = func(userData uint64, res int32) int32 {
			if op := l.ops[int32(userData)].op; userData&gatherData == 0 && op.Dev != cache.SSD && op.Off == 32<<20 {
				tries.Add(1)
				return -int32(unix.EIO)
			}
			return res
		}
		return nil
	}))
	wantDone(t, "a read of a bad sector", b.begin(func() error { return b.read(32<<20, make([]byte, 4096)) }), unix.EIO)
	if n := tries.Load(); n != 2 || b.s.b.Presence() != cache.Present {
		t.Errorf("%d tries, disk0 is %s", n, b.s.b.Presence())
	}
	must(t, b.read(33<<20, make([]byte, 4096)))
}

// TestStopWhileHeld: a forced stop, or detach, does not wait for a device that is gone.
func TestStopWhileHeld(t *testing.T) {
	for _, how := range []string{"stop", "detach"} {
		b := newGoneBench(t, "hold")
		b.write(0, pattern(1, 64<<10))
		b.pull()
		miss := b.begin(func() error { return b.read(32<<20, make([]byte, 4096)) })
		b.awaitPresence(cache.Holding)
		wantWaiting(t, "a miss", miss)
		var err error
		begun := time.Now()
		if how == "stop" {
			err = b.Stop(context.Background(), true)
		} else {
			must(t, b.cache.BeginDetach(b.s.b.ID()))
			b.changing.Lock()
			err = b.forget(context.Background(), b.s, true)
			b.changing.Unlock()
		}
		must(t, err)
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s took %v", how, took)
		}
		if how == "stop" { // the client waits for another daemon
			b.plug()
			in, err := Start(context.Background(), b.opts)
			must(t, err)
			b.Instance = in // stopped by the bench
			// It has failed, as a forced stop cuts off who waits, or the next daemon has answered it: that
			// depends on whether the answer or the end reached the client first.
			select {
			case err := <-miss:
				if err != nil && !errors.Is(err, unix.EIO) {
					t.Errorf("the miss: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the miss does not end")
			}
			must(t, b.read(0, pattern(1, 64<<10)))
			continue
		}
		select {
		case err := <-miss:
			if err == nil {
				t.Errorf("%s: the miss has succeeded", how)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the miss does not end", how)
		}
	}
}

// TestStopWhileGone: the daemon is stopped while a device is gone that has a volatile cache, and started when the device is there
// again. What it was not flushed for may be lost, and the next FLUSH says so, once.
func TestStopWhileGone(t *testing.T) {
	b := newGoneBench(t, "fail")
	var s attrs.Set
	s.SetMode(attrs.Writearound)
	_, _, err := b.d.WriteAt(pattern(1, 4096), 1<<20, &s)
	must(t, err)
	b.pull()
	wantDone(t, "a miss", b.begin(func() error { return b.read(32<<20, make([]byte, 4096)) }), unix.EIO)
	b.awaitPresence(cache.Failing)
	b.restart() // which opens it anew
	if _, err := b.d.Flush(nil); !errors.Is(err, unix.EIO) {
		t.Errorf("the first FLUSH after the start: %v", err)
	}
	if _, err := b.d.Flush(nil); err != nil {
		t.Errorf("the second: %v", err)
	}
}

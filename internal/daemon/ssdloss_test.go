package daemon

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "ubcache/attrs/client"
	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/header"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// ssdGone makes every operation on the SSD fail, as of a device that is not there any more.
func (b *directBench) ssdGone() {
	b.t.Helper()
	for _, l := range []*loop{b.bg, b.directServer().loop} {
		must(b.t, l.do(func() error { b.spoilSSD(l); return nil }))
	}
}

// spoilSSD is ssdGone for one loop, on its thread.
func (b *directBench) spoilSSD(l *loop) {
	l.spoil = func(userData uint64, res int32) int32 {
		if userData&gatherData != 0 || l.ops[int32(userData)].op.Dev == cache.SSD {
			return -int32(unix.ENODEV)
		}
		return res
	}
}

// again starts what was stopped.
func (b *directBench) again() {
	b.t.Helper()
	in, err := Start(context.Background(), b.opts)
	must(b.t, err)
	b.Instance = in
}

func (b *directBench) wait(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s does not come", what)
		}
	}
}

func (b *directBench) writeAt(d *api.Device, off int64, v byte, n int) error {
	b.t.Helper()
	buf, err := d.Alloc(n)
	must(b.t, err)
	copy(buf, bytes.Repeat([]byte{v}, n))
	_, _, err = d.WriteAt(buf, off, nil)
	return err
}

func (b *directBench) flushed(d *api.Device) {
	b.t.Helper()
	_, err := d.Flush(nil)
	must(b.t, err)
}

func (b *directBench) wantAt(d *api.Device, off int64, v byte, n int) {
	b.t.Helper()
	buf, err := d.Alloc(n)
	must(b.t, err)
	if _, _, err := d.ReadAt(buf, off, nil); err != nil {
		b.t.Fatalf("read at %d: %v", off, err)
	}
	if !bytes.Equal(buf, bytes.Repeat([]byte{v}, n)) {
		b.t.Errorf("read at %d has not what was written last", off)
	}
}

// TestSSDLossClean: the SSD vanishes under a device without dirty data: no request fails. The next start
// with the SSD drops what it has of that device, and not what it has of the other.
func TestSSDLossClean(t *testing.T) {
	b := newDirectBench(t, directOptions{mode: "writethrough"})
	d, other := b.open(api.Options{}), b.open(api.Options{Device: "disk1"})
	must(t, b.writeAt(d, 0, 1, 64<<10))
	must(t, b.writeAt(other, 0, 2, 64<<10))
	b.wantAt(d, 0, 1, 64<<10)
	b.flushed(d)
	b.flushed(other)
	b.ssdGone()
	must(t, b.writeAt(d, 4096, 3, 4096))
	b.wait("the loss", func() bool { return b.Status().Cache.SSDState == "lost" })
	b.wantAt(d, 4096, 3, 4096)
	b.wantAt(d, 8192, 1, 4096)
	b.wantAt(other, 0, 2, 64<<10)
	b.flushed(d)
	st := b.Status()
	if !st.Devices[0].Missed || st.Cache.SSDProblem == "" || b.Stats().Cache.SSDLosses != 1 {
		t.Errorf("status does not tell: %+v", st)
	}
	_, err := b.set(context.Background(), control.SetArgs{
		Name: "disk1", Settings: map[string]string{"ssd-loss": "stop"},
	}, nil)
	must(t, err) // it is wanted most at this time
	path := makeImage(t, filepath.Join(b.dir, "disk2"), 4<<20)
	_, err = b.attach(context.Background(), control.AttachArgs{
		Name: "disk2", Device: path, UblkID: -1, Header: true,
	}, nil)
	if !errors.Is(err, cache.ErrSSDLost) {
		t.Errorf("attach: %v", err)
	}
	if image, err := os.ReadFile(path); err != nil || !bytes.Equal(image, make([]byte, len(image))) {
		t.Errorf("attach has written to the device: %v", err)
	}
	id := st.Cache.UUID
	m, err := missed.Read(b.stateDir, id, st.Devices[0].UUID)
	if err != nil || m == nil || m.DirtyBlocks != 0 || m.Name != "disk0" {
		t.Fatalf("marker: %+v, %v", m, err)
	}
	closeDevice(t, d)
	closeDevice(t, other)
	warm := b.Status().Devices[1].CachedBytes
	b.restart()
	st = b.Status()
	if st.Devices[1].Settings["ssd-loss"] != "stop" {
		t.Error("the setting is forgotten")
	}
	if st.Devices[0].CachedBytes != 0 {
		t.Errorf("%d bytes are cached of what the SSD has missed", st.Devices[0].CachedBytes)
	}
	if st.Devices[1].CachedBytes < warm || warm == 0 {
		t.Errorf("%d bytes are cached of the other device, %d before", st.Devices[1].CachedBytes, warm)
	}
	d = b.open(api.Options{})
	b.wantAt(d, 4096, 3, 4096)
	closeDevice(t, d)
	if left, _ := filepath.Glob(b.stateDir + "/missed/*"); len(left) != 0 {
		t.Errorf("markers are left: %v", left)
	}
}

// TestSSDLossDirty: with dirty data the next start refuses and says what to do, and --drop gives it
// up.
func TestSSDLossDirty(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	_, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: map[string]string{
		"ssd-loss-hold": "500ms", "writeback-delay": "1h",
	}}, nil)
	must(t, err)
	d := b.open(api.Options{})
	must(t, b.writeAt(d, 0, 1, 8192))
	b.flushed(d)
	b.ssdGone()
	buf, err := d.Alloc(4096)
	must(t, err)
	if _, _, err := d.ReadAt(buf, 0, nil); err == nil {
		t.Error("dirty data was read without the SSD")
	}
	if s := b.Status().Cache.SSDState; s != "lost" {
		t.Errorf("the SSD is %s", s)
	}
	must(t, b.writeAt(d, 0, 2, 4096))
	b.wantAt(d, 0, 2, 4096)
	if _, _, err := d.ReadAt(buf, 4096, nil); err == nil {
		t.Error("the other dirty block was read")
	}
	closeDevice(t, d)
	must(t, b.Stop(context.Background(), true))
	o := b.opts
	_, err = Start(context.Background(), o)
	if report.CodeOf(err) != report.Refused || !strings.Contains(err.Error(), "--drop disk0") ||
		!strings.Contains(err.Error(), "8.0 KiB") || strings.Contains(err.Error(), "\n") {
		t.Fatalf("start: %v", err)
	}
	ssd := filepath.Join(b.dir, "ssd")
	must(t, os.Rename(ssd, ssd+".away"))
	_, err = Start(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "8.0 KiB of disk0 is on the SSD only") {
		t.Errorf("start without the SSD: %v", err)
	}
	must(t, os.Rename(ssd+".away", ssd))
	for range 2 { // the second time there is nothing to refuse
		in, err := Start(context.Background(), Options{
			Name: o.Name, ConfigPath: o.ConfigPath, AnyRuntimeDir: true, NoUblk: true,
			Drop: []string{"disk0"},
		})
		must(t, err)
		b.Instance = in
		if n := b.Status().Devices[0].DirtyBytes; n != 0 {
			t.Errorf("%d bytes are dirty", n)
		}
		must(t, b.Stop(context.Background(), true))
		in, err = Start(context.Background(), o)
		must(t, err)
		b.Instance = in
		must(t, b.Stop(context.Background(), true))
	}
	b.again()
	d = b.open(api.Options{})
	b.wantAt(d, 0, 2, 4096)
	b.wantAt(d, 4096, 0, 4096)
	closeDevice(t, d)
}

// TestSSDLossHeader: a backing device with a header carries the marker itself, so that another host finds
// it as well.
func TestSSDLossHeader(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	path := makeImage(t, filepath.Join(b.dir, "disk2"), directDiskBytes)
	_, err := b.attach(context.Background(), control.AttachArgs{
		Name: "disk2", Device: path, UblkID: -1, Header: true,
		Settings: map[string]string{"mode": "writethrough"},
	}, nil)
	must(t, err)
	d := b.open(api.Options{Device: "disk2"})
	must(t, b.writeAt(d, 0, 1, 4096))
	b.flushed(d)
	b.ssdGone()
	must(t, b.writeAt(d, 0, 2, 4096))
	b.flushed(d)
	closeDevice(t, d)
	s, err := b.find("disk2")
	must(t, err)
	if h, err := header.Read(s.dev); err != nil || !h.Missed || h.Dirty != 0 {
		t.Fatalf("header: %+v, %v", h, err)
	}
	must(t, b.Stop(context.Background(), true))
	must(t, os.RemoveAll(b.stateDir)) // another host
	b.again()
	s, err = b.find("disk2")
	must(t, err)
	if st, _ := b.device(uint16(s.b.ID())); st.CachedBytes != 0 {
		t.Errorf("%d bytes are cached", st.CachedBytes)
	}
	if h, err := header.Read(s.dev); err != nil || h.Missed {
		t.Errorf("header afterwards: %+v, %v", h, err)
	}
	d = b.open(api.Options{Device: "disk2"})
	b.wantAt(d, 0, 2, 4096)
	closeDevice(t, d)
}

// TestSSDLossNoMarker: where the marker cannot be written, changes fail and reads go on.
func TestSSDLossNoMarker(t *testing.T) {
	b := newDirectBench(t, directOptions{mode: "writethrough"})
	must(t, os.RemoveAll(b.stateDir))
	must(t, os.WriteFile(b.stateDir, nil, 0o600))
	d := b.open(api.Options{})
	must(t, b.writeAt(d, 0, 1, 4096))
	b.flushed(d)
	b.ssdGone()
	if err := b.writeAt(d, 0, 2, 4096); err == nil {
		t.Error("a change that nobody will know of")
	}
	b.wantAt(d, 0, 1, 4096)
	closeDevice(t, d)
}

// TestSSDSettings: they are applied, written to the file, and there after a restart.
func TestSSDSettings(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	_, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: map[string]string{
		"ssd-loss": "read-only", "ssd-loss-hold": "1m",
	}}, nil)
	must(t, err)
	for range 2 {
		s := b.Status().Devices
		if s[0].Settings["ssd-loss"] != "read-only" || s[0].Settings["ssd-loss-hold"] != "1m" ||
			s[1].Settings["ssd-loss"] != "error" || s[1].Settings["ssd-loss-hold"] != "10s" {
			t.Errorf("settings are %v and %v", s[0].Settings, s[1].Settings)
		}
		b.restart()
	}
	for name, v := range map[string]string{"ssd-loss": "never", "ssd-loss-hold": "-1s"} {
		_, err := b.set(context.Background(), control.SetArgs{
			Name: "disk0", Settings: map[string]string{name: v},
		}, nil)
		if report.CodeOf(err) != report.Usage {
			t.Errorf("%s=%s: %v", name, v, err)
		}
	}
	text, err := os.ReadFile(b.opts.ConfigPath)
	must(t, err)
	if strings.Count(string(text), "ssd-loss") != 2 {
		t.Errorf("the file has\n%s", text)
	}
	must(t, config.Edit(b.opts.ConfigPath, func(f *config.File) error {
		f.Caches["fast"].SSDStallLimit, f.Caches["fast"].SSDLossLimit = "500ms", "off"
		return nil
	}))
	b.restart()
	err = config.Edit(b.opts.ConfigPath, func(f *config.File) error {
		f.Caches["fast"].SSDStallLimit = "soon"
		return nil
	})
	if err == nil {
		_, err = config.Load(b.opts.ConfigPath)
	}
	if err == nil || !strings.Contains(err.Error(), "ssd-stall-limit") {
		t.Errorf("a limit that is none: %v", err)
	}
}

func TestAgainArgs(t *testing.T) {
	got := againArgs([]string{
		"ubcache", "start", "fast", "--drop", "a", "--foreground", "--ready-fd=3", "--drop=b", "--wait=1s",
		"--keep=c", "--keep", "d", "--without-ssd=e",
	})
	if s := strings.Join(got, " "); s != "ubcache start fast --foreground --wait=1s" {
		t.Error(s)
	}
}

// TestForcedDetachLosesSSD: a forced detach that the loss of the SSD makes fail has taken the dirty blocks out of the index by then.
// The device is not served any more, before and after a start, lest what is older than what was written be read without an error; a
// detach sees it through.
func TestForcedDetachLosesSSD(t *testing.T) {
	b := newOldBench(t, "")
	b.write(1)
	for _, l := range []*loop{b.bg, b.directServer().loop} {
		must(t, l.do(func() error {
			l.spoil = func(userData uint64, res int32) int32 {
				if userData&gatherData != 0 {
					return res
				}
				if op := l.ops[int32(userData)].op; op != nil && op.Kind == cache.OpWrite {
					return -int32(unix.EIO)
				}
				return res
			}
			return nil
		}))
	}
	err := b.detachDisk("disk0", true)
	if !errors.Is(err, cache.ErrSSDLost) || !strings.Contains(err.Error(), "it is not served any more") ||
		strings.Contains(err.Error(), "\n") {
		t.Fatalf("detach --force: %v", err)
	}
	unserved := func(when string) {
		t.Helper()
		if s := b.Status().Devices[0]; s.Name != "disk0" || s.Service != "missing" || s.Problem == "" {
			t.Errorf("%s: %+v", when, s)
		}
		if err := b.reopenLate("disk0"); err == nil {
			t.Errorf("%s it can be reopened", when)
		}
		c, err := api.Open("", api.Options{Device: "disk0", Socket: b.directPath()})
		if err != nil {
			return
		}
		buf, err := c.Alloc(4096)
		must(t, err)
		if _, _, err = c.ReadAt(buf, 0, nil); err == nil && buf[0] != 1 {
			t.Errorf("%s a read returns %d without an error", when, buf[0])
		}
		closeDevice(t, c)
	}
	unserved("after the detach")
	if err := b.detachDisk("disk0", true); !errors.Is(err, cache.ErrSSDLost) || b.isStopped() {
		t.Errorf("detach --force again: %v", err)
	}
	b.crash()
	b.again()
	unserved("after a start")
	d := b.open(api.Options{Device: "disk1"})
	must(t, b.writeAt(d, 0, 2, 4096))
	b.flushed(d)
	closeDevice(t, d)
	must(t, b.detachDisk("disk0", true))
	must(t, b.attachDisk("disk0", false))
	b.stop()
	b.again()
	if n := len(b.Status().Devices); n != 2 {
		t.Errorf("%d devices", n)
	}
}

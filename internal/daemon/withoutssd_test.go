package daemon

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "ubcache/attrs/client"
	"ubcache/internal/control"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// startNow starts the cache and waits no longer for its SSD than that.
func (b *directBench) startNow(wait time.Duration, without ...string) error {
	b.t.Helper()
	o := b.opts
	o.Wait, o.WithoutSSD = wait, without
	in, err := Start(context.Background(), o)
	if err == nil {
		b.Instance = in
	}
	return err
}

// hideSSD takes the SSD's file away, or brings it back.
func (b *directBench) hideSSD(hide bool) {
	b.t.Helper()
	from, to := filepath.Join(b.dir, "ssd"), filepath.Join(b.dir, "ssd.away")
	if !hide {
		from, to = to, from
	}
	must(b.t, os.Rename(from, to))
}

// crash ends the daemon as kill -9 does: nothing is written, and the pending ring stays.
func (b *directBench) crash() {
	b.t.Helper()
	must(b.t, b.directServer().stop())
	b.kill()
	b.stopGuards()
	b.using.Lock()
	defer b.using.Unlock()
	must(b.t, b.bg.stop())
	b.bg.lane.Close()
	b.cache.Abandon()
	b.lost = true
	b.release()
}

// TestStartWithoutSSD: after a stop in order with nothing dirty the devices are served without the SSD, and it is
// warm again afterwards, or empty for what has changed meanwhile.
func TestStartWithoutSSD(t *testing.T) {
	b := newDirectBench(t, directOptions{mode: "writethrough"})
	d, other := b.open(api.Options{}), b.open(api.Options{Device: "disk1"})
	must(t, b.writeAt(d, 0, 1, 64<<10))
	must(t, b.writeAt(other, 0, 2, 64<<10))
	b.flushed(d)
	b.flushed(other)
	closeDevice(t, d)
	closeDevice(t, other)
	must(t, b.Stop(context.Background(), true))
	b.hideSSD(true)
	must(t, b.startNow(300*time.Millisecond))
	st := b.Status()
	if st.Cache.SSDState != "lost" || len(st.Devices) != 2 {
		t.Fatalf("started without the SSD: %+v", st)
	}
	d, other = b.open(api.Options{}), b.open(api.Options{Device: "disk1"})
	b.wantAt(d, 0, 1, 64<<10)
	b.wantAt(other, 0, 2, 64<<10)
	if left, _ := filepath.Glob(b.stateDir + "/missed/*"); len(left) != 0 {
		t.Errorf("markers before a change: %v", left)
	}
	must(t, b.writeAt(d, 4096, 3, 4096))
	b.flushed(d)
	b.wantAt(d, 4096, 3, 4096)
	m, err := missed.Read(b.stateDir, st.Cache.UUID, st.Devices[0].UUID)
	if err != nil || m == nil || m.DirtyBlocks != 0 {
		t.Fatalf("marker: %+v, %v", m, err)
	}
	closeDevice(t, d)
	closeDevice(t, other)
	must(t, b.Stop(context.Background(), true))
	must(t, b.startNow(300*time.Millisecond)) // once more, from what the marker says
	if st = b.Status(); st.Cache.SSDState != "lost" {
		t.Fatalf("started without the SSD again: %+v", st)
	}
	must(t, b.Stop(context.Background(), true))
	b.hideSSD(false)
	b.again()
	st = b.Status()
	if st.Devices[0].CachedBytes != 0 || st.Devices[1].CachedBytes == 0 {
		t.Errorf("with the SSD %d and %d bytes are cached", st.Devices[0].CachedBytes, st.Devices[1].CachedBytes)
	}
	d = b.open(api.Options{})
	b.wantAt(d, 4096, 3, 4096)
	b.wantAt(d, 0, 1, 4096)
	closeDevice(t, d)
}

// TestStartWithoutSSDDirty: a device of which the SSD may have dirty data is not served without it, unless the operator
// says so. What the SSD has is refused from then on.
func TestStartWithoutSSDDirty(t *testing.T) {
	for _, dirty := range []bool{true, false} {
		b := newDirectBench(t, directOptions{})
		_, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: map[string]string{
			"writeback-delay": "1h",
		}}, nil)
		must(t, err)
		d := b.open(api.Options{})
		must(t, b.writeAt(d, 0, 1, 8192))
		b.flushed(d)
		closeDevice(t, d)
		if !dirty {
			_, err := b.flush(context.Background(), control.NameArgs{Name: "disk0"}, func(control.Progress) {})
			must(t, err)
		}
		b.crash()
		b.hideSSD(true)
		err = b.startNow(time.Minute) // nothing is waited for
		if err == nil || !strings.Contains(err.Error(), "--without-ssd") || strings.Contains(err.Error(), "\n") {
			t.Fatalf("start without the SSD: %v", err)
		}
		must(t, b.startNow(time.Minute, "disk0"))
		st := b.Status()
		if st.Devices[1].Service == "served" || !strings.Contains(st.Devices[1].Problem, "--without-ssd disk1") {
			t.Errorf("the other device: %+v", st.Devices[1])
		}
		d = b.open(api.Options{})
		want := byte(1)
		if dirty {
			want = 0
		}
		b.wantAt(d, 4096, want, 4096)
		must(t, b.writeAt(d, 0, 2, 4096))
		b.flushed(d)
		closeDevice(t, d)
		must(t, b.Stop(context.Background(), true))
		b.hideSSD(false)
		err = b.startNow(time.Second)
		if dirty {
			if report.CodeOf(err) != report.Refused || !strings.Contains(err.Error(), "8.0 KiB") ||
				!strings.Contains(err.Error(), "--drop disk0") {
				t.Fatalf("start with the SSD: %v", err)
			}
			o := b.opts
			o.Drop = []string{"disk0"}
			in, err := Start(context.Background(), o)
			must(t, err)
			b.Instance = in
		} else {
			must(t, err)
		}
		if n := b.Status().Devices[0].CachedBytes; n != 0 {
			t.Errorf("%d bytes are cached of what the SSD has missed", n)
		}
		d = b.open(api.Options{})
		b.wantAt(d, 0, 2, 4096)
		b.wantAt(d, 4096, want, 4096)
		closeDevice(t, d)
		must(t, b.Stop(context.Background(), true))
		b.again()
	}
}

// TestRefusedWithoutSSD: a start with --without-ssd that is refused for one of the devices has changed nothing of the
// others: no file, no header, and above all no marker that the SSD has missed something.
func TestRefusedWithoutSSD(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	names := []string{"disk0", "disk2", "disk3"}
	for _, name := range names[1:] {
		_, err := b.attach(context.Background(), control.AttachArgs{
			Name: name, Device: makeImage(t, filepath.Join(b.dir, name), directDiskBytes), UblkID: -1,
			Header: true, Settings: map[string]string{"mode": "writeback"},
		}, nil)
		must(t, err)
	}
	for _, name := range names {
		_, err := b.set(context.Background(), control.SetArgs{Name: name, Settings: map[string]string{
			"writeback-delay": "1h",
		}}, nil)
		must(t, err)
		d := b.open(api.Options{Device: name})
		must(t, b.writeAt(d, 0, 1, 8192))
		b.flushed(d)
		closeDevice(t, d)
	}
	b.crash()
	b.hideSSD(true)
	last := filepath.Join(b.dir, "disk3")
	must(t, os.Rename(last, last+".away"))
	makeImage(t, last, directDiskBytes/2)
	before := files(t, b.dir)
	err := b.startNow(time.Second, names...)
	if report.CodeOf(err) != report.Refused || !strings.Contains(err.Error(), "disk3") || strings.Contains(err.Error(), "\n") {
		t.Fatalf("start with another device in the place of disk3: %v", err)
	}
	if now := files(t, b.dir); now != before {
		t.Errorf("the refused start has changed\n%sto\n%s", before, now)
	}
	must(t, os.Rename(last+".away", last))
	b.hideSSD(false)
	b.again() // nothing is given up
	for _, name := range names {
		d := b.open(api.Options{Device: name})
		b.wantAt(d, 0, 1, 8192)
		closeDevice(t, d)
	}
	must(t, b.Stop(context.Background(), true))
	b.hideSSD(true)
	must(t, b.startNow(time.Second, names...)) // by which all of them are
	if left, _ := filepath.Glob(b.stateDir + "/missed/*"); len(left) != len(names) {
		t.Errorf("markers: %v", left)
	}
	d := b.open(api.Options{Device: "disk2"})
	b.wantAt(d, 0, 0, 8192)
	closeDevice(t, d)
	must(t, b.Stop(context.Background(), true))
	b.hideSSD(false)
	if err := b.startNow(time.Second); report.CodeOf(err) != report.Refused || !strings.Contains(err.Error(), "--drop disk0") {
		t.Errorf("start with the SSD: %v", err)
	}
	o := b.opts
	o.Drop = names
	in, err := Start(context.Background(), o)
	must(t, err)
	b.Instance = in
}

// TestStaleSuperCopy: a copy of the superblock that cannot be replaced and says that nothing is dirty is removed, or else the
// start is refused. One that says nothing of the kind may stay.
func TestStaleSuperCopy(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	must(t, b.Stop(context.Background(), true))
	path := filepath.Join(b.stateDir, "super", b.conf.UUID)
	must(t, os.Mkdir(path+".new", 0o700)) // in the way
	must(t, b.startNow(time.Second))
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the copy of the last stop is there still: %v", err)
	}
	must(t, b.Stop(context.Background(), true))
	must(t, os.MkdirAll(filepath.Join(path, "in the way"), 0o700))
	if err := b.startNow(time.Second); err == nil || !strings.Contains(err.Error(), "state-dir") {
		t.Errorf("start: %v", err)
	}
	must(t, os.RemoveAll(path))
	must(t, os.Remove(path+".new"))
	b.again()
	must(t, os.Mkdir(path+".new", 0o700))
	b.crash()
	must(t, b.startNow(time.Second))
	if sb, err := missed.ReadSuper(b.stateDir, b.conf.UUID); err != nil || sb == nil || sb.Clean {
		t.Errorf("the copy of a start: %+v, %v", sb, err)
	}
}

// TestFullStateDir: a state folder without room keeps no start with the SSD away, and lets none without it happen.
func TestFullStateDir(t *testing.T) {
	dir := smallDisk(t, "128K")
	b := newDirectBench(t, directOptions{})
	must(t, b.Stop(context.Background(), true))
	t.Setenv(missed.EnvStateDir, filepath.Join(dir, "state"))
	b.again()
	must(t, b.Stop(context.Background(), true))
	fill := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "full"), make([]byte, 1<<20), 0o600); err == nil {
			t.Fatal("there is room")
		}
	}
	fill()
	for range 2 { // after a stop in order, and after a crash
		must(t, b.startNow(time.Second))
		if left, _ := filepath.Glob(b.stateDir + "/super/*"); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
		b.crash()
		fill()
	}
	must(t, b.startNow(time.Second))
	must(t, b.Stop(context.Background(), true))
	fill()
	b.hideSSD(true)
	if err := b.startNow(time.Second); err == nil {
		t.Error("started without the SSD, of which nothing is known")
	}
	b.hideSSD(false)
	must(t, os.Remove(filepath.Join(dir, "full")))
	b.again()
	must(t, b.Stop(context.Background(), true))
	b.hideSSD(true)
	must(t, b.startNow(time.Second))
	must(t, b.Stop(context.Background(), true))
	b.hideSSD(false)
	b.again()
	must(t, b.Stop(context.Background(), true)) // before the unmount
}

// TestNewFilesystemWithoutSSD: a cached device that has got another filesystem while the cache was without its SSD is known to have
// changed.
func TestNewFilesystemWithoutSSD(t *testing.T) {
	b := newOldBench(t, "writethrough")
	mkfs := func(id byte) {
		t.Helper()
		d := b.open(api.Options{})
		buf, err := d.Alloc(4096)
		must(t, err)
		copy(buf, extHead(id))
		_, _, err = d.WriteAt(buf, 0, nil)
		must(t, err)
		b.flushed(d)
		closeDevice(t, d)
	}
	mkfs(1)
	b.stop()
	b.hideSSD(true)
	must(t, b.startNow(time.Second))
	mkfs(2)
	must(t, b.Stop(context.Background(), true))
	must(t, b.startNow(time.Second))
	must(t, b.Stop(context.Background(), true))
	b.hideSSD(false)
	must(t, b.start(Options{}))
	if n := b.Status().Devices[0].CachedBytes; n != 0 {
		t.Errorf("%d bytes are cached", n)
	}
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	buf, err := d.Alloc(4096)
	must(t, err)
	_, _, err = d.ReadAt(buf, 0, nil)
	must(t, err)
	if !bytes.Equal(buf, extHead(2)) {
		t.Error("the new filesystem is not there")
	}
}

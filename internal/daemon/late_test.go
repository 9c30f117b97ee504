package daemon

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "ubcache/attrs/client"
	"ubcache/internal/blockdev"
	"ubcache/internal/control"
	"ubcache/internal/header"
)

// writeFile changes an image behind everybody's back.
func writeFile(t testing.TB, path string, off int64, v byte, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{v}, n), off)
	must(t, err)
	must(t, f.Close())
}

// reopenLate brings a device back that was missing at the start.
func (b *directBench) reopenLate(name string) error {
	b.t.Helper()
	_, err := b.reopen(context.Background(), control.ReopenArgs{Name: name}, nil)
	return err
}

// TestLateRawUse: a backing device that was missing at the start goes through the same checks when it comes: what is
// cached of it is dropped if it was used meanwhile, and it is refused if the cache has newer data.
func TestLateRawUse(t *testing.T) {
	for name, c := range map[string]struct{ used, dirty bool }{
		"unchanged": {}, "used": {used: true}, "used, dirty": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			mode := "writethrough"
			if c.dirty {
				mode = "writeback"
			}
			b := newDirectBench(t, directOptions{mode: mode})
			_, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: map[string]string{
				"writeback-delay": "1h",
			}}, nil)
			must(t, err)
			d := b.open(api.Options{})
			must(t, b.writeAt(d, 0, 1, 64<<10))
			b.wantAt(d, 1<<20, 0, 64<<10)
			b.flushed(d)
			closeDevice(t, d)
			must(t, b.Stop(context.Background(), true))
			path := filepath.Join(b.dir, "disk0")
			must(t, os.Rename(path, path+".away"))
			b.again()
			cached := b.Status().Devices[0].CachedBytes
			if cached == 0 || b.Status().Devices[0].Service == "served" {
				t.Fatalf("without the device: %+v", b.Status().Devices[0])
			}
			if c.used {
				writeFile(t, path+".away", 1<<20, 9, 4096)
			}
			must(t, os.Rename(path+".away", path))
			err = b.reopenLate("disk0")
			st := b.Status().Devices[0]
			switch {
			case c.dirty:
				if err == nil || !strings.Contains(err.Error(), "64.0 KiB of newer data") || st.Service == "served" {
					t.Errorf("a device that was used: %v, %+v", err, st)
				}
				return
			case err != nil:
				t.Fatal(err)
			case c.used && st.CachedBytes != 0, !c.used && st.CachedBytes != cached:
				t.Errorf("%d bytes are cached, %d before", st.CachedBytes, cached)
			}
			d = b.open(api.Options{})
			b.wantAt(d, 0, 1, 64<<10)
			if c.used {
				b.wantAt(d, 1<<20, 9, 4096)
			}
			must(t, b.writeAt(d, 0, 5, 4096))
			b.flushed(d)
			closeDevice(t, d)
			b.restart() // nothing is wrong with the device now
			if n := b.Status().Devices[0].CachedBytes; n == 0 {
				t.Error("what is cached was dropped at the next start")
			}
		})
	}
}

// TestLateHeader: the header of a device that comes late says whether it was changed while the cache was without its
// SSD, and gets the epoch of the start that has it.
func TestLateHeader(t *testing.T) {
	for _, changed := range []bool{false, true} {
		b := newDirectBench(t, directOptions{})
		path := makeImage(t, filepath.Join(b.dir, "disk2"), directDiskBytes)
		_, err := b.attach(context.Background(), control.AttachArgs{
			Name: "disk2", Device: path, UblkID: -1, Header: true, Settings: map[string]string{"mode": "writethrough"},
		}, nil)
		must(t, err)
		d := b.open(api.Options{Device: "disk2"})
		must(t, b.writeAt(d, 0, 1, 4096))
		b.flushed(d)
		closeDevice(t, d)
		must(t, b.Stop(context.Background(), true))
		if changed {
			i, err := blockdev.Inspect(path)
			must(t, err)
			dev, err := i.Open(context.Background())
			must(t, err)
			must(t, editHeader(dev, func(h *header.Header) { h.Missed, h.Dirty, h.Epoch = true, 0, h.Start }))
			must(t, dev.Close())
		}
		must(t, os.Rename(path, path+".away"))
		b.again()
		must(t, os.Rename(path+".away", path))
		err = b.reopenLate("disk2")
		if changed {
			if err == nil || !strings.Contains(err.Error(), "without the SSD") {
				t.Errorf("a device that was changed without the SSD: %v", err)
			}
			b.restart()
			s, err := b.find("disk2")
			must(t, err)
			if st, _ := b.device(uint16(s.b.ID())); st.CachedBytes != 0 || st.Service == "missing" {
				t.Errorf("after the next start: %+v", st)
			}
			continue
		}
		must(t, err)
		s, err := b.find("disk2")
		must(t, err)
		h, err := header.Read(s.dev)
		if err != nil || h.Start != b.cache.Super().Epoch {
			t.Errorf("header %+v, %v; the epoch is %d", h, err, b.cache.Super().Epoch)
		}
		b.crash()
		b.again() // and that is what the next start expects
		if st, _ := b.device(uint16(s.b.ID())); st.CachedBytes == 0 {
			t.Error("what is cached was dropped")
		}
	}
}

// TestLateUnderAnotherName: reopen writes the name that it was given into the configuration, also of a device that was missing at the start.
func TestLateUnderAnotherName(t *testing.T) {
	b := newOldBench(t, "writethrough")
	b.write(1)
	b.stop()
	disk := filepath.Join(b.dir, "disk0")
	must(t, os.Rename(disk, disk+".else"))
	b.again()
	_, err := b.reopen(context.Background(), control.ReopenArgs{Name: "disk0", Device: disk + ".none"}, nil)
	if err == nil || b.conf.Backings["disk0"].Device != disk {
		t.Errorf("a device that is not there: %v, %+v", err, b.conf.Backings["disk0"])
	}
	_, err = b.reopen(context.Background(), control.ReopenArgs{Name: "disk0", Device: disk + ".else"}, nil)
	must(t, err)
	b.want(1)
	b.stop()
	b.again()
	if s := b.Status().Devices[0]; s.Service == "missing" {
		t.Errorf("reopen has not written the new name: %s", s.Problem)
	}
}

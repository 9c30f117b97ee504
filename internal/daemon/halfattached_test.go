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
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

func (b *oldBench) attachDisk(name string, hdr bool) error {
	b.t.Helper()
	disk := filepath.Join(b.dir, name)
	if _, err := os.Stat(disk); err != nil {
		makeImage(b.t, disk, directDiskBytes)
	}
	_, err := b.Instance.attach(context.Background(), control.AttachArgs{
		Name: name, Device: disk, UblkID: -1, Header: hdr,
		Settings: map[string]string{"mode": "writeback", "writeback-delay": "1h"},
	}, nil)
	return err
}

func (b *oldBench) detachDisk(name string, force bool) error {
	b.t.Helper()
	_, err := b.Instance.detach(context.Background(), control.DetachArgs{Name: name, Force: force}, func(control.Progress) {})
	return err
}

// cutShort fails unless attach refuses a name because only one of cache and configuration has it.
func (b *oldBench) cutShort(name string, hdr bool) {
	b.t.Helper()
	err := b.attachDisk(name, hdr)
	if report.CodeOf(err) != report.Refused || !strings.Contains(err.Error(), "was cut short") ||
		!strings.Contains(err.Error(), "ubcache detach "+name) || strings.Contains(err.Error(), "\n") {
		b.t.Errorf("attach of what only one side has: %v", err)
	}
}

// TestAttachCut: a crash after the superblock has a new device and before the configuration has it. A detach gives it up,
// dirty data only by force.
func TestAttachCut(t *testing.T) {
	for _, dirty := range []bool{false, true} {
		b := newOldBench(t, "writethrough")
		conf := b.opts.ConfigPath
		copyImage(t, conf, conf+".before")
		must(t, b.attachDisk("data", true))
		if dirty {
			d := b.open(api.Options{Device: "data"})
			must(t, b.writeAt(d, 0, 1, 8192))
			b.flushed(d)
			closeDevice(t, d)
		}
		b.crash()
		must(t, os.Rename(conf+".before", conf))
		b.again()
		b.cutShort("data", true)
		if dirty {
			if err := b.detachDisk("data", false); report.CodeOf(err) != report.Refused || !strings.Contains(err.Error(), "--force") {
				t.Errorf("detach of what has dirty data: %v", err)
			}
		}
		must(t, b.detachDisk("data", dirty))
		must(t, b.attachDisk("data", true))
		d := b.open(api.Options{Device: "data"})
		b.wantAt(d, 0, 0, 8192)
		closeDevice(t, d)
		b.stop()
		b.again()
		if n := len(b.Status().Devices); n != 3 {
			t.Errorf("%d devices", n)
		}
	}
}

// TestDetachCut: a crash after the superblock has forgotten a device and before the configuration has.
func TestDetachCut(t *testing.T) {
	b := newOldBench(t, "writethrough")
	must(t, b.attachDisk("data", true))
	conf := b.opts.ConfigPath
	disk := filepath.Join(b.dir, "data")
	b.stop()
	copyImage(t, conf, conf+".before")
	copyImage(t, disk, disk+".before") // the header names the cache still
	b.again()
	must(t, b.detachDisk("data", false))
	b.crash()
	must(t, os.Rename(conf+".before", conf))
	must(t, os.Rename(disk+".before", disk))
	b.again()
	b.cutShort("data", true)
	must(t, b.detachDisk("data", false))
	if err := b.detachDisk("data", false); err == nil || !strings.Contains(err.Error(), "no such backing device") {
		t.Errorf("detached for the third time: %v", err)
	}
	i, err := blockdev.Inspect(disk)
	must(t, err)
	dev, err := i.OpenForReading()
	must(t, err)
	h, err := header.Read(dev)
	if err != nil || h.Cache != (cache.UUID{}) {
		t.Errorf("the header says that cache %s has newer data, %v", h.Cache, err)
	}
	must(t, dev.Close())
	must(t, b.attachDisk("data", true))
	b.stop()
	b.again()
	if n := len(b.Status().Devices); n != 3 {
		t.Errorf("%d devices", n)
	}
}

// TestDetachUnwritableConfiguration: a detach that cannot write the configuration is finished by the next one.
func TestDetachUnwritableConfiguration(t *testing.T) {
	b := newOldBench(t, "writethrough")
	conf := b.opts.ConfigPath
	must(t, os.Rename(conf, conf+".good"))
	must(t, os.WriteFile(conf, []byte("[cache"), 0o600))
	if err := b.detachDisk("disk1", false); err == nil {
		t.Fatal("detached")
	}
	must(t, os.Rename(conf+".good", conf))
	b.cutShort("disk1", false)
	must(t, b.detachDisk("disk1", false))
	f, err := config.Load(b.opts.ConfigPath)
	must(t, err)
	if _, ok := f.FindBacking("disk1"); ok || len(b.Status().Devices) != 1 {
		t.Error("it is there still")
	}
	must(t, b.attachDisk("disk1", false))
}

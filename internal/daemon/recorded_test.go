package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "ubcache/attrs/client"
	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// attachData attaches an image as a device in writeback mode of which nothing is written back by itself.
func (b *directBench) attachData(name, disk string, hdr, force bool) error {
	b.t.Helper()
	_, err := b.attach(context.Background(), control.AttachArgs{
		Name: name, Device: disk, UblkID: -1, Header: hdr, Force: force,
		Settings: map[string]string{"mode": "writeback", "writeback-delay": "1h", "sequential-cutoff": "0"},
	}, nil)
	return err
}

// wantRefused wants an error of one line that has all that in it.
func wantRefused(t *testing.T, err error, parts ...string) {
	t.Helper()
	if report.CodeOf(err) != report.Refused || strings.Contains(err.Error(), "\n") {
		t.Fatalf("not refused, in one line: %v", err)
	}
	for _, s := range parts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q is not in: %v", s, err)
		}
	}
}

// TestAttachOverMissing: a disk that is missing, and has dirty data on the SSD, is not attached once more, under whatever name
// it comes; once it is detached it is.
func TestAttachOverMissing(t *testing.T) {
	for _, tt := range []struct {
		by                  string
		hdr, renamed, crash bool
	}{
		{by: "header", hdr: true, renamed: true},
		{by: "header", hdr: true},
		{by: "path"},
		{by: "data", renamed: true},
		{by: "data", renamed: true, crash: true},
	} {
		b := newOldBench(t, "")
		disk := filepath.Join(b.dir, "disk2")
		must(t, b.attachData("data", makeImage(t, disk, directDiskBytes), tt.hdr, false))
		d := b.open(api.Options{Device: "data"})
		must(t, b.writeAt(d, 8<<20, 5, 4096))
		_, err := b.flush(context.Background(), control.NameArgs{Name: "data"}, func(control.Progress) {})
		must(t, err)
		must(t, b.writeAt(d, 0, 7, 8192))
		b.flushed(d)
		closeDevice(t, d)
		away := disk + ".else"
		if tt.crash {
			b.crash()
		} else {
			b.stop()
		}
		must(t, os.Rename(disk, away))
		b.again()
		if !tt.renamed {
			must(t, os.Rename(away, disk))
			away = disk
		}
		before := head(t, away)
		wantRefused(t, b.attachData("again", away, tt.hdr, false), "by its "+tt.by+" it is data", "ubcache reopen data "+away,
			"detach data", "--force")
		if head(t, away) != before {
			t.Error("the disk that was refused has changed")
		}
		must(t, b.attachData("other", makeImage(t, disk+".blank", directDiskBytes), tt.hdr, false)) // another one of that size
		_, err = b.reopen(context.Background(), control.ReopenArgs{Name: "data", Device: away}, nil)
		must(t, err)
		d = b.open(api.Options{Device: "data"})
		b.wantAt(d, 0, 7, 8192)
		closeDevice(t, d)
		_, err = b.detach(context.Background(), control.DetachArgs{Name: "data"}, func(control.Progress) {})
		must(t, err)
		must(t, b.attachData("again", away, tt.hdr, false))
		d = b.open(api.Options{Device: "again"})
		b.wantAt(d, 0, 7, 8192)
		closeDevice(t, d)
	}
}

// TestAttachOverMissingForced: it is said to be another one.
func TestAttachOverMissingForced(t *testing.T) {
	b := newOldBench(t, "")
	b.write(1)
	b.stop()
	disk := filepath.Join(b.dir, "disk0")
	must(t, os.Rename(disk, disk+".else"))
	b.again()
	must(t, b.attachData("again", disk+".else", false, true))
}

// TestAttachCopyOfAttached: a copy of a disk that is attached names it in its header.
func TestAttachCopyOfAttached(t *testing.T) {
	b := newOldBench(t, "")
	disk := makeImage(t, filepath.Join(b.dir, "disk2"), directDiskBytes)
	must(t, b.attachData("data", disk, true, false))
	copyImage(t, disk, disk+".copy")
	wantRefused(t, b.attachData("again", disk+".copy", true, false), "copy of data", "--force")
	must(t, b.attachData("again", disk+".copy", true, true))
}

// TestAttachOfAnotherCache: the configuration names a disk as another cache's.
func TestAttachOfAnotherCache(t *testing.T) {
	b := newOldBench(t, "")
	disk := makeImage(t, filepath.Join(b.dir, "disk2"), directDiskBytes)
	must(t, config.Edit(b.opts.ConfigPath, func(f *config.File) error {
		theirs := *f.Caches["fast"].Backings["disk1"]
		theirs.UUID, theirs.Device, theirs.UblkID = cache.NewUUID().String(), disk, 77
		f.Caches["other"] = &config.Cache{
			UUID: cache.NewUUID().String(), Device: b.ssd + ".other", Backings: map[string]*config.Backing{"theirs": &theirs},
		}
		return nil
	}))
	wantRefused(t, b.attachData("data", disk, false, false), "by its path it is theirs of cache other", "detach it there")
	must(t, b.attachData("data", disk, false, true))
}

// TestRecogniseSerial: a serial number says more than size and path.
func TestRecogniseSerial(t *testing.T) {
	d := diskImage(t, nil)
	r := &cache.BackingRecord{Identity: cache.Identity{Size: d.Info.SizeBytes, Serial: "abc"}}
	for _, tt := range []struct {
		serial string
		size   int64
		want   string
	}{
		{"abc", 1, "serial number"},
		{"xyz", r.Identity.Size, ""},
		{"", r.Identity.Size, "path"},
		{"", 1, ""},
	} {
		i := *d.Info
		i.Serial, i.SizeBytes = tt.serial, tt.size
		same := *d
		same.Info = &i
		if by := recognise(&same, r, d.Info.Path); by != tt.want {
			t.Errorf("serial %q, %d bytes: by its %q, expected %q", tt.serial, tt.size, by, tt.want)
		}
	}
}

// TestAnotherSerial: a disk of the same size with another serial number is another disk. One that has none now, or had none
// then, may be the same.
func TestAnotherSerial(t *testing.T) {
	i := *diskImage(t, nil).Info
	for _, tt := range []struct {
		was, is string
		refused bool
	}{{"abc", "abc", false}, {"abc", "xyz", true}, {"abc", "", false}, {"", "xyz", false}} {
		i.Serial = tt.is
		err := checkIdentity(&i, &cache.BackingRecord{Identity: cache.Identity{Size: i.SizeBytes, Serial: tt.was}})
		if !tt.refused {
			must(t, err)
			continue
		}
		wantRefused(t, err, "serial number is "+tt.is+" instead of "+tt.was, "correct the device in the configuration")
	}
}

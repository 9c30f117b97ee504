package blockdev

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ubcache/cache"
)

func imageFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestProbeTools recognises what the system's own tools make.
func TestProbeTools(t *testing.T) {
	const id = "01234567-89ab-4def-8123-456789abcdef"
	for _, c := range []struct{ tool, args, kind, uuid string }{
		{"mkfs.ext2", "-q -F -U " + id, "ext2", id},
		{"mkfs.ext3", "-q -F -U " + id, "ext3", id},
		{"mkfs.ext4", "-q -F -U " + id, "ext4", id},
		{"mkfs.xfs", "-q -f -m uuid=" + id, "xfs", id},
		{"mkfs.btrfs", "-q -f -U " + id, "btrfs", id},
		{"mkfs.vfat", "-i 1234abcd", "vfat", "1234-ABCD"},
		{"mkswap", "-q -U " + id, "swap", id},
	} {
		t.Run(c.tool, func(t *testing.T) {
			if _, err := exec.LookPath(c.tool); err != nil {
				t.Skipf("%s is not installed", c.tool)
			}
			path := imageFile(t, 512<<20)
			args := append(strings.Fields(c.args), path)
			if out, err := exec.Command(c.tool, args...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			i, err := Inspect(path)
			if err != nil {
				t.Fatal(err)
			}
			if i.Content.Type != c.kind || i.Content.UUID != c.uuid {
				t.Errorf("found %+v", i.Content)
			}
		})
	}
}

// TestProbeSignatures recognises what is written by hand here, at the start and at the end.
func TestProbeSignatures(t *testing.T) {
	const size = 64 << 20
	put := func(off int64, text string) func([]byte) {
		return func(b []byte) { copy(b[off:], text) }
	}
	for _, c := range []struct {
		kind string
		make []func([]byte)
	}{
		{"", nil},
		{"bcache", []func([]byte){
			put(4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
		}},
		{"crypto_LUKS", []func([]byte){put(0, "LUKS\xba\xbe")}},
		{"LVM2_member", []func([]byte){put(512, "LABELONE"), put(512+24, "LVM2 001")}},
		{"linux_raid_member", []func([]byte){put(4096, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00")}},
		{"linux_raid_member", []func([]byte){put(size-8192, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00")}},
		{"linux_raid_member", []func([]byte){put(size-64<<10, "\xfc\x4e\x2b\xa9")}},
		{"gpt", []func([]byte){put(512, "EFI PART"), put(510, "\x55\xaa")}},
		{"gpt", []func([]byte){put(size-512, "EFI PART")}},
		{"dos", []func([]byte){put(510, "\x55\xaa"), put(450, "\x83")}},
		{"", []func([]byte){put(510, "\x55\xaa"), put(446, "boot code")}},
		{"ntfs", []func([]byte){put(3, "NTFS    "), put(510, "\x55\xaa")}},
		{"exfat", []func([]byte){put(3, "EXFAT   ")}},
		{"ext2", []func([]byte){put(1024+56, "\x53\xef")}},
		{"", []func([]byte){put(1024+56, "\x53\xef"), put(1024+24, "\xff")}},
		{TypeCache, []func([]byte){put(64<<10, "UBCACHE\x01")}},
		{TypeCache, []func([]byte){put(128<<10, "UBCACHE\x01")}},
		{TypeHeader, []func([]byte){put(4096, "UBCBACK\x01")}},
	} {
		b := make([]byte, size)
		for _, f := range c.make {
			f(b)
		}
		got, err := probe(strings.NewReader(string(b)), size, 512)
		if err != nil || got.Type != c.kind {
			t.Errorf("%s: found %+v, %v", c.kind, got, err)
		}
	}
}

// TestProbeOwn recognises a cache that was formatted, and no more after a wipe.
func TestProbeOwn(t *testing.T) {
	i, err := Inspect(imageFile(t, 128<<20))
	if err != nil {
		t.Fatal(err)
	}
	d, err := i.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	sb, err := cache.Format(d, cache.FormatOptions{Label: "fast"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Probe()
	if err != nil || c.Type != TypeCache || c.UUID != sb.UUID.String() || c.Label != "fast" {
		t.Errorf("found %+v, %v", c, err)
	}
	if err := cache.Wipe(d); err != nil {
		t.Fatal(err)
	}
	if c, err := d.Probe(); err != nil || c.Type != "" {
		t.Errorf("after a wipe: %+v, %v", c, err)
	}
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe"), int64(0))
	f.Add([]byte("EFI PART"), int64(512))
	f.Fuzz(func(t *testing.T, p []byte, off int64) {
		b := make([]byte, 256<<10)
		if off >= 0 && off < int64(len(b)) {
			copy(b[off:], p)
		}
		if _, err := probe(strings.NewReader(string(b)), int64(len(b)), 512); err != nil {
			t.Error(err)
		}
	})
}

func TestExclusive(t *testing.T) {
	i, err := Inspect(imageFile(t, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	d, err := i.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	expired, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := i.Open(expired); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "pid") {
		t.Errorf("opened twice: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = i.Open(expired); err != nil {
		t.Fatalf("not free after Close: %v", err)
	}
	_ = d.Close()
}

func TestLinkRank(t *testing.T) {
	if linkRank("ata-DISK_123") <= linkRank("lvm-pv-uuid-x") || linkRank("wwn-0x5") <= linkRank("usb-x") {
		t.Error("names that come from the content are preferred to those of the device")
	}
}

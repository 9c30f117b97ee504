package blockdev

import (
	"slices"
	"strings"
	"testing"
)

func TestMountinfo(t *testing.T) {
	const text = `36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
40 35 0:33 /sub /data rw shared:2 - btrfs /dev/ublkb0 rw
41 35 0:34 / /x rw - tmpfs
`
	got := parseMounts(text)
	want := []mount{{"98:0", "/mnt 2", "/dev/root", true}, {"0:33", "/data", "/dev/ublkb0", false}}
	if !slices.Equal(got, want) {
		t.Errorf("parsed %+v", got)
	}
}

func TestUnneeded(t *testing.T) {
	const private = `20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:5 / /proc rw - proc proc rw
22 20 8:2 / /boot rw - ext4 /dev/sda2 rw
23 20 8:3 / /var rw - ext4 /dev/sda3 rw
24 23 0:22 / /var/run rw - tmpfs tmpfs rw
25 20 8:4 / /images rw - xfs /dev/sda4 rw
26 20 8:5 / /imagesold rw - xfs /dev/sda5 rw
27 20 0:40 / /srv rw - btrfs /dev/sdb rw
28 27 8:6 / /srv/deep rw - ext4 /dev/sdc rw
29 20 259:0 / /mnt rw - ext4 /dev/ublkb0 rw
`
	ofOurs := func(m *mount) bool { return strings.HasPrefix(m.source, "/dev/ublkb") }
	needed := []string{"/usr/sbin/ubcache", "/images/ssd.img"}
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"private", private, []string{"/mnt", "/srv/deep", "/srv", "/imagesold", "/boot"}},
		{"shared", strings.ReplaceAll(private, " rw - ", " rw master:1 - "), []string{"/mnt"}},
	} {
		if got := unneeded(parseMounts(c.text), needed, ofOurs); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Content is what is on a device, as far as it can be recognised. The zero value is nothing.
type Content struct {
	Type  string `json:"type,omitempty"` // as blkid calls it: ext4, xfs, gpt, LVM2_member, …
	UUID  string `json:"uuid,omitempty"`
	Label string `json:"label,omitempty"`
}

// TypeCache and TypeHeader are the contents that ubcache itself makes.
const (
	TypeCache  = "ubcache"
	TypeHeader = "ubcache_backing"
)

// String describes the content in a sentence: "an ext4 filesystem (uuid …)".
func (c Content) String() string {
	s := ""
	switch c.Type {
	case "":
		return "nothing"
	case TypeCache:
		s = "a ubcache cache"
	case TypeHeader:
		s = "a ubcache backing header"
	case "gpt", "dos":
		s = "a partition table (" + c.Type + ")"
	case "swap":
		s = "swap space"
	case "LVM2_member":
		s = "an LVM physical volume"
	case "linux_raid_member":
		s = "a RAID member"
	case "crypto_LUKS":
		s = "a LUKS volume"
	case "bcache":
		s = "a bcache superblock"
	case "ext2", "ext3", "ext4", "iso9660", "exfat":
		s = "an " + c.Type + " filesystem"
	case "xfs":
		s = "an XFS filesystem"
	default:
		s = "data of type " + c.Type
		if isFilesystem(c.Type) {
			s = "a " + c.Type + " filesystem"
		}
	}
	if c.UUID != "" {
		s += ", uuid " + c.UUID
	}
	return s
}

func isFilesystem(t string) bool {
	switch t {
	case "btrfs", "vfat", "ntfs", "f2fs", "squashfs", "zfs_member", "jfs", "reiserfs", "erofs":
		return true
	}
	return false
}

// signature is one kind of content: a magic string at a place, and how to read its identity.
type signature struct {
	kind  string
	off   int64
	magic string
	read  func(p *image, c *Content) bool // nil: nothing more to read
}

// headBytes is as far as signatures lie from the start; tailBytes from the end.
const (
	headBytes = 160 << 10
	tailBytes = 128 << 10
)

// image is the start and the end of a device.
type image struct {
	head, tail []byte
	size       int64
}

// signatures are tried in this order: what encloses other things comes first.
var signatures = []signature{
	{TypeCache, 64 << 10, "UBCACHE\x01", func(p *image, c *Content) bool {
		c.UUID = p.uuid(64<<10 + 40)
		c.Label = p.text(64<<10+128, 64)
		return true
	}},
	{TypeCache, 128 << 10, "UBCACHE\x01", func(p *image, c *Content) bool {
		c.UUID = p.uuid(128<<10 + 40)
		return true
	}},
	{TypeHeader, 4096, "UBCBACK\x01", func(p *image, c *Content) bool {
		c.UUID = p.uuid(4096 + 64)
		return true
	}},
	{
		"bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
		func(p *image, c *Content) bool { c.UUID = p.uuid(4096 + 40); return true },
	},
	{"crypto_LUKS", 0, "LUKS\xba\xbe", func(p *image, c *Content) bool {
		c.UUID = p.text(168, 40)
		return true
	}},
	{"LVM2_member", 512, "LABELONE", readLVM},
	{"LVM2_member", 0, "LABELONE", readLVM},
	{"linux_raid_member", 4096, "\xfc\x4e\x2b\xa9", readMD(4096)},
	{"linux_raid_member", 0, "\xfc\x4e\x2b\xa9", readMD(0)},
	{"zfs_member", 128 << 10, "\x0c\xb1\xba\x00\x00\x00\x00\x00", nil},
	{"xfs", 0, "XFSB", func(p *image, c *Content) bool {
		c.UUID, c.Label = p.uuid(32), p.text(108, 12)
		return true
	}},
	{"btrfs", 64<<10 + 64, "_BHRfS_M", func(p *image, c *Content) bool {
		c.UUID, c.Label = p.uuid(64<<10+32), p.text(64<<10+299, 256)
		return true
	}},
	{"ext2", 1024 + 56, "\x53\xef", readExt},
	{"swap", 4096 - 10, "SWAPSPACE2", readSwap},
	{"swap", 4096 - 10, "SWAP-SPACE", readSwap},
	{"f2fs", 1024, "\x10\x20\xf5\xf2", func(p *image, c *Content) bool {
		c.UUID = p.uuid(1024 + 108)
		return true
	}},
	{"ntfs", 3, "NTFS    ", func(p *image, c *Content) bool {
		c.UUID = fmt.Sprintf("%016X", p.le64(72))
		return true
	}},
	{"exfat", 3, "EXFAT   ", func(p *image, c *Content) bool {
		c.UUID = fatSerial(p.le32(100))
		return true
	}},
	{"vfat", 82, "FAT32   ", func(p *image, c *Content) bool {
		c.UUID = fatSerial(p.le32(67))
		return true
	}},
	{"vfat", 54, "FAT1", func(p *image, c *Content) bool {
		c.UUID = fatSerial(p.le32(39))
		return true
	}},
	{"squashfs", 0, "hsqs", nil},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0", nil},
	{"iso9660", 32769, "CD001", nil},
	{"ceph_bluestore", 0, "bluestore block device", nil},
	{"gpt", 512, "EFI PART", func(p *image, c *Content) bool {
		c.UUID = p.guid(512 + 56)
		return true
	}},
	{"gpt", 4096, "EFI PART", func(p *image, c *Content) bool {
		c.UUID = p.guid(4096 + 56)
		return true
	}},
	{"dos", 510, "\x55\xaa", readMBR},
}

// probe looks for signatures. r may be any reader of the device.
func probe(r io.ReaderAt, size int64, sector int) (Content, error) {
	p := &image{head: make([]byte, min(headBytes, size)), size: size}
	if _, err := r.ReadAt(p.head, 0); err != nil && !errors.Is(err, io.EOF) {
		return Content{}, err
	}
	p.tail = make([]byte, min(tailBytes, size))
	if _, err := r.ReadAt(p.tail, size-int64(len(p.tail))); err != nil && !errors.Is(err, io.EOF) {
		return Content{}, err
	}
	for _, s := range signatures {
		if !bytes.HasPrefix(p.at(s.off, len(s.magic)), []byte(s.magic)) {
			continue
		}
		c := Content{Type: s.kind}
		if s.read == nil || s.read(p, &c) {
			return c, nil
		}
	}
	return p.fromTail(sector), nil
}

// fromTail looks for what is kept at the end: RAID superblocks and the second copy of a GPT.
func (p *image) fromTail(sector int) Content {
	if p.size < 256<<10 {
		return Content{}
	}
	back := func(off int64) []byte { // off is from the start of the device
		i := off - (p.size - int64(len(p.tail)))
		if i < 0 || i+512 > int64(len(p.tail)) {
			return make([]byte, 512)
		}
		return p.tail[i : i+512]
	}
	const magic = "\xfc\x4e\x2b\xa9"
	if b := back((p.size/512 - 16) &^ 7 * 512); bytes.HasPrefix(b, []byte(magic)) { // version 1.0
		return Content{Type: "linux_raid_member", UUID: formatUUID(b[16:32])}
	}
	if b := back(p.size&^(64<<10-1) - 64<<10); bytes.HasPrefix(b, []byte(magic)) { // version 0.90
		return Content{Type: "linux_raid_member"}
	}
	if b := back(p.size - int64(sector)); bytes.HasPrefix(b, []byte("EFI PART")) {
		return Content{Type: "gpt", UUID: formatGUID(b[56:72])}
	}
	return Content{}
}

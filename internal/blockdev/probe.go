package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
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
	{"bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
		func(p *image, c *Content) bool { c.UUID = p.uuid(4096 + 40); return true }},
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
	{"gpt", 512, "EFI PART", func(p *image, c *Content) bool { c.UUID = p.guid(512 + 56); return true }},
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

func (p *image) at(off int64, n int) []byte {
	if off < 0 || off+int64(n) > int64(len(p.head)) {
		return make([]byte, n)
	}
	return p.head[off : off+int64(n)]
}

func (p *image) le16(off int64) uint16 { return binary.LittleEndian.Uint16(p.at(off, 2)) }
func (p *image) le32(off int64) uint32 { return binary.LittleEndian.Uint32(p.at(off, 4)) }
func (p *image) le64(off int64) uint64 { return binary.LittleEndian.Uint64(p.at(off, 8)) }

func (p *image) text(off int64, n int) string {
	s, _, _ := strings.Cut(string(p.at(off, n)), "\x00")
	return strings.TrimSpace(s)
}

func (p *image) uuid(off int64) string { return formatUUID(p.at(off, 16)) }
func (p *image) guid(off int64) string { return formatGUID(p.at(off, 16)) }

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// formatGUID has the first three fields in little-endian order, as Microsoft's have them.
func formatGUID(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]),
		b[8:10], b[10:16])
}

func fatSerial(n uint32) string { return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff) }

func readExt(p *image, c *Content) bool {
	const sb = 1024
	c.UUID, c.Label = p.uuid(sb+104), p.text(sb+120, 16)
	compat, incompat, ro := p.le32(sb+92), p.le32(sb+96), p.le32(sb+100)
	const (
		hasJournal = 0x4
		// Features that ext3 does not have.
		newIncompat = ^uint32(0x2 | 0x4 | 0x10)
		newRO       = ^uint32(0x1 | 0x2 | 0x4)
	)
	switch {
	case incompat&newIncompat != 0 || ro&newRO != 0:
		c.Type = "ext4"
	case compat&hasJournal != 0:
		c.Type = "ext3"
	}
	return p.le32(sb+24) <= 6 // block size 1 KiB … 64 KiB: else the two bytes were chance
}

func readSwap(p *image, c *Content) bool {
	c.UUID, c.Label = p.uuid(1036), p.text(1052, 16)
	return true
}

func readLVM(p *image, c *Content) bool {
	for _, off := range []int64{0, 512} {
		if string(p.at(off, 8)) == "LABELONE" && string(p.at(off+24, 8)) == "LVM2 001" {
			c.UUID = p.text(off+32, 32)
			return true
		}
	}
	return false
}

func readMD(off int64) func(*image, *Content) bool {
	return func(p *image, c *Content) bool {
		c.UUID, c.Label = p.uuid(off+16), p.text(off+32, 32)
		return p.le32(off+4) == 1
	}
}

// readMBR tells a partition table from a boot sector without one.
func readMBR(p *image, c *Content) bool {
	found := false
	for i := int64(446); i < 510; i += 16 {
		e := p.at(i, 16)
		if e[0]&0x7f != 0 {
			return false
		}
		found = found || e[4] != 0
	}
	c.UUID = fmt.Sprintf("%08x", p.le32(440))
	return found
}

// askBlkid asks the system's own tool, which knows many more signatures, if it is installed.
func askBlkid(path string) Content {
	out, err := exec.Command("blkid", "-p", "-o", "export", path).Output()
	if err != nil {
		return Content{}
	}
	var c Content
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "TYPE":
			c.Type = value
		case "PTTYPE":
			if c.Type == "" {
				c.Type = value
			}
		case "UUID", "PTUUID":
			if c.UUID == "" {
				c.UUID = value
			}
		case "LABEL":
			c.Label = value
		}
	}
	return c
}

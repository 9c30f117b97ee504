package blockdev

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"strings"
)

// How the fields of the various superblocks are read.

func (p *image) at(off int64, n int) []byte {
	if off < 0 || off+int64(n) > int64(len(p.head)) {
		return make([]byte, n)
	}
	return p.head[off : off+int64(n)]
}

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

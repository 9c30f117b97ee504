// Package blockdev finds out what a block device or an image file is, who uses it and what is on
// it, and opens it so that nobody else can.
package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ubcache/internal/report"
)

// SectorBytes is the unit in which sysfs counts.
const SectorBytes = 512

// Info describes a block device or an image file.
type Info struct {
	Path          string `json:"path"`        // with symbolic links resolved
	StablePath    string `json:"stable_path"` // under /dev/disk/by-id if there is such a link
	Block         bool   `json:"block"`       // false: a regular file
	Dev           uint64 `json:"-"`           // device number of a block device
	diskSeq       int64  // tells disks apart that have the number one after the other
	SizeBytes     int64  `json:"size_bytes"`
	LogicalBytes  int    `json:"logical_block_bytes"`
	PhysicalBytes int    `json:"physical_block_bytes"`
	Rotational    bool   `json:"rotational"`
	ReadOnly      bool   `json:"read_only"`
	Discard       bool   `json:"discard"`
	// Serial is what tells this device from another of its kind: WWID or serial number, with
	// the number of the partition. It may be empty.
	Serial  string  `json:"serial,omitempty"`
	Content Content `json:"content"`
	sysfs   string  // folder of the device
	queue   string  // folder of its queue's limits, a partition's disk's
}

// Inspect looks at a device and at what is on it, without opening it for writing.
func Inspect(path string) (*Info, error) {
	i, err := Stat(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(i.Path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	defer f.Close()
	i.Content, err = probe(f, i.SizeBytes, i.LogicalBytes)
	if err != nil {
		return nil, fmt.Errorf("look for data on %s: %w", path, err)
	}
	if i.Content.Type == "" {
		i.Content = askBlkid(i.Path)
	}
	return i, nil
}

// Stat is Inspect without a look at the content: it does no I/O on the device.
func Stat(path string) (*Info, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, openError(path, err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, openError(path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return nil, openError(path, err)
	}
	i := &Info{Path: real, StablePath: real}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		i.file(&st)
	case unix.S_IFBLK:
		i.Block, i.Dev = true, st.Rdev
		if err := i.block(); err != nil {
			return nil, fmt.Errorf("inspect %s: %w", path, err)
		}
		i.StablePath = stablePath(real, path, st.Rdev)
	default:
		return nil, report.Fail("open "+path, "neither a block device nor a regular file", "")
	}
	return i, nil
}

func openError(path string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, os.ErrPermission):
		hint = "run as root"
	case errors.Is(err, os.ErrNotExist):
		hint = "see lsblk for the devices there are"
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return report.Wrap("open "+path, err, hint)
}

// file describes a regular file. Direct I/O wants whole blocks of the filesystem's device.
func (i *Info) file(st *unix.Stat_t) {
	i.LogicalBytes, i.PhysicalBytes = 512, 4096
	var sx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, i.Path, 0, unix.STATX_DIOALIGN, &sx)
	if err == nil && sx.Mask&unix.STATX_DIOALIGN != 0 && sx.Dio_offset_align > 512 {
		i.LogicalBytes = 4096
	}
	i.SizeBytes = st.Size / int64(i.LogicalBytes) * int64(i.LogicalBytes)
	i.Discard = true
}

// block reads the attributes of a block device from sysfs.
func (i *Info) block() error {
	dev := fmt.Sprintf("%d:%d", unix.Major(i.Dev), unix.Minor(i.Dev))
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + dev)
	if err != nil {
		return fmt.Errorf("no such device in sysfs: %w", err)
	}
	i.sysfs, i.queue = dir, filepath.Join(dir, "queue")
	part := sysText(dir, "partition")
	if part != "" {
		i.queue = filepath.Join(filepath.Dir(dir), "queue")
	}
	i.SizeBytes = sysInt(dir, "size") * SectorBytes
	i.diskSeq = sysInt(filepath.Dir(i.queue), "diskseq")
	i.ReadOnly = sysInt(dir, "ro") != 0
	i.LogicalBytes = int(sysInt(i.queue, "logical_block_size"))
	i.PhysicalBytes = int(sysInt(i.queue, "physical_block_size"))
	i.Rotational = sysInt(i.queue, "rotational") != 0
	i.Discard = sysInt(i.queue, "discard_max_bytes") > 0
	disk := filepath.Dir(i.queue)
	for _, name := range []string{
		"wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "md/uuid",
	} {
		if s := sysText(disk, name); s != "" {
			i.Serial = s
			break
		}
	}
	if i.Serial != "" && part != "" {
		i.Serial += "-part" + part
	}
	return nil
}

// QueueLimit reads a number from the device's queue folder in sysfs; 0 if it has none.
func (i *Info) QueueLimit(name string) int64 {
	if !i.Block {
		return 0
	}
	return sysInt(i.queue, name)
}

func sysText(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	// Some devices pad their serial numbers with blanks and zero bytes.
	return strings.Join(strings.Fields(strings.ReplaceAll(string(b), "\x00", " ")), " ")
}

func sysInt(dir, name string) int64 {
	n, _ := strconv.ParseInt(sysText(dir, name), 10, 64)
	return n
}

// byID is where udev keeps names that survive a reboot.
const byID = "/dev/disk/by-id"

// stablePath finds a name for the device that survives a reboot: under by-id, else as it was
// given if that was a link below /dev, else as it is.
func stablePath(real, given string, dev uint64) string {
	links, _ := filepath.Glob(byID + "/*")
	best, bestRank := "", 0
	for _, l := range links {
		var st unix.Stat_t
		if unix.Stat(l, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != dev {
			continue
		}
		if r := linkRank(filepath.Base(l)); r > bestRank {
			best, bestRank = l, r
		}
	}
	if best != "" {
		return best
	}
	if abs, err := filepath.Abs(given); err == nil && strings.HasPrefix(abs, "/dev/") {
		return abs
	}
	return real
}

// linkRank prefers names that come from the device itself to those that come from its content,
// which changes.
func linkRank(name string) int {
	ranks := []struct {
		prefix string
		rank   int
	}{
		{"lvm-pv-", 1},
		{"md-name-", 2},
		{"dm-name-", 3},
		{"usb-", 4},
		{"scsi-", 5},
		{"wwn-", 6},
		{"nvme-eui.", 6},
		{"nvme-uuid.", 6},
		{"md-uuid-", 6},
		{"dm-uuid-", 7},
		{"virtio-", 7},
		{"ata-", 8},
		{"nvme-", 7},
	}
	for _, r := range ranks {
		if strings.HasPrefix(name, r.prefix) {
			return r.rank
		}
	}
	return 2
}

// All lists the block devices of the machine, partitions too, that can hold data. Those on top of
// ublk devices are left out: reading them waits for a daemon that may not run yet.
func All() []string {
	dirs, _ := filepath.Glob("/sys/class/block/*")
	var list []string
	for _, d := range dirs {
		if sysInt(d, "size") > 0 && !onUblk(d) {
			list = append(list, "/dev/"+strings.ReplaceAll(filepath.Base(d), "!", "/"))
		}
	}
	return list
}

// Census names the disks and partitions of the machine so that it differs when one comes or goes, or is
// replaced under its name. It does no I/O on them.
func Census() string {
	dirs, _ := filepath.Glob("/sys/class/block/*")
	var b strings.Builder
	for _, d := range dirs {
		fmt.Fprintln(&b, filepath.Base(d), sysText(d, "diskseq"), sysText(d, "size"))
	}
	return b.String()
}

func onUblk(dir string) bool {
	if strings.HasPrefix(filepath.Base(dir), "ublkb") {
		return true
	}
	slaves, _ := filepath.Glob(dir + "/slaves/*")
	for _, s := range slaves {
		if onUblk(s) {
			return true
		}
	}
	return false
}

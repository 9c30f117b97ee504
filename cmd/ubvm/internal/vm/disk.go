package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A Disk is a test disk of the guest, found there as /dev/vmdisk/NAME and in $UBVM_NAME.
type Disk struct {
	Name        string
	SizeBytes   int64
	SectorBytes int
	IOPS        int    // limit of requests per second; 0: none. The guest sees a rotating disk
	BytesPerSec int64  // limit of the throughput; 0: none
	NoDiscard   bool   // the guest sees a disk that cannot discard
	SCSI        bool   // a SCSI disk, which the guest can have unplugged, and no virtio disk
	Path        string // a file that stays; empty: a file that ends with the run
}

// slowIOPS and slowBytesPerSec make a disk like a rotating one: 8 ms a request, 120 MB/s.
const (
	slowIOPS        = 120
	slowBytesPerSec = 120 << 20
)

// DefaultDisks are there in every run: an SSD and a slow disk with either sector size, and two disks
// to unplug.
func DefaultDisks() []Disk {
	return []Disk{
		{Name: "ssd", SizeBytes: 2 << 30, SectorBytes: 512},
		{Name: "ssd4k", SizeBytes: 2 << 30, SectorBytes: 4096},
		{
			Name: "slow", SizeBytes: 4 << 30, SectorBytes: 512,
			IOPS: slowIOPS, BytesPerSec: slowBytesPerSec,
		},
		{
			Name: "slow4k", SizeBytes: 4 << 30, SectorBytes: 4096,
			IOPS: slowIOPS, BytesPerSec: slowBytesPerSec,
		},
		{Name: "plug0", SizeBytes: 512 << 20, SectorBytes: 512, SCSI: true},
		{Name: "plug1", SizeBytes: 512 << 20, SectorBytes: 512, SCSI: true},
	}
}

// Serial numbers of virtio disks hold 20 bytes, and ":slow" is appended to one.
var diskName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,13}$`)

// ParseDisk reads NAME[,size=4G][,sector=512|4096][,iops=N][,bps=100M][,nodiscard][,scsi][,path=FILE].
func ParseDisk(spec string) (Disk, error) {
	name, rest, _ := strings.Cut(spec, ",")
	d := Disk{Name: name, SizeBytes: 2 << 30, SectorBytes: 512}
	for _, known := range DefaultDisks() {
		if known.Name == name {
			d = known
		}
	}
	var errs []error
	if !diskName.MatchString(name) {
		errs = append(errs, fmt.Errorf("name %q is not 1 to 14 lower-case letters and digits", name))
	}
	for rest != "" {
		var option string
		option, rest, _ = strings.Cut(rest, ",")
		errs = append(errs, d.set(option))
	}
	if d.SectorBytes != 512 && d.SectorBytes != 4096 {
		errs = append(errs, fmt.Errorf("sector size %d is neither 512 nor 4096", d.SectorBytes))
	}
	if d.SizeBytes < 1<<20 || d.SizeBytes%4096 != 0 {
		errs = append(errs, fmt.Errorf("size %d is not a multiple of 4096 from 1M up", d.SizeBytes))
	}
	if d.SCSI && (d.IOPS > 0 || d.BytesPerSec > 0) {
		errs = append(errs, errors.New("a SCSI disk has no limits of speed"))
	}
	if err := errors.Join(errs...); err != nil {
		return d, fmt.Errorf("disk %q: %s", spec, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return d, nil
}

func (d *Disk) set(option string) (err error) {
	key, value, _ := strings.Cut(option, "=")
	switch key {
	case "size":
		d.SizeBytes, err = parseBytes(value)
	case "sector":
		d.SectorBytes, err = strconv.Atoi(value)
	case "iops":
		d.IOPS, err = strconv.Atoi(value)
	case "bps":
		d.BytesPerSec, err = parseBytes(value)
	case "nodiscard":
		d.NoDiscard = true
	case "scsi":
		d.SCSI = true
	case "path":
		d.Path, err = filepath.Abs(value)
	default:
		err = fmt.Errorf("unknown option %q", key)
	}
	return err
}

func parseBytes(s string) (int64, error) {
	unit := int64(1)
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGT", s[n-1]); i >= 0 {
			unit, s = 1<<(10*(i+1)), s[:n-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("%q is not a size such as 512M", s)
	}
	return n * unit, nil
}

// file is where the disk is if it ends with the run.
func (d *Disk) file(dir string) string { return filepath.Join(dir, d.Name+".img") }

// create makes the disk's file if it is not there yet; the file is sparse.
func (d *Disk) create(dir string) error {
	if d.Path == "" {
		d.Path = d.file(dir)
	}
	f, err := os.OpenFile(d.Path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make disk %s: %w", d.Name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		err = f.Truncate(d.SizeBytes)
	}
	if err != nil {
		return fmt.Errorf("make disk %s: %w", d.Name, err)
	}
	return nil
}

// args are QEMU's options for the disk. Writes go to the host's page cache and a flush of the
// guest to the file: a reset of the guest loses only what the guest had not sent.
func (d *Disk) args() []string {
	if d.SCSI {
		return d.scsiArgs()
	}
	drive := "if=none,format=raw,cache=writeback,aio=threads,id=" + d.Name
	serial := d.Name
	if d.NoDiscard {
		drive += ",discard=ignore"
	} else {
		drive += ",discard=unmap"
	}
	if d.IOPS > 0 {
		// A large request counts as several, as it would take longer on a real disk.
		drive += fmt.Sprintf(",throttling.iops-total=%d,throttling.iops-size=1048576", d.IOPS)
		serial += ":slow"
	}
	if d.BytesPerSec > 0 {
		drive += fmt.Sprintf(",throttling.bps-total=%d", d.BytesPerSec)
	}
	onOff := map[bool]string{true: "off", false: "on"}[d.NoDiscard]
	device := fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,num-queues=2,"+
		"logical_block_size=%d,physical_block_size=%d,discard=%s,write-zeroes=%s",
		d.Name, serial, d.SectorBytes, max(4096, d.SectorBytes), onOff, onOff)
	return []string{"-drive", drive + ",file=" + strings.ReplaceAll(d.Path, ",", ",,"), "-device", device}
}

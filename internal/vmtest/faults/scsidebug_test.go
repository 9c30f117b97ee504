//go:build vm

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// scsiDebug is the kernel's SCSI disk in memory, with a range of sectors that it can fail to read.
type scsiDebug struct{ dev string }

func newSCSIDebug(t *testing.T, sizeMiB int, badSector, badCount int64) *scsiDebug {
	t.Helper()
	vmtest.Modprobe(t, "sd_mod")
	vmtest.Run(t, "modprobe", "scsi_debug", fmt.Sprint("dev_size_mb=", sizeMiB), "lbpu=1", "delay=0",
		fmt.Sprint("medium_error_start=", badSector), fmt.Sprint("medium_error_count=", badCount))
	t.Cleanup(func() {
		vmtest.Wait(t, 30*time.Second, "removal of scsi_debug", func() bool {
			_, err := vmtest.Try(t, "modprobe", "-r", "scsi_debug")
			return err == nil
		})
	})
	d := &scsiDebug{}
	vmtest.Wait(t, 30*time.Second, "scsi_debug's disk", func() bool {
		names, _ := filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*")
		if len(names) == 0 {
			return false
		}
		d.dev = "/dev/" + filepath.Base(names[0])
		_, err := os.Stat(d.dev)
		return err == nil
	})
	return d
}

// errors turns the failures on and off.
func (d *scsiDebug) errors(t *testing.T, on bool) {
	t.Helper()
	const mediumErrors = "2"
	value := map[bool]string{true: mediumErrors, false: "0"}[on]
	if err := os.WriteFile("/sys/bus/pseudo/drivers/scsi_debug/opts", []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// Where scsi_debug's disk has its bad sectors, in bytes: in the data of an SSD that has been filled with
// 12 MiB, and in the last range of a backing device.
const badFrom, badTo = 10 << 20, 12 << 20

// TestMediumErrors has SSD and backing device on scsi_debug, which fails reads of a range of sectors
// as a disk with bad sectors does.
func TestMediumErrors(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *scsiDebug){"ssd": mediumSSD, "backing": mediumBacking} {
		t.Run(name, func(t *testing.T) {
			vmtest.OnlyFull(t)
			vmtest.Limit(t, 5*time.Minute)
			test(t, newSCSIDebug(t, faultBacking, badFrom/512, (badTo-badFrom)/512))
		})
	}
}

func mediumSSD(t *testing.T, disk *scsiDebug) {
	s := newStageOn(t, "SSD: medium errors (scsi_debug)", disk.dev, vmtest.Slice(t, "ssd", 512, faultBacking),
		keepsDirty...)
	for i, o := range s.oracles {
		s.fill(o)
		if i == 1 {
			vmtest.Ubcache(t, "flush", "data")
		}
	}
	s.y.Tried(1)
	disk.errors(t, true)
	for _, o := range s.oracles[:2] {
		o.ReadAll(s.y, "clean data", 64, nil)
	}
	failed := 0
	for _, o := range s.oracles[2:] {
		failed += s.readBlocks("dirty data", o, writtenBlock)
	}
	t.Logf("%d blocks failed, %+v", failed, s.stats())
	if s.stats().SSDErrors == 0 || int64(failed)*4096 != s.c.Device(t, "data").BadBytes {
		t.Errorf("%d blocks failed, %+v", failed, s.c.Device(t, "data"))
	}
	s.overwrite(t)
	disk.errors(t, false)
	s.end()
}

func mediumBacking(t *testing.T, disk *scsiDebug) {
	s := newStageOn(t, "backing device: medium errors (scsi_debug)", vmtest.Slice(t, "ssd", 0, faultSSD), disk.dev,
		"--mode=writethrough")
	for _, o := range s.oracles {
		s.fill(o)
	}
	// The front half of the bad range stays in the cache.
	const notCached = (badFrom + badTo) / 2
	vmtest.Ubcache(t, "flush", "data")
	for at := int64(notCached); at < badTo; at += 512 << 10 {
		vmtest.Ubcache(t, "io", "read", "--device", "data", "--offset", strconv.FormatInt(at, 10), "--length", "512K", "--attrs",
			"hint=evict,required:hint")
	}
	s.y.Tried(1)
	disk.errors(t, true)
	failed := 0
	for i, o := range s.oracles {
		failed += s.readBlocks("around the bad sectors", o, func(_ *vmtest.Oracle, at int) bool {
			return int64(i)*faultRange+int64(at)*512 >= notCached
		})
	}
	t.Logf("%d blocks failed, %+v", failed, s.stats())
	if failed != (badTo-notCached)/4096 {
		t.Errorf("%d blocks failed, and %d bytes are bad and not cached", failed, badTo-notCached)
	}
	disk.errors(t, false)
	s.readAll("after the fault")
	s.end()
}

// fill writes all of a range.
func (s *stage) fill(o *vmtest.Oracle) {
	s.t.Helper()
	for at := 0; at < o.Len(); at += 128 {
		if err := o.Write(at, min(128, o.Len()-at)); err != nil {
			s.y.Failed("filling: %v", err)
		}
	}
}

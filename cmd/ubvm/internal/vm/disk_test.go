package vm

import (
	"strings"
	"testing"
)

func TestParseDisk(t *testing.T) {
	for spec, want := range map[string]Disk{
		"data":                      {Name: "data", SizeBytes: 2 << 30, SectorBytes: 512},
		"data,size=64M,sector=4096": {Name: "data", SizeBytes: 64 << 20, SectorBytes: 4096},
		"ssd,size=8G":               {Name: "ssd", SizeBytes: 8 << 30, SectorBytes: 512},
		"slow4k,iops=50,bps=0,nodiscard": {
			Name: "slow4k", SizeBytes: 4 << 30, SectorBytes: 4096, IOPS: 50, NoDiscard: true,
		},
		"y,scsi":        {Name: "y", SizeBytes: 2 << 30, SectorBytes: 512, SCSI: true},
		"x,path=/tmp/a": {Name: "x", SizeBytes: 2 << 30, SectorBytes: 512, Path: "/tmp/a"},
	} {
		if got, err := ParseDisk(spec); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for spec, part := range map[string]string{
		"":                "name",
		"SSD":             "name",
		"a-b":             "name",
		"a,size=":         "size",
		"a,size=-1":       "size",
		"a,size=1000":     "multiple of 4096",
		"a,sector=1024":   "sector",
		"a,colour=red":    "colour",
		"a,scsi,iops=100": "limits",
		"a,size=9999999T": "size",
	} {
		_, err := ParseDisk(spec)
		if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error %v does not tell of %q in one line", spec, err, part)
		}
	}
}

func TestDiskArgs(t *testing.T) {
	d, err := ParseDisk("slow4k,path=/tmp/with,comma")
	if err == nil {
		t.Fatalf("a comma ends the path, so comma is an unknown option; got %+v", d)
	}
	d = Disk{Name: "slow4k", SectorBytes: 4096, IOPS: 120, BytesPerSec: 1 << 20, Path: "/a,b"}
	args := strings.Join(d.args(), " ")
	for _, want := range []string{
		"file=/a,,b", "throttling.iops-total=120", "throttling.bps-total=1048576",
		"logical_block_size=4096", "discard=on", "serial=slow4k:slow", "cache=writeback",
	} {
		if !strings.Contains(args, want) {
			t.Errorf("no %s in %s", want, args)
		}
	}
}

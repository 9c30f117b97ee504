//go:build vm

package vmtest

import (
	"fmt"
	"testing"
	"time"
)

// TestOrderedCost measures what the order costs on a slow disk: writes a second in the first seconds,
// which the SSD takes, and in the long run, which the disk has to keep up with. docs/operation.md
// has the figures of one run.
func TestOrderedCost(t *testing.T) {
	OnlyLong(t)
	Limit(t, 8*time.Minute)
	loads := []struct {
		name    string
		options []string
	}{
		{"4k, fsync after each, 1 at a time", []string{"iodepth=1", "fsync=1"}},
		{"4k, fsync after 64, 16 at a time", []string{"iodepth=16", "fsync=64"}},
		{"4k, no fsync, 16 at a time", []string{"iodepth=16"}},
	}
	for _, setting := range []struct {
		name  string
		flags []string
	}{
		{"writethrough", []string{"--mode=writethrough"}},
		{"writeback", []string{"--mode=writeback", "--dirty-target=1", "--dirty-max=4"}},
		{"ordered", []string{"--mode=writeback", "--ordered=on", "--ordered-max=4M"}},
	} {
		t.Run(setting.name, func(t *testing.T) {
			c := NewCache(t, Slice(t, "ssd", 0, 160))
			slow := DelayDevice(t, Slice(t, "slow", 0, 256), Delays{ReadMs: 4, WriteMs: 4, FlushMs: 8})
			dev := c.Attach(t, slow, "data", append(setting.flags, "--sequential-cutoff=0")...)
			for _, l := range loads {
				var rates []int64
				for _, seconds := range []int64{3, 15} {
					Ubcache(t, "flush", "data")
					r := Fio(t, dev, append(l.options, "rw=randwrite", "bs=4k", "size=128m", "time_based",
						fmt.Sprint("runtime=", seconds))...)
					rates = append(rates, r.WriteBytes/4096/seconds)
				}
				fmt.Printf("cost: %-13s %-34s %6d/s in 3 s, %6d/s in 15 s\n", setting.name, l.name, rates[0], rates[1])
				if rates[0] == 0 || rates[1] == 0 {
					t.Error("nothing was written")
				}
			}
			c.Stop(t)
		})
	}
}

//go:build vm

// Package powercut resets the machine in the middle of writes that programs make durable with
// fsync, and looks after the reboot whether all is there that had been. It has a package of its
// own because the run starts anew after each reset (ubvm test --on-reset reboot): boot n looks at
// what round n-1 has left and then plays round n.
//
// A reset loses the guest's memory, and with it the daemon, its pending ring and all page caches.
// What the disks were given is kept, flushed or not: disks that lose or reorder what was not
// flushed are the simulator's to play (cache/sim).
package powercut

import (
	"fmt"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// round is one power cut.
type round struct {
	mode string
	// alone says that the backing device without the SSD has everything.
	alone bool
}

var rounds = []round{{"writeback", false}, {"writethrough", true}, {"writeback", false}}

const (
	ssdMiB     = 256
	backingMiB = 512
	config     = "/etc/ubcache.toml"
	keptConfig = "powercut/ubcache.toml"
	// enough is how often each writer's data is durable before the power goes.
	enough = 25
)

func TestPowerCut(t *testing.T) {
	vmtest.Limit(t, 5*time.Minute)
	boot := vmtest.Boot(t)
	if boot > len(rounds)+1 {
		t.Fatalf("boot %d: the machine has reset when it should not", boot)
	}
	ssd := vmtest.RawSlice(t, "ssd", 0, ssdMiB)
	backing := vmtest.RawSlice(t, "slow", 0, backingMiB)
	if boot > 1 {
		r := rounds[boot-2]
		// Not a subtest of the cut: its cleanup, with the check of the SSD, has to come first.
		if !t.Run(fmt.Sprintf("after-%d-%s", boot-1, r.mode), func(t *testing.T) { r.verify(t, ssd, backing) }) {
			return
		}
	}
	if boot <= len(rounds) {
		r := rounds[boot-1]
		t.Run(fmt.Sprintf("cut-%d-%s", boot, r.mode), func(t *testing.T) { r.cut(t, ssd, backing) })
	}
}

// cut makes a cache and a filesystem, writes, and turns the power off.
func (r round) cut(t *testing.T, ssd, backing string) {
	clearWitness(t)
	c := vmtest.NewCache(t, ssd, "--force")
	dev := c.Attach(t, backing, "data", "--mode="+r.mode, "--sequential-cutoff=0")
	vmtest.Run(t, "mkfs.ext4", "-q", "-F", dev)
	dir := t.TempDir()
	vmtest.Run(t, "mount", dev, dir)
	writers := startWriters(t, dir)
	vmtest.Wait(t, 3*time.Minute, "durable writes", func() bool {
		for _, w := range writers {
			if err := w.err(); err != nil {
				t.Fatal(err)
			}
			if w.acked.Load() < enough {
				return false
			}
		}
		return true
	})
	// The root filesystem is a new one after each boot, so the configuration has to be kept
	// elsewhere.
	vmtest.Run(t, "cp", config, vmtest.Out(t, keptConfig))
	if d := c.Device(t, "data"); r.mode == "writeback" && d.DirtyBytes == 0 {
		t.Fatal("nothing is dirty: the backing device has everything anyway")
	}
	vmtest.PowerCut(t)
}

// verify looks at what the round before the reset has left.
func (r round) verify(t *testing.T, ssd, backing string) {
	vmtest.Run(t, "cp", vmtest.Out(t, keptConfig), config)
	acked := readWitness(t)
	fmt.Printf("%s: acknowledged before the power cut: %v\n", t.Name(), acked)
	for i, n := range acked {
		if n < enough {
			t.Fatalf("witness of writer %d is %d: it did not survive", i, n)
		}
	}
	if r.alone {
		// Through a snapshot, for the replay of the filesystem's journal must not change the
		// backing device behind the cache's back. The subtest's end removes it.
		t.Run("alone", func(t *testing.T) {
			checkFiles(t, "backing device alone", vmtest.Snapshot(t, backing), acked)
		})
	}
	c := vmtest.ReopenCache(t, ssd)
	dev := c.Device(t, "data").Path
	checkFiles(t, "through the cache", dev, acked)
	vmtest.Run(t, "e2fsck", "-fn", dev)
}

//go:build vm

// Package powercut resets the machine in the middle of writes that programs make durable with
// fsync, and looks after the reboot whether all is there that had been. It has a package of its
// own because the run starts anew after each reset (ubvm test --on-reset reboot): boot n looks at
// what round n-1 has left and then plays round n.
//
// A reset loses the guest's memory, and with it the daemon, its pending ring and all page caches.
// What the disks were given is kept, flushed or not. Disks that lose or reorder what was not
// flushed are for package faults (dm-log-writes) and the simulator (cache/sim) to play.
package powercut

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// round is one power cut.
type round struct {
	// mode of the cache while the writers run. An empty one is a cut in the middle of a start, before
	// anybody has looked at what the last cut has left.
	mode string
	// fs is made anew at the beginning; empty: the round goes on with the cache and the filesystem of the last.
	fs string
}

// Several cuts in a row hit the same cache: what one recovery has written is what the next reads.
var full = []round{
	{"writeback", "ext4"},
	{"writeback", ""},
	{"", ""},
	{"", ""},
	{"writethrough", ""}, // with dirty data left from before
	{"writethrough", "xfs"},
	{"writethrough", ""},
	{"writeonly", "ext4"},
	{"", ""},
	{"writeonly", ""},
	{"writearound", "ext4"},
	{"writeback", ""}, // over clean blocks
}

var short = []round{{"writeback", "ext4"}, {"", ""}, {"writethrough", "ext4"}}

// soakRounds is how many there are at random after the full list.
const soakRounds = 60

const (
	ssdMiB     = 256
	backingMiB = 512
	config     = "/etc/ubcache.toml"
	keptConfig = "powercut/ubcache.toml"
	// enough is how often each writer's data is durable before the power goes.
	enough = 25
)

// plan is the same in each boot of a run.
func plan(t *testing.T) []round {
	switch {
	case vmtest.Soak(t):
		return slices.Concat(full, random(soakRounds))
	case vmtest.Long(t):
		return full
	case vmtest.Full(t):
		return slices.Concat(full[:3], full[4:6])
	}
	return short
}

func random(n int) (list []round) {
	rnd := rand.New(rand.NewPCG(7, 7))
	modes := []string{"writeback", "writeback", "", "writethrough", "writeonly", "writearound", "none"}
	for i := range n {
		r := round{mode: modes[rnd.IntN(len(modes))]}
		if i%10 == 0 {
			r = round{"writeback", []string{"ext4", "xfs"}[i/10%2]}
		}
		list = append(list, r)
	}
	return list
}

func TestPowerCut(t *testing.T) {
	vmtest.Limit(t, 5*time.Minute)
	rounds := plan(t)
	boot := vmtest.Boot(t)
	if boot > len(rounds)+1 {
		t.Fatalf("boot %d: the machine has reset when it should not", boot)
	}
	d := disks{ssd: vmtest.RawSlice(t, "ssd", 0, ssdMiB), backing: vmtest.RawSlice(t, "slow", 0, backingMiB)}
	if boot <= len(rounds) && rounds[boot-1].mode == "" {
		t.Run(fmt.Sprintf("cut-%d-start", boot), func(t *testing.T) { d.cutStart(t, boot) })
	}
	if boot > 1 {
		left := history(rounds[:boot-1])
		// Not a subtest of the cut: its cleanup, with the check of the SSD, has to come first.
		name := fmt.Sprintf("after-%d-%s", boot-1, left.mode)
		if !t.Run(name, func(t *testing.T) { d.verify(t, left) }) {
			return
		}
	}
	if boot <= len(rounds) {
		r := rounds[boot-1]
		t.Run(fmt.Sprintf("cut-%d-%s", boot, r.mode), func(t *testing.T) { d.cut(t, r) })
	}
}

// state is what the rounds so far have left.
type state struct {
	mode, fs string
	cuts     int // since the last writers: nobody has looked behind them yet
	// alone says that the backing device without the SSD has everything.
	alone bool
}

func history(rounds []round) (s state) {
	for _, r := range rounds {
		if r.fs != "" {
			s.fs, s.alone = r.fs, true
		}
		if r.mode != "" {
			s.mode, s.cuts = r.mode, 0
		}
		s.alone = s.alone && s.mode != "writeback" && s.mode != "writeonly"
		s.cuts++
	}
	return s
}

type disks struct{ ssd, backing string }

// cut writes to a new filesystem, or goes on with the old one, and turns the power off.
func (d *disks) cut(t *testing.T, r round) {
	var c *vmtest.Cache
	var dev string
	from := make([]int64, vmtest.WriterCount)
	if r.fs != "" {
		clearWitness(t)
		c = vmtest.NewCache(t, d.ssd, "--force")
		dev = c.Attach(t, d.backing, "data", "--mode="+r.mode, "--sequential-cutoff=0", "--dirty-target=2",
			"--writeback-delay=2s")
		vmtest.FileSystem(r.fs).Create(t, dev)
		vmtest.Run(t, "cp", config, vmtest.Out(t, keptConfig))
	} else {
		vmtest.Run(t, "cp", vmtest.Out(t, keptConfig), config)
		c = vmtest.ReopenCache(t, d.ssd)
		c.Set(t, "data", "mode="+r.mode)
		vmtest.Run(t, "cp", config, vmtest.Out(t, keptConfig))
		dev = c.Device(t, "data").Path
		from = readWitness(t)
	}
	dir := t.TempDir()
	vmtest.Run(t, "mount", dev, dir)
	if r.fs != "" {
		makeWarm(t, c, dir)
	}
	writers := startWriters(t, dir, from)
	vmtest.Wait(t, 3*time.Minute, "durable writes", func() bool {
		if err := writers.Err(); err != nil {
			t.Fatal(err)
		}
		for i, n := range writers.Acked() {
			if n < from[i]+enough {
				return false
			}
		}
		return true
	})
	if s := c.Device(t, "data"); r.mode == "writeback" && s.DirtyBytes == 0 {
		t.Fatal("nothing is dirty: the backing device has everything anyway")
	}
	vmtest.PowerCut(t)
}

// cutStart turns the power off while the cache starts, which recovers.
func (d *disks) cutStart(t *testing.T, boot int) {
	vmtest.Run(t, "cp", vmtest.Out(t, keptConfig), config)
	start := exec.Command("ubcache", "start")
	if err := start.Start(); err != nil {
		t.Fatal(err)
	}
	// A start takes some 300 ms here. Another moment each time, the same in each run.
	time.Sleep(time.Duration(rand.New(rand.NewPCG(uint64(boot), 1)).IntN(400)) * time.Millisecond)
	vmtest.PowerCut(t)
}

// verify looks at what the cuts since the last writers have left.
func (d *disks) verify(t *testing.T, s state) {
	y := vmtest.Fault(t, "power cut of the machine, "+s.mode)
	y.Tried(s.cuts)
	vmtest.Run(t, "cp", vmtest.Out(t, keptConfig), config)
	acked := readWitness(t)
	fmt.Printf("%s: acknowledged before the power cut: %v\n", t.Name(), acked)
	for i, n := range acked {
		if n < enough {
			t.Fatalf("witness of writer %d is %d: it did not survive", i, n)
		}
	}
	if s.alone {
		// Through a snapshot, for the replay of the filesystem's journal must not change the
		// backing device behind the cache's back. The subtest's end removes it.
		t.Run("alone", func(t *testing.T) {
			dir := vmtest.Mount(t, vmtest.Snapshot(t, d.backing), "noatime")
			vmtest.CheckWriters(y, "backing device alone", dir, acked)
		})
	}
	c := vmtest.ReopenCache(t, d.ssd)
	dev := c.Device(t, "data").Path
	dir := vmtest.Mount(t, dev, "noatime")
	vmtest.CheckWriters(y, "through the cache", dir, acked)
	checkWarm(t, y, c, dir)
	vmtest.Run(t, "umount", dir)
	vmtest.FileSystem(s.fs).Verify(t, dev)
}

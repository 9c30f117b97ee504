//go:build vm

package faults

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/vmtest"
	"ubcache/internal/vmtest/writelog"
)

const configPath = "/etc/ubcache.toml"

// Sizes in MiB. The cache is small, so that buckets and journal are used again; xfs makes no
// filesystem below 300 MiB.
const (
	replaySSD     = 48
	replayBacking = 320
	replayLog     = 600
)

// replayRow is one recording.
type replayRow struct {
	mode, fs string // without fs the device is written raw
	list     func(testing.TB)
}

var replayRows = []replayRow{
	{"writeback", "ext4", func(testing.TB) {}}, // also on the short list
	{"writeback", "raw", vmtest.OnlyLong},
	{"writethrough", "raw", vmtest.OnlyFull},
	{"writethrough", "xfs", vmtest.OnlyLong},
	{"writeonly", "xfs", vmtest.OnlyFull},
	{"writearound", "raw", vmtest.OnlyLong},
}

// TestReplay records, with dm-log-writes, what the cache does to SSD and backing device while a
// filesystem or the bare device is written and synced. Then it cuts the power after the fact: it plays both logs
// up to a common moment on other devices, which then lack whatever had not been flushed, starts the
// cache on them, and looks whether everything is there that had been synced by then.
func TestReplay(t *testing.T) {
	for _, r := range replayRows {
		t.Run(r.fs+"-"+r.mode, func(t *testing.T) {
			r.list(t)
			if !vmtest.Soak(t) {
				vmtest.Limit(t, 5*time.Minute)
			}
			r.run(t)
		})
	}
}

// recordTime is how long the load is recorded, at least.
const recordTime = 5 * time.Second

// perKind is how many cuts of each kind are tried, 0 for all.
func (r replayRow) perKind(t *testing.T) int {
	switch {
	case vmtest.Soak(t):
		return 0
	case vmtest.Long(t):
		return 2
	}
	return 1
}

func (r replayRow) run(t *testing.T) {
	vmtest.Modprobe(t, "dm_log_writes", "dm_snapshot")
	at := 0
	slice := func(sizeMiB int) string {
		defer func() { at += sizeMiB }()
		return vmtest.Slice(t, "ssd", at, sizeMiB)
	}
	ssdBase, backingBase := slice(replaySSD), slice(replayBacking)
	ssdCopy, backingCopy := slice(replaySSD), slice(replayBacking)
	logDevs := [2]string{slice(replayLog), slice(replayLog)}
	rec := &recorder{}
	t.Cleanup(stopTrace)
	// What ends with the subtest is the recording: the devices close their logs.
	if !t.Run("record", func(t *testing.T) {
		rec.ssd = record(t, "logged-ssd", vmtest.Loop(t, ssdBase), logDevs[0])
		rec.backing = record(t, "logged-backing", vmtest.Loop(t, backingBase), logDevs[1])
		rec.trace = startTrace(t, rec.ssd.dev, rec.backing.dev)
		if err := rec.marks("traced"); err != nil {
			t.Fatal(err)
		}
		r.record(t, rec)
	}) {
		return
	}
	logs := writelog.Pair{rec.ssd.read(t), rec.backing.read(t)}
	done := rec.trace.read(t)
	all, points, err := logs.Cuts(done)
	if err != nil {
		t.Fatal(err)
	}
	const seed = 1
	cuts := writelog.Sample(all, r.perKind(t), seed)
	fmt.Printf("%s: %d and %d entries, %d marks, %s, none left out; of these %d are tried\n", t.Name(),
		len(logs[0].Entries), len(logs[1].Entries), rec.cuts, countKinds(all), len(cuts))
	if len(all) < leastMoments {
		t.Fatalf("only %d moments were recorded", len(all))
	}
	for d, n := range points {
		if n < leastPoints {
			t.Errorf("only %d flushes and writes with FUA of %s were recorded", n, devices[d])
		}
	}
	p := &player{row: r, rec: rec, logs: logs}
	p.to[0], p.to[1] = openTarget(t, ssdCopy), openTarget(t, backingCopy)
	for i := range cuts {
		p.forward(t, &cuts[i])
		if !t.Run(fmt.Sprintf("cut-%03d", i), func(t *testing.T) { p.check(t, &cuts[i]) }) {
			t.Fatalf("failed at %v", &cuts[i])
		}
	}
}

func countKinds(cuts []writelog.Cut) string {
	n := map[string]int{}
	var list []string
	for i := range cuts {
		n[kindOf(&cuts[i])]++
	}
	for _, k := range slices.Sorted(maps.Keys(n)) {
		list = append(list, fmt.Sprintf("%d %s", n[k], k))
	}
	return strings.Join(list, ", ")
}

var devices = [2]string{"the SSD", "the backing device"}

// kindOf names the device that a cut is about as well.
func kindOf(c *writelog.Cut) string {
	if c.Kind == writelog.CutBoth {
		return string(c.Kind)
	}
	return string(c.Kind) + " of " + devices[c.Moved]
}

// record runs the load.
func (r replayRow) record(t *testing.T, rec *recorder) {
	c := vmtest.NewCache(t, rec.ssd.dev)
	// Writeback goes on all the time.
	rec.dev = c.Attach(t, rec.backing.dev, "data", "--mode="+r.mode, "--sequential-cutoff=0",
		"--dirty-target=2", "--writeback-delay=100ms")
	text, err := os.ReadFile(configPath)
	if err != nil {
		t.Fatal(err)
	}
	rec.config = string(text)
	if r.fs == "raw" {
		stop := rec.startRaw(t)
		defer stop()
		rec.run(t, recordTime)
		return
	}
	vmtest.FileSystem(r.fs).Create(t, rec.dev)
	dir := vmtest.Mount(t, rec.dev, "noatime")
	rec.writers = vmtest.StartWriters(t, dir, rec.ack)
	rec.run(t, recordTime)
	if err := rec.writers.Stop(); err != nil {
		t.Fatal(err)
	}
}

// target is a device that a log is played to.
type target struct {
	*os.File
	dev string
}

func openTarget(t *testing.T, dev string) target {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return target{f, dev}
}

// Discard zeroes, as the disks of the VM do for a discard.
func (t target) Discard(off, n int64) error {
	zeroes := make([]byte, min(n, 4<<20))
	for end := off + n; off < end; off += int64(len(zeroes)) {
		if _, err := t.WriteAt(zeroes[:min(end-off, int64(len(zeroes)))], off); err != nil {
			return err
		}
	}
	return nil
}

// player plays the logs of a recording from cut to cut.
type player struct {
	row  replayRow
	rec  *recorder
	logs writelog.Pair
	to   [2]target
	at   [2]int
}

func (p *player) forward(t *testing.T, c *writelog.Cut) {
	t.Helper()
	for i, end := range c.At {
		if end < p.at[i] {
			t.Fatalf("%v comes after entry %d of its device was played", c, p.at[i])
		}
		if err := p.logs[i].Play(p.to[i], p.at[i], end); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fsync(int(p.to[i].Fd())); err != nil {
			t.Fatal(err)
		}
		p.at[i] = end
	}
}

// check starts the cache on what the cut has left. It works on snapshots, for recovery writes.
func (p *player) check(t *testing.T, c *writelog.Cut) {
	if !vmtest.Soak(t) {
		vmtest.Limit(t, 2*time.Minute)
	}
	y := vmtest.Fault(t, "power cut "+kindOf(c)+", "+p.row.mode)
	y.Tried(1)
	devs := [2]string{vmtest.Snapshot(t, p.to[0].dev), vmtest.Snapshot(t, p.to[1].dev)}
	if c.Kind == writelog.CutIn {
		to := openTarget(t, devs[c.Moved])
		rnd := rand.New(rand.NewPCG(uint64(c.Segment), uint64(c.Flush)))
		if err := errors.Join(p.logs.PlayFlushing(c, to, rnd), unix.Fsync(int(to.Fd()))); err != nil {
			t.Fatal(err)
		}
	}
	config := strings.NewReplacer(p.rec.ssd.dev, devs[0], p.rec.backing.dev, devs[1]).Replace(p.rec.config)
	if err := os.WriteFile(configPath, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cache := vmtest.ReopenCache(t, devs[0])
	if p.row.fs == "raw" {
		p.checkRaw(t, y, c, cache, devs[1])
		return
	}
	p.checkFiles(t, y, c, cache, devs[1])
}

// checkFiles mounts, compares, and checks the filesystem; then once more without the cache.
func (p *player) checkFiles(t *testing.T, y *vmtest.Tally, c *writelog.Cut, cache *vmtest.Cache, backing string) {
	acked := p.logs.Acked(c, vmtest.WriterCount)
	for _, what := range []string{"through the cache", "written back"} {
		dev := backing
		if what == "through the cache" {
			dev = cache.Device(t, "data").Path
		}
		// Before mkfs has ended there is nothing to be mounted.
		if acked[0] > 0 {
			dir := vmtest.Mount(t, dev, "noatime")
			vmtest.CheckWriters(y, what, dir, acked)
			vmtest.Run(t, "umount", dir)
			vmtest.FileSystem(p.row.fs).Verify(t, dev)
		}
		if what == "through the cache" {
			vmtest.Ubcache(t, "detach", "data")
		}
	}
}

// checkRaw compares every sector; what was read stays, through another crash, and when it has been
// written back.
func (p *player) checkRaw(t *testing.T, y *vmtest.Tally, c *writelog.Cut, cache *vmtest.Cache, backing string) {
	acked := p.logs.Acked(c, rawWriters)
	dev := cache.Device(t, "data").Path
	var after []*vmtest.Oracle
	for i, o := range p.rec.oracles {
		after = append(after, o.After(t, dev, uint32(acked[i])))
	}
	read := func(what, dev string) {
		for _, o := range after {
			o.Reopen(t, dev)
			o.ReadAll(y, what, 128, nil)
			o.Close()
		}
	}
	read("after the cut", dev)
	cache.Kill(t)
	// Without the pending ring, as if the machine had gone down.
	vmtest.Sh(t, "rm -f /run/ubcache/*.pending")
	cache.Start(t)
	read("after a second crash", cache.Device(t, "data").Path)
	rnd := rand.New(rand.NewPCG(uint64(c.Segment), 3))
	for _, o := range after {
		o.Reopen(t, dev)
		for range 20 {
			if _, err := o.Random(y, rnd); err != nil {
				y.Failed("load after the cut: %v", err)
			}
		}
		o.Close()
	}
	vmtest.Ubcache(t, "detach", "data")
	read("written back", backing)
}

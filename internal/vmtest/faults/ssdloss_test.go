//go:build vm

package faults

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ubcache/internal/vmtest"
)

// ssdShift is where the SSD of these tests begins on its device.
const ssdShift = 2048

// newLossStage is a stage whose SSD can vanish as a whole.
func newLossStage(t *testing.T, fault string, flags ...string) *stage {
	t.Helper()
	s := &stage{t: t, y: vmtest.Fault(t, fault)}
	s.ssd = newShifted(t, "faulty-ssd", vmtest.Slice(t, "ssd", 0, faultSSD), ssdShift)
	s.begin(t, vmtest.Slice(t, "ssd", 512, faultBacking), flags)
	return s
}

// vanish makes all I/O of the SSD fail.
func (s *stage) vanish() {
	s.t.Helper()
	s.ssd.fault(s.t, "error", "")
}

// TestVanishingSSD takes the SSD away under load and brings it back.
func TestVanishingSSD(t *testing.T) {
	for name, test := range map[string]func(*testing.T, string){
		"SSD: vanishes and returns, clean data":                    vanishClean,
		"SSD: vanishes and returns, clean data, nothing missed":    vanishWarm,
		"SSD: vanishes and returns, dirty data, I/O waits":         vanishHeld,
		"SSD: vanishes, dirty data, returns after changes":         vanishDirty,
		"SSD: stalls until it is lost, clean data, goes on":        stallLost,
		"SSD: stalls until it is lost, dirty data, I/O waits":      stallHeld,
		"SSD: vanishes, the daemon is killed, SSD returns":         vanishKill,
		"SSD: unplugged and plugged back, clean data":              unplugSSD,
		"SSD: unplugged and plugged back, dirty data, I/O waits":   unplugHeld,
		"SSD: not there at the start, devices served, SSD returns": startWithout,
	} {
		t.Run(name, func(t *testing.T) {
			vmtest.OnlyFull(t)
			vmtest.Limit(t, 5*time.Minute)
			test(t, name)
		})
	}
}

// vanishClean: nobody sees an error, neither while the SSD is away nor when it comes back. It has missed changes, and
// is started with empty.
func vanishClean(t *testing.T, fault string) {
	s := newLossStage(t, fault, "--mode=writethrough")
	s.load(150, s.oracles, nil)
	s.readAll("before the fault")
	for range rounds(t, 1) {
		s.y.Tried(1)
		s.vanish()
		s.load(100, s.oracles, nil)
		vmtest.WaitSSD(t, "lost")
		s.readAll("without the SSD")
		if n := len(markers()); n != 1 {
			t.Errorf("%d markers", n)
		}
		s.ssd.heal(t)
		s.load(100, s.oracles, nil)
		vmtest.WaitSSD(t, "ok")
		s.readAll("with the SSD again")
		s.load(100, s.oracles, nil)
	}
	if n := len(markers()); n != 0 {
		t.Errorf("%d markers are left", n)
	}
	s.end()
}

func markers() []string {
	list, _ := filepath.Glob("/var/lib/ubcache/missed/*")
	return list
}

// vanishWarm: what was read only is warm when the SSD is back.
func vanishWarm(t *testing.T, fault string) {
	s := newLossStage(t, fault, "--mode=writethrough")
	s.load(150, s.oracles, nil)
	s.readAll("before the fault")
	cached := s.c.Device(t, "data").CachedBytes
	s.y.Tried(1)
	s.vanish()
	s.readAll("without the SSD")
	vmtest.WaitSSD(t, "lost")
	s.readAll("without the SSD")
	s.ssd.heal(t)
	vmtest.WaitSSD(t, "ok")
	if now := s.c.Device(t, "data").CachedBytes; now < cached*9/10 {
		t.Errorf("%d bytes are cached after the SSD's return, %d were before", now, cached)
	}
	s.readAll("with the SSD again")
	if d := s.stats(); d.HitBlocks == 0 {
		t.Error("no hits with the SSD that is back")
	}
	s.end()
}

// vanishDirty: after the hold dirty sectors fail and no others, until they are overwritten. The SSD is refused when it
// is back, and its dirty data is kept for salvage.
func vanishDirty(t *testing.T, fault string) {
	s := newLossStage(t, fault, append([]string{"--ssd-loss-hold=1s"}, keepsDirty...)...)
	s.load(150, s.oracles[:2], nil)
	vmtest.Ubcache(t, "flush", "data")
	s.load(150, s.oracles[2:], nil)
	if err := s.oracles[2].Sync(); err != nil {
		t.Fatal(err)
	}
	s.y.Tried(1)
	s.vanish()
	for _, o := range s.oracles[:2] {
		o.ReadAll(s.y, "clean data without the SSD", 64, nil)
	}
	failed := 0
	for _, o := range s.oracles[2:] {
		failed += s.readBlocks("dirty data without the SSD", o, writtenBlock)
	}
	if failed == 0 {
		t.Error("nothing failed: the SSD was not gone")
	}
	s.overwrite(t)
	s.load(50, s.oracles, nil)
	if err := s.oracles[0].Sync(); err != nil {
		s.y.Failed("fsync after all was overwritten: %v", err)
	}
	pid := s.c.Status(t).PID
	s.ssd.heal(t)
	vmtest.Wait(t, time.Minute, "word of the SSD that is back", func() bool {
		log, _ := os.ReadFile("/run/ubcache/main.log")
		return bytes.Contains(log, []byte("is back, but is not used"))
	})
	if st := s.c.Status(t); st.Cache.SSDState != "lost" || st.PID != pid {
		t.Errorf("the SSD is %s, the daemon %d instead of %d", st.Cache.SSDState, st.PID, pid)
	}
	s.readAll("with the SSD that is refused")
	for _, o := range s.oracles {
		o.Close()
	}
	s.c.Stop(t)
	const refused = 3
	vmtest.Refused(t, refused, "--drop data", "start")
	image := filepath.Join(t.TempDir(), "image")
	vmtest.Ubcache(t, "salvage", "main", "--to", image, "--write")
	if i, err := os.Stat(image); err != nil || i.Size() == 0 {
		t.Errorf("nothing was salvaged: %v", err)
	}
	vmtest.Refused(t, refused, "changed", "salvage", "main", "--to", s.backing.dev, "--write")
	vmtest.Ubcache(t, "start", "--drop", "data")
	for _, o := range s.oracles {
		o.Reopen(t, s.c.Device(t, "data").Path)
	}
	s.readAll("after the SSD's dirty data was given up")
	s.load(50, s.oracles, nil)
	s.end()
}

// stallLost: an SSD that hangs for longer than it may is lost, and taken back when it goes on.
func stallLost(t *testing.T, fault string) {
	s := newLossStage(t, fault, "--mode=writethrough")
	s.shortLimits(t)
	s.load(150, s.oracles, nil)
	s.readAll("before the fault")
	for range rounds(t, 1) {
		s.y.Tried(1)
		m := vmtest.OpenMapped(t, s.ssd.dev)
		vmtest.Run(t, "dmsetup", "suspend", "--noflush", "--nolockfs", s.ssd.dev)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.load(60, s.oracles, nil)
		}()
		vmtest.WaitSSD(t, "lost")
		select {
		case <-done:
		case <-time.After(time.Minute):
			s.y.Failed("requests wait for an SSD that is lost")
		}
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
		<-done
		vmtest.WaitSSD(t, "ok")
		s.readAll("after the stall")
		s.load(60, s.oracles, nil)
	}
	s.end()
}

// vanishKill: the daemon is killed while it is without its SSD. What the markers say counts at the next start.
func vanishKill(t *testing.T, fault string) {
	s := newLossStage(t, fault, "--mode=writethrough")
	s.load(150, s.oracles, nil)
	for range rounds(t, 1) {
		s.y.Tried(1)
		s.vanish()
		s.load(100, s.oracles, nil)
		vmtest.WaitSSD(t, "lost")
		var wg sync.WaitGroup
		wg.Go(func() { s.load(100, s.oracles, nil) })
		s.c.Kill(t)
		s.ssd.heal(t)
		s.c.Start(t)
		wg.Wait()
		s.readAll("after the kill")
	}
	s.end()
}

// unplugSSD: the SSD's disk is unplugged, and comes back, perhaps under another name.
func unplugSSD(t *testing.T, fault string) {
	s, disk := newPlugStage(t, fault, "--mode=writethrough")
	s.load(150, s.oracles, nil)
	s.readAll("before the fault")
	for range rounds(t, 1) {
		s.y.Tried(1)
		disk.Out(t)
		s.load(100, s.oracles, nil)
		vmtest.WaitSSD(t, "lost")
		s.readAll("without the SSD")
		s.c.SSD = disk.In(t)
		vmtest.WaitSSD(t, "ok")
		s.load(100, s.oracles, nil)
		s.readAll("with the SSD again")
	}
	s.end()
}

// startWithout: a cache that was stopped with nothing dirty starts without its SSD, and takes it back.
func startWithout(t *testing.T, fault string) {
	s := newLossStage(t, fault, "--mode=writethrough")
	s.load(150, s.oracles, nil)
	for changed := range 2 {
		s.y.Tried(1)
		for _, o := range s.oracles {
			o.Close()
		}
		s.c.Stop(t)
		s.vanish()
		s.c.Start(t)
		for _, o := range s.oracles {
			o.Reopen(t, s.c.Device(t, "data").Path)
		}
		if got := vmtest.SSDState(t); got != "lost" {
			t.Errorf("the SSD is %s", got)
		}
		s.readAll("started without the SSD")
		if changed == 1 {
			s.load(100, s.oracles, nil)
		}
		if n := len(markers()); n != changed {
			t.Errorf("%d markers", n)
		}
		s.ssd.heal(t)
		vmtest.WaitSSD(t, "ok")
		if n := s.c.Device(t, "data").CachedBytes; (n == 0) != (changed == 1) {
			t.Errorf("%d bytes are cached with the SSD that is back", n)
		}
		s.readAll("with the SSD again")
		s.load(50, s.oracles, nil)
	}
	s.end()
}

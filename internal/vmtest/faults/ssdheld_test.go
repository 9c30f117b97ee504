//go:build vm

package faults

import (
	"testing"

	"ubcache/internal/vmtest"
)

// With dirty data on an SSD that goes away for a while, what needs the SSD waits, and all of it is there again.

// holdsDirty waits for an SSD for as long as a test may take.
var holdsDirty = append([]string{"--ssd-loss-hold=3m"}, keepsDirty...)

// vanishHeld: all I/O of the SSD fails for a while.
func vanishHeld(t *testing.T, fault string) {
	vmtest.OnlyLong(t) // TestSSDLoss is much the same
	s := newLossStage(t, fault, holdsDirty...)
	s.held(t, s.vanish, func() { s.ssd.heal(t) })
}

// stallHeld: the SSD hangs for longer than it may, and then goes on.
func stallHeld(t *testing.T, fault string) {
	s := newLossStage(t, fault, holdsDirty...)
	s.shortLimits(t)
	m := vmtest.OpenMapped(t, s.ssd.dev)
	s.held(t, func() {
		vmtest.Run(t, "dmsetup", "suspend", "--noflush", "--nolockfs", s.ssd.dev)
	}, func() {
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
	})
}

// unplugHeld: the SSD's disk is unplugged, and comes back, perhaps under another name.
func unplugHeld(t *testing.T, fault string) {
	s, disk := newPlugStage(t, fault, holdsDirty...)
	s.held(t, func() { disk.Out(t) }, func() { s.c.SSD = disk.In(t) })
}

// newPlugStage is a stage whose SSD is a disk that can be unplugged.
func newPlugStage(t *testing.T, fault string, flags ...string) (*stage, *vmtest.Plug) {
	t.Helper()
	disk := vmtest.OpenPlug(t, "plug0")
	s := &stage{t: t, y: vmtest.Fault(t, fault)}
	s.ssd = &faulty{dev: disk.Dev(t)}
	s.begin(t, vmtest.Slice(t, "ssd", 512, faultBacking), flags)
	return s, disk
}

// shortLimits makes an SSD that hangs count as lost soon.
func (s *stage) shortLimits(t *testing.T) {
	t.Helper()
	for _, o := range s.oracles {
		o.Close()
	}
	s.c.SetSSDLimits(t, "500ms", "2s")
	for _, o := range s.oracles {
		o.Reopen(t, s.c.Device(t, "data").Path)
	}
}

// held is the test, with what takes the SSD away and what brings it back.
func (s *stage) held(t *testing.T, away, back func()) {
	t.Helper()
	s.load(150, s.oracles, nil)
	dirty := s.c.Device(t, "data").DirtyBytes
	for range rounds(t, 1) {
		s.y.Tried(1)
		away()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.load(60, s.oracles, nil)
		}()
		vmtest.WaitSSD(t, "lost")
		select {
		case <-done:
			t.Error("nothing has waited for the SSD")
		default:
		}
		back()
		vmtest.WaitSSD(t, "ok")
		<-done
		s.readAll("with the SSD again")
	}
	if now := s.c.Device(t, "data").DirtyBytes; now < dirty || dirty == 0 {
		t.Errorf("%d bytes are dirty, %d were before", now, dirty)
	}
	s.end()
}

package cache

import (
	"bytes"
	"testing"
)

// TestRestore: both superblocks are lost, and the one of the last stop is known. The cache is as it was if nothing was dirty, or
// cold if more is lost; a device that is not this cache, or was used since, is left as it is.
func TestRestore(t *testing.T) {
	wipe := func(d *damaged) { clear(d.ssd[superOffA:journalOff]) }
	for _, tt := range []struct {
		name  string
		mode  Mode
		spoil func(d *damaged, kept *Superblock)
		ok    bool
	}{
		{"all is there", Writethrough, func(d *damaged, _ *Superblock) { wipe(d) }, true},
		{"they fail their checksums", Writethrough, func(d *damaged, _ *Superblock) {
			d.spoil(superOffA)
			d.spoil(superOffB)
		}, true},
		{"the journal is lost, too", Writethrough, func(d *damaged, _ *Superblock) {
			clear(d.ssd[superOffA:d.c.geo.SummaryOff[0]])
		}, true},
		{"all metadata is lost", Writethrough, func(d *damaged, _ *Superblock) { clear(d.ssd[:d.c.geo.DataOff]) }, false},
		{"one copy is whole", Writethrough, func(d *damaged, _ *Superblock) { d.spoil(superOffA) }, false},
		{"dirty data", Writeback, func(d *damaged, _ *Superblock) { wipe(d) }, false},
		{"a dirty count that is not known", Writethrough, func(d *damaged, kept *Superblock) {
			wipe(d)
			kept.Backings[0].Dirty = 0
		}, false},
		{"not stopped in order", Writethrough, func(d *damaged, kept *Superblock) {
			wipe(d)
			kept.Clean = false
		}, false},
		{"used since", Writethrough, func(d *damaged, _ *Superblock) {
			if _, err := d.reopen(); err != nil {
				d.t.Fatal(err)
			}
			d.write(95*BlockSize, bytes.Repeat([]byte{95}, BlockSize))
			d.flush()
			d.stop()
			wipe(d)
		}, false},
		{"another cache's", Writethrough, func(d *damaged, kept *Superblock) {
			wipe(d)
			kept.UUID[0] ^= 1
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDamaged(t, tt.mode, true)
			d.stop()
			sb, err := ReadSuper(d.ssd)
			if err != nil {
				t.Fatal(err)
			}
			kept, err := UnmarshalSuper(sb.Marshal())
			if err != nil {
				t.Fatal(err)
			}
			if tt.mode != Writeback && kept.Backings[0].Dirty != 1 {
				t.Fatalf("dirty count %d", kept.Backings[0].Dirty)
			}
			tt.spoil(d, kept)
			before := bytes.Clone(d.ssd)
			err = Restore(d.ssd, kept)
			if (err == nil) != tt.ok {
				t.Fatalf("restore: %v", err)
			}
			if err != nil {
				if !bytes.Equal(before, d.ssd) {
					t.Error("it has written all the same")
				}
				return
			}
			c, err := d.reopen()
			if err != nil {
				t.Fatal(err)
			}
			if c.Super().Seq <= kept.Seq {
				t.Errorf("sequence %d after %d", c.Super().Seq, kept.Seq)
			}
			if d.b.cached.Load() == 0 {
				t.Error("it is cold")
			}
		})
	}
}

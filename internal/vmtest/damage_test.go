//go:build vm

package vmtest

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"
)

// summaryPlaces is where the first superblock has the places of both copies of the summaries (cache/FORMAT.md).
const summaryPlaces = 64<<10 + 104

// TestDamagedMetadata damages, after a stop in order, metadata that there is once more: nothing is lost, and the cache is
// warm.
func TestDamagedMetadata(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	const bytes = 8 << 20
	ssd := Slice(t, "ssd", 0, 64)
	super := Fault(t, "SSD: both superblocks lost after a stop, clean data")
	c := NewCache(t, ssd)
	dev := c.Attach(t, Slice(t, "ssd", 512, 96), "data", "--mode=writethrough", "--sequential-cutoff=0")
	o := NewOracle(t, dev, 0, bytes)
	fill := func() {
		t.Helper()
		for at := 0; at < o.Len(); at += 512 {
			if err := o.Write(at, 512); err != nil {
				t.Fatal(err)
			}
		}
	}
	// damaged stops the cache, does it, starts it, and looks.
	damaged := func(y *Tally, what string, zero func()) (d DeviceStatus) {
		t.Helper()
		o.Close()
		cached := c.Device(t, "data").CachedBytes
		c.Stop(t)
		y.Tried(1)
		zero()
		c.Start(t)
		d = c.Device(t, "data")
		o.Reopen(t, d.Path)
		o.ReadAll(y, what, 512, nil)
		s := c.Stats(t).Devices["data"]
		if d.CachedBytes < cached || s.HitBlocks < bytes/4096 {
			t.Errorf("%s: %d bytes were cached, %d are; %d blocks were hits", what, cached, d.CachedBytes, s.HitBlocks)
		}
		return d
	}
	fill()
	damaged(super, "superblocks", func() {
		Run(t, "dd", "if=/dev/zero", "of="+ssd, "bs=64k", "seek=1", "count=2", "oflag=direct", "status=none")
	})

	y := Fault(t, "SSD: one copy of the summaries lost, dirty data")
	c.Set(t, "data", "mode=writeback", "dirty-max=90", "dirty-target=80", "writeback-delay=24h")
	fill()
	places := make([]byte, 16)
	readAt(t, ssd, places, summaryPlaces)
	a, b := int64(binary.LittleEndian.Uint64(places)), int64(binary.LittleEndian.Uint64(places[8:]))
	// The first start has to write anew what was lost: the second has nothing else.
	for i, off := range []int64{a, b} {
		what := fmt.Sprintf("copy %d of the summaries", i)
		spoil := func() {
			// The journal may have it all, too.
			Run(t, "dd", "if=/dev/zero", "of="+ssd, "bs=4k", "seek=256", fmt.Sprint("count=", journalBytes(t)/4096),
				"oflag=direct", "status=none")
			for page := off; page < off+b-a; page += 4096 {
				spoilSector(t, ssd, page)
			}
		}
		if d := damaged(y, what, spoil); d.DirtyBytes < bytes {
			y.Lost("%s: %d bytes are dirty, of %d", what, d.DirtyBytes, bytes)
		}
	}
	o.Close()
	Ubcache(t, "flush", "data")
}

// journalBytes is the size of the journal, which begins at the first MiB.
func journalBytes(t *testing.T) int64 {
	t.Helper()
	var d struct {
		Pages int64 `json:"journal_pages"`
	}
	decode(t, Ubcache(t, "dump", "main", "--json"), &d)
	return d.Pages * 4096
}

func readAt(t *testing.T, dev string, p []byte, off int64) {
	t.Helper()
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
}

//go:build vm

package vmtest

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestManyDevices has three backing devices on one cache, two of them under load all the time
// while the third comes and goes.
func TestManyDevices(t *testing.T) {
	OnlyFull(t)
	Limit(t, 4*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	one := c.Attach(t, Slice(t, "ssd", 512, 192), "one", "--mode=writeback", "--sequential-cutoff=0")
	two := c.Attach(t, Slice(t, "ssd4k", 512, 192), "two", "--mode=writethrough", "--sequential-cutoff=0")
	third := Slice(t, "slow", 0, 256)
	var over atomic.Bool
	var rounds [2]int
	var wg sync.WaitGroup
	for i, dev := range []string{one, two} {
		wg.Go(func() {
			for !over.Load() {
				_, err := TryFio(dev, 3*time.Minute, "rw=randwrite", "bssplit=4k/70:16k/20:128k/10",
					"size=96m", "io_size=16m", "iodepth=8", "norandommap=1", "serialize_overlap=1",
					"verify=crc32c", "verify_fatal=1", "verify_backlog=200")
				if err != nil {
					t.Error(err)
					return
				}
				rounds[i]++
			}
		})
	}
	src, want := newTree(t, 150, 11)
	for i := range 3 {
		dev := c.Attach(t, third, "three", "--mode=writeback", "--sequential-cutoff=0")
		if n := len(c.Status(t).Devices); n != 3 {
			t.Errorf("status shows %d devices", n)
		}
		if i == 0 {
			fileSystems[0].Create(t, dev)
			mounted(t, dev, func(dir string) { copyTree(t, src, dir) })
		}
		mounted(t, dev, func(dir string) { want.Compare(t, "third device", ListTree(t, dir)) })
		Ubcache(t, "detach", "three")
		fileSystems[0].Verify(t, third)
	}
	over.Store(true)
	wg.Wait()
	t.Logf("%d and %d rounds of fio meanwhile", rounds[0], rounds[1])
	st := c.Stats(t)
	if st.Devices["one"].Writes == 0 || st.Devices["two"].Writes == 0 || rounds[0]*rounds[1] == 0 {
		t.Errorf("no load on the others: %v rounds", rounds)
	}
}

//go:build vm

package vmtest

import (
	"fmt"
	"testing"
	"time"
)

// kernelSource starts the cache anew with the daemon's BPF program, and waits until that is there; every
// kernel of the matrix can load it.
func kernelSource(t testing.TB, c *Cache) {
	t.Helper()
	c.Stop(t)
	setKernelAttributes(t, "auto")
	c.Start(t)
	Wait(t, 30*time.Second, "the BPF program is loaded", func() bool {
		return c.Status(t).KernelAttributes == "on"
	})
}

// TestRun: a program that knows nothing of ubcache is tagged from outside, and the cache acts on it:
// reads with the hint bypass are not cached, those without it are.
func TestRun(t *testing.T) {
	Limit(t, 2*time.Minute)
	c := NewCache(t, Slice(t, "ssd", 0, 128))
	dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", "--mode=writeback", "--sequential-cutoff=0")
	kernelSource(t, c)
	cached := func() int64 { return c.Device(t, "data").CachedBytes }
	dd := func(skip int) []string {
		return []string{
			"dd", "if=" + dev, "of=/dev/null", "bs=64k", "count=16", "iflag=direct", "status=none",
			fmt.Sprintf("skip=%d", skip),
		}
	}
	before := cached()
	Ubcache(t, append([]string{"run", "--hint", "bypass", "--"}, dd(0)...)...)
	if now := cached(); now != before {
		t.Errorf("%d bytes cached by reads with hint=bypass", now-before)
	}
	plain := dd(0)
	Run(t, plain[0], plain[1:]...)
	if now := cached(); now < 1<<20 {
		t.Errorf("%d bytes cached after 1 MiB of reads without a hint", now)
	}
}

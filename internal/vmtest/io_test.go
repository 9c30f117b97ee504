//go:build vm

package vmtest

import (
	"encoding/json"
	"testing"
	"time"
)

// ioAnswer is what tests read of `ubcache io --json`.
type ioAnswer struct {
	Channel string `json:"channel"`
	Why     string `json:"channel_reason"`
	Results struct {
		Origin     string `json:"origin"`
		Devices    []int  `json:"devices"`
		Attributes map[string]struct {
			Status string `json:"status"`
			Reason string `json:"reason"`
			Source string `json:"source"`
		} `json:"attributes"`
	} `json:"results"`
}

// io runs `ubcache io`.
func ubcacheIO(t testing.TB, args ...string) (a ioAnswer) {
	t.Helper()
	out := Ubcache(t, append([]string{"--json", "io"}, args...)...)
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return a
}

// TestIO: attributes reach the cache through the block device where the kernel can do that, and over
// the direct ring on all kernels, with and without data checksums.
func TestIO(t *testing.T) {
	Limit(t, 3*time.Minute)
	for _, sums := range []string{"checksums", "no-checksums"} {
		t.Run(sums, func(t *testing.T) {
			var flags []string
			if sums == "no-checksums" {
				flags = append(flags, "--no-checksums")
			}
			c := NewCache(t, Slice(t, "ssd", 0, 128), flags...)
			dev := c.Attach(t, Slice(t, "slow", 0, 128), "data", "--mode=writeback")
			want := "direct"
			if KernelAtLeast(t, "7.1") {
				want = "shared"
			}
			for _, channel := range []string{want, "direct"} {
				a := ubcacheIO(t, "read", dev, "--channel", channel, "--length", "64K", "--attrs",
					"hint=cache,timing,trace=1")
				if a.Channel != channel || a.Results.Attributes["hint"].Status != "handled" ||
					a.Results.Attributes["timing"].Status != "handled" {
					t.Errorf("%s: %+v", channel, a)
				}
				a = ubcacheIO(t, "read", dev, "--channel", channel, "--length", "64K", "--attrs", "hint=once")
				if a.Results.Origin != "ssd" {
					t.Errorf("%s: a read that was cached comes from %s", channel, a.Results.Origin)
				}
				ubcacheIO(t, "write", dev, "--channel", channel, "--length", "64K", "--offset", "1M",
					"--attrs", "mode=writethrough,required:mode")
			}
		})
	}
}

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
)

// TestStatusOfAFailingSSD: status says what is wrong, for each device what it means, and nothing if all is
// well.
func TestStatusOfAFailingSSD(t *testing.T) {
	device := func(name string, dirty int64, missed bool) control.Device {
		return control.Device{BackingStatus: cache.BackingStatus{
			Name: name, DirtyBytes: dirty, Missed: missed, State: "clean",
		}, Service: "served"}
	}
	st := control.Status{Name: "main", Running: true, Cache: cache.Status{
		SSDState: "lost", SSDProblem: "it is gone", SSDSince: 90 * time.Second,
	}, Devices: []control.Device{
		device("a", 0, false), device("b", 0, true), device("c", 8192, false), device("d", 4096, true),
	}}
	text := func() string {
		var b bytes.Buffer
		if err := printStatus(&b, &config.File{}, []control.Status{st}); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	got := text()
	for _, want := range []string{
		"  SSD LOST for 1m30s: it is gone\n",
		"  b: changed without the SSD, which starts empty for it when it is back\n",
		"  c: 8.0 KiB of it is on the SSD only; bring it back\n",
		"  d: changed without the SSD, which has 4.0 KiB of it that is nowhere else: that is lost unless salvaged\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "  a: ") {
		t.Errorf("something is said of a device that lacks nothing:\n%s", got)
	}
	st.Cache.SSDState = "slow"
	if got := text(); !strings.Contains(got, "SSD SLOW for 1m30s: it is gone; reads go to the backing devices") {
		t.Errorf("slow:\n%s", got)
	}
	st.Cache.SSDState = "ok"
	if got := text(); strings.Contains(got, "SSD ") {
		t.Errorf("ok:\n%s", got)
	}
}

// TestStatusLoading looks at what status says while the index is being loaded.
func TestStatusLoading(t *testing.T) {
	for want, l := range map[string]cache.Loading{
		"loading 42%: I/O is served":         {Running: true, Percent: 42},
		"3 pieces of the index were damaged": {Percent: 100, LostPages: 3},
		"running as process":                 {Percent: 100, Took: 1},
	} {
		st := control.Status{Name: "main", Running: true, Cache: cache.Status{Loading: l}}
		var b bytes.Buffer
		if err := printStatus(&b, &config.File{}, []control.Status{st}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), want) || !l.Running && strings.Contains(b.String(), "loading") {
			t.Errorf("%+v: %s", l, b.String())
		}
	}
}

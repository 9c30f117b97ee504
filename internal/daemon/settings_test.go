package daemon

import (
	"context"
	"testing"

	api "ubcache/attrs/client"
	"ubcache/internal/control"
)

// TestSetAllOrNothing: a set that fails for one setting leaves the others as they were.
func TestSetAllOrNothing(t *testing.T) {
	b := newDirectBench(t, directOptions{mode: "writethrough"})
	before := b.Status().Devices[0].Settings
	set := func(settings map[string]string) {
		t.Helper()
		if _, err := b.set(context.Background(), control.SetArgs{Name: "disk0", Settings: settings}, nil); err == nil {
			t.Fatalf("set %v", settings)
		}
		for name, v := range b.Status().Devices[0].Settings {
			if v != before[name] {
				t.Errorf("set %v has failed, and %s is %s instead of %s", settings, name, v, before[name])
			}
		}
	}
	set(map[string]string{"mode": "writeback", "dirty-max": "200"})
	d := b.open(api.Options{})
	must(t, b.writeAt(d, 0, 1, 4096))
	b.flushed(d)
	b.loseSSD(d)
	closeDevice(t, d)
	set(map[string]string{"mode": "writeback", "writeback-delay": "2h", "ordered": "on"})
}

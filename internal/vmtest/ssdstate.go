//go:build vm

package vmtest

import (
	"encoding/json"
	"testing"
	"time"
)

// SSDState is the state of the SSD of the running cache, empty while the daemon starts anew.
func SSDState(t testing.TB) string {
	t.Helper()
	out, err := Try(t, "ubcache", "status", "--json")
	var list []CacheStatus
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) != 1 || !list[0].Running {
		return ""
	}
	return list[0].Cache.SSDState
}

// WaitSSD waits until the SSD is in a state.
func WaitSSD(t testing.TB, want string) {
	t.Helper()
	Wait(t, 2*time.Minute, "the SSD to be "+want, func() bool { return SSDState(t) == want })
}

// SetSSDLimits stops the cache and starts it with other limits for its SSD.
func (c *Cache) SetSSDLimits(t testing.TB, stall, loss string) {
	t.Helper()
	c.Stop(t)
	Sh(t, `sed -i -e '/^ssd-.*-limit/d' -e 's/^\[cache.main\]/&\nssd-stall-limit = "`+stall+`"\nssd-loss-limit = "`+loss+
		`"/' `+configPath)
	c.Start(t)
}

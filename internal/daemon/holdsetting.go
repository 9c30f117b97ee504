package daemon

import (
	"fmt"
	"strings"
	"time"

	"ubcache/cache"
	"ubcache/internal/config"
)

// parseLoss reads the setting backing-loss: fail, hold, or hold=DURATION.
func parseLoss(v string) (time.Duration, error) {
	const want = "%q is none of fail, hold, hold=DURATION"
	switch how, text, timed := strings.Cut(v, "="); {
	case v == "fail":
		return 0, nil
	case v == "hold":
		return cache.HoldForever, nil
	case how == "hold" && timed:
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return 0, fmt.Errorf(want+", such as hold=30s", v)
		}
		return d, nil
	}
	return 0, fmt.Errorf(want, v)
}

func showLoss(d time.Duration) string {
	switch d {
	case 0:
		return "fail"
	case cache.HoldForever:
		return "hold"
	}
	text, _ := config.Duration(d).MarshalText()
	return "hold=" + string(text)
}

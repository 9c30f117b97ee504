package daemon

import (
	"os"
	"strings"
	"syscall"
	"time"

	"ubcache/cache"
	"ubcache/internal/config"
)

// ssdHealth logs how the SSD does. It is called on the background's thread.
func (in *Instance) ssdHealth(e cache.HealthEvent) {
	switch {
	case e.Health == cache.HealthLost:
		in.log.Error("the SSD is lost: the devices go on without it, dirty data excepted; see "+
			"ubcache status", "why", e.Why)
	case e.Health == cache.HealthSlow:
		in.log.Warn("the SSD is slow: reads go to the backing devices", "why", e.Why)
	case e.Was == cache.HealthLost:
		in.log.Info("the SSD is back, and nothing is missing", "why", e.Why)
	default:
		in.log.Info("the SSD is well again", "why", e.Why)
	}
}

// ssdLimits are the limits of the configuration, checked when it was read.
func ssdLimits(c *config.Cache) (stall, loss time.Duration) {
	stall, _ = config.ParseLimit(c.SSDStallLimit)
	loss, _ = config.ParseLimit(c.SSDLossLimit)
	return stall, loss
}

const (
	// ssdLookEvery is how often a lost SSD is looked for, ssdLookTimes how often in a row it must have been
	// found: one that comes and goes is of no use.
	ssdLookEvery = time.Second
	ssdLookTimes = 3
)

// watchSSD takes a lost SSD back when it is there again, under whatever name. It ends with the instance.
func (in *Instance) watchSSD() {
	t := time.NewTicker(ssdLookEvery)
	defer t.Stop()
	seen, told := 0, false
	for {
		select {
		case <-in.life.Done():
			return
		case <-t.C:
		}
		loss, lost := in.cache.Loss()
		if !lost {
			seen, told = 0, false
			continue
		}
		// After a mere stall the engine takes it back by itself; operations that hang would keep this
		// process from ending.
		if loss.Stalled || loss.Busy || !in.ssdIsBack() {
			seen = 0
			continue
		}
		if seen++; seen < ssdLookTimes {
			continue
		}
		if len(loss.DirtyMissed) > 0 {
			if !told {
				in.log.Error("the SSD is back, but is not used: these devices have changed without it, and it "+
					"has dirty data of them; stop the cache, then ubcache salvage, or ubcache start "+
					"--drop", "names", strings.Join(loss.DirtyMissed, ", "))
			}
			told = true
			continue
		}
		in.startAnew(loss)
		seen = 0
	}
}

// ssdIsBack reports whether the SSD can be read, by the way it would be found at a start.
func (in *Instance) ssdIsBack() bool {
	i, err := in.findSSD()
	if err != nil {
		return false
	}
	d, err := i.OpenForReading()
	if err != nil {
		return false
	}
	defer d.Close()
	sb, err := cache.ReadSuper(d)
	return err == nil && sb.UUID.String() == in.conf.UUID
}

// startAnew executes this program again, which then opens the SSD as after a crash: the block devices
// wait, the journal and the pending ring are replayed, and what the SSD has lost is found out. The process
// keeps its number, so that whoever manages it does not notice.
func (in *Instance) startAnew(loss cache.Loss) {
	if in.opts.Anew == nil {
		return
	}
	in.changing.Lock()
	defer in.changing.Unlock()
	if in.isStopped() {
		return
	}
	in.log.Warn("the SSD is back: starting anew with it", "devices that it missed changes of",
		len(loss.Missed))
	if err := in.opts.Anew(); err != nil {
		in.log.Error("cannot start anew with the SSD: restart the daemon", "error", err)
	}
}

// ExecAgain is Options.Anew of a daemon with a process of its own.
func ExecAgain() error { return syscall.Exec("/proc/self/exe", againArgs(os.Args), os.Environ()) }

// againArgs leaves out what was said to the first start only: who waits for it, and which dirty data it
// was to give up.
func againArgs(args []string) (again []string) {
	for i := 0; i < len(args); i++ {
		name, _, joined := strings.Cut(args[i], "=")
		if name != "--ready-fd" && name != "--drop" {
			again = append(again, args[i])
		} else if !joined {
			i++
		}
	}
	return again
}
